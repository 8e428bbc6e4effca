"""The network's ANN counterpart, and examples that are found on it and shown to the spiking network."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum

import networkx as nx
import numpy as np
import torch
from torch import Tensor

from compiler.attack.budget import Norm
from compiler.attack.goal import succeeds, wins
from compiler.attack.inputs import Attackable, Batch, DirectImage, View, attackable
from compiler.attack.iterate import checked
from compiler.attack.lanes import Lanes
from compiler.attack.network import in_blocks, loss_gradient, output_with
from compiler.attack.perturbation import perturbation
from compiler.attack.settings import Case, Floats, Outcome, Settings, Status
from compiler.attack.victim import Victim
from compiler.differentiate import Loss
from compiler.evaluate import Execution
from compiler.ir import CompileError, DType, Encoding, Graph, Loc, Node
from compiler.ir.ops import Conv2d, Encode, Lif, Linear, parameter_names

# A linf budget is crossed two and a half times, so that each element can reach both its ends.
_CROSSINGS = 2.5


class Activation(StrEnum):
    """What stands in a neuron's place; z = (input_scale * x + leak_bias) / threshold."""

    RELU = "relu"  # max(z, 0), of which a firing rate is an approximation
    CLIPPED = "clipped"  # within [0, 1], as a firing rate is


@dataclass(frozen=True, eq=False)
class AnnTwin:
    """A network without time: the same layers with the same parameters, and an activation in each neuron's place.

    The encoding is left out, readouts over the one step are identities, batch norms use their running statistics.
    Neurons that no layer follows keep z as it is, so that the scores are linear, as an ANN's are. Decays, resets and
    starts play no part.

    The loss is of the scores as they are; with `normalised` of each sample's scores over their largest absolute
    value, taken as a constant. Where parameters are a spiking network's, nothing keeps scores near rates: a loss of
    the scores themselves would saturate, or be far from every label.

    Shapes: x (N, C, ...) -> scores (N, K).
    Source: Sharmin et al., IJCNN 2019, whose counterpart of an SNN is an ANN with ReLU, the same structure and the
    same parameters (section 5.1.3).
    Raises: CompileError for a network that takes spikes or a sequence, or does not end in class scores.
    """

    graph: Graph
    activation: Activation = Activation.RELU
    loss: Loss = Loss.CROSS_ENTROPY
    normalised: bool = False
    sequence: Graph = field(init=False)  # over one step
    has_time: bool = field(init=False, default=False)
    encoding: Encoding | None = field(init=False, default=None)
    _last: frozenset[str] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "sequence", one_step(self.graph))
        object.__setattr__(self, "_last", last_neurons(self.graph))

    @property
    def classes(self) -> int:
        """How many classes there are."""
        return self.graph.types[self.graph.output].size("C")

    def scores(self, x: Tensor, places: Sequence[int] | None = None) -> Tensor:
        """Class scores; places as for `Victim`. Shapes: x (N, C, ...) -> (N, K)."""
        return in_blocks(self._output, x, places, 0)

    def gradient(self, x: Tensor, classes: Tensor, places: Sequence[int] | None = None) -> Tensor:
        """The gradient of each sample's loss by its input, over BLOCK. Shapes: as x."""
        return loss_gradient(self.graph, self._judged, self.loss, x, classes, places, 0)

    def _output(self, x: Tensor) -> Tensor:
        return output_with(self.sequence, x, self._activated)

    def _judged(self, x: Tensor) -> Tensor:
        """What the loss is of."""
        scores = self._output(x)
        if not self.normalised:
            return scores
        largest = scores.detach().abs().amax(1, keepdim=True)
        return scores / largest.where(largest > 0, 1.0)

    def _activated(self, op: Lif, x: Tensor, node: Node, run: Execution) -> Tensor:
        scale, bias, threshold = (run.number(n, x.ndim - 1) for n in (op.input_scale, op.leak_bias, op.threshold))
        z = (scale * x + bias) / threshold
        return z if node.name in self._last else activated(z, self.activation)


def activated(z: Tensor, activation: Activation) -> Tensor:
    """The activation of a drive in thresholds."""
    return z.clamp(min=0) if activation is Activation.RELU else z.clamp(0, 1)


def one_step(graph: Graph) -> Graph:
    """The network over one time step, on the image itself.

    Raises: CompileError for a network that takes spikes or a sequence, or does not end in class scores.
    """
    node = graph.input
    kind = graph.types[node.name]
    if kind.dtype is DType.SPIKE or kind.has("T"):
        raise CompileError(
            f"{node.name}: takes {kind}, and an ANN counterpart has no time",
            node.loc,
            hint="ANN counterparts are of networks that take images",
        )
    if graph.types[graph.output].axes != "NC":
        raise graph.site(graph.node(graph.output)).fail(
            f"the output {graph.types[graph.output]} is no vector of scores"
        )
    nodes = tuple(
        replace(node, op=Encode(kind=Encoding.DIRECT, timesteps=1)) if isinstance(node.op, Encode) else node
        for node in graph.nodes
    )
    used = {name for node in nodes for name in parameter_names(node.op)}
    return graph.with_nodes(nodes, parameters={name: graph.parameters[name] for name in used})


def last_neurons(graph: Graph) -> frozenset[str]:
    """Neurons that no layer with weights follows."""
    ahead = graph.digraph()
    layers = {node.name for node in graph.nodes if isinstance(node.op, Conv2d | Linear)}
    neurons = [node.name for node in graph.nodes if isinstance(node.op, Lif)]
    return frozenset(name for name in neurons if layers.isdisjoint(nx.descendants(ahead, name)))


def ann_conversion_attack(victim: Victim, cases: Iterable[Case], settings: Settings) -> Iterator[Outcome]:
    """Examples of the network's ANN counterpart, judged once by the network, in no fixed order.

    All iterations are done on the counterpart, which is not asked whether it is fooled, and the perturbation is held
    to the budget. The loss is cross entropy of normalised scores. Gradients are the counterpart's, queries the
    network's: one of the clean sample, one of the example. A linf budget is crossed 2.5 times by the iterations
    unless a step is given.

    Source: Sharmin et al., IJCNN 2019; section 5.1.3.
    Raises: CompileError without a budget, for a network that takes spikes, for a case that does not fit it.
    """
    budget = settings.budget
    if budget is None:
        hint = "give a bound of the perturbation, as linf 0.1"
        raise CompileError("method ann perturbs up to a budget, and none is given", Loc("attack"), hint=hint)
    if settings.step is None and budget.norm is Norm.LINF:
        settings = replace(settings, step=min(1.0, _CROSSINGS / settings.updates) * budget.bound)
    twin = AnnTwin(victim.graph, loss=Loss.CROSS_ENTROPY, normalised=True)
    kind = attackable(victim, settings)
    queue = Lanes((checked(case, victim) for case in cases), lambda case: case.sample)
    while batch := queue.fill(set()):
        yield from _transferred(victim, twin, kind, dict(batch), settings)


def _transferred(
    victim: Victim, twin: AnnTwin, kind: Attackable, cases: dict[int, Case], settings: Settings
) -> Iterator[Outcome]:
    """Outcomes of cases by their places."""
    clean = _Round(cases, {place: torch.from_numpy(case.x.copy()) for place, case in cases.items()})
    scores = victim.scores(kind.seen(clean.batch(kind.axis, 0)), list(cases))
    is_right = wins(scores, torch.tensor([case.label for case in cases.values()]))
    going = {}
    for at, (place, case) in enumerate(cases.items()):
        if is_right[at]:
            going[place] = case
        else:
            yield _outcome(case, Status.CLEAN_ERROR, clean.now[place], 0, 0)
    if not going:
        return
    moved, gone = _perturbed(twin, _Round(going, {place: clean.now[place] for place in going}), settings)
    scores = victim.scores(kind.seen(moved.batch(kind.axis, 1)), list(going))
    hits = {flag: succeeds(scores, moved.wanted, targeted=flag) for flag in (False, True)}
    for at, (place, case) in enumerate(going.items()):
        outcome = _outcome(case, Status.SUCCESS, moved.now[place], settings.updates, int(gone[at]))
        if outcome.perturbation.dissertation > settings.epsilon:
            outcome = replace(outcome, status=Status.OUT_OF_BOUND)
        elif not hits[case.target is not None][at]:
            outcome = replace(outcome, status=Status.FAILURE)
        yield outcome


@dataclass(frozen=True, slots=True)
class _Round:
    """Cases by their places, and where their inputs stand."""

    cases: dict[int, Case]
    now: dict[int, Tensor]

    @property
    def wanted(self) -> Tensor:
        """The classes that the loss is of."""
        return torch.tensor([case.label if case.target is None else case.target for case in self.cases.values()])

    def batch(self, axis: int, step: int) -> Batch:
        """All of them."""
        return Batch(
            samples=[case.sample for case in self.cases.values()],
            steps=[step] * len(self.cases),
            clean=torch.stack([torch.from_numpy(case.x) for case in self.cases.values()], axis),
            now=torch.stack(list(self.now.values()), axis),
        )


def _perturbed(twin: AnnTwin, start: _Round, settings: Settings) -> tuple[_Round, Tensor]:
    """The inputs after all iterations on the counterpart, and how many of each had no gradient."""
    kind = DirectImage(settings=settings)
    places = list(start.cases)
    targeted = torch.tensor([case.target is not None for case in start.cases.values()])
    vanished = torch.zeros(len(places), dtype=torch.int64)
    for step in range(settings.updates):
        batch = start.batch(0, step)
        gradient = twin.gradient(batch.now, start.wanted, places)
        sign = 1 - 2 * targeted.to(gradient.dtype).reshape(-1, *(1,) * (gradient.ndim - 1))
        gone = ~(gradient != 0).flatten(1).any(1)
        vanished += gone
        after = kind.changed(batch, [View(batch.now, sign * gradient)])
        if not settings.flipping:
            after = torch.where(gone.reshape(-1, *(1,) * (after.ndim - 1)), batch.now, after)
        start = _Round(start.cases, dict(zip(places, after, strict=True)))
    return start, vanished


def _outcome(case: Case, status: Status, now: Tensor, updates: int, vanished: int) -> Outcome:
    adversarial: Floats = np.ascontiguousarray(now.numpy())
    return Outcome(
        case=case,
        status=status,
        adversarial=adversarial,
        perturbation=perturbation(case.x, adversarial),
        iterations=updates,
        vanished=vanished,
        queries=1 + (updates > 0),
        gradients=updates,
        draw=int(updates > 0),
    )
