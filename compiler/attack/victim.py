"""The network under attack: its scores, and the gradient of a loss by its input."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType

import torch
from torch import Tensor

from compiler.attack.surrogates import SurrogateRule
from compiler.differentiate import BatchStatistics, Loss, TrainingGraph, differentiate, gradient_of, run_training
from compiler.differentiate.steps import LifBackward, Slope
from compiler.differentiate.training_graph import Stage
from compiler.evaluate import evaluate
from compiler.ir import CompileError, Encoding, Graph, Node, Surrogate
from compiler.ir.ops import Conv2d, Encode, Lif, Linear
from compiler.passes import DropEncode

# A run always has that many samples, zeros where there is none: how a library sums depends on their number and on a
# sample's place among them, and results must not. A power of two, so that the mean over it only shifts exponents.
BLOCK = 16

_NOTHING: Mapping[str, Tensor] = MappingProxyType({})


@dataclass(frozen=True, eq=False)
class Victim:
    """A network as a white-box attacker uses it.

    The gradient comes from BPTT (chapter 2). With a `threshold` for the penultimate neurons it is taken of a network
    whose forward pass has that threshold there, while the surrogate's window stays where it was (section 5.3.2);
    scores always are the given network's. A `surrogate` replaces that of all neurons, for the gradient alone; a rule
    makes one of the membrane potentials of each pass.

    Raises: CompileError for a network that does not end in class scores, or encodes by latency; for a threshold where
    there is no penultimate layer of neurons, or where it has one for each channel.
    """

    graph: Graph
    loss: Loss = Loss.MSE
    threshold: float | None = None
    surrogate: Surrogate | SurrogateRule | None = None
    encoding: Encoding | None = field(init=False)
    sequence: Graph = field(init=False)  # without a Bernoulli encoding: takes its spikes
    _training: TrainingGraph = field(init=False)
    _wanted: str = field(init=False)
    _kept: tuple[str, ...] = field(init=False)  # what the gradient needs of the forward pass
    _slopes: Mapping[str, Slope] = field(init=False)

    def __post_init__(self) -> None:
        graph = self.graph
        encode = next((node for node in graph.nodes if isinstance(node.op, Encode)), None)
        kind = encode.op.kind if encode is not None and isinstance(encode.op, Encode) else None
        if encode is not None and kind is Encoding.LATENCY:
            raise graph.site(encode).fail("no gradient goes through a latency code", "attack the spikes themselves")
        scores = graph.types[graph.output]
        if scores.axes != "NC":
            raise graph.site(graph.node(graph.output)).fail(
                f"the output {scores} is no vector of class scores", "end the network in a readout over time"
            )
        sequence = DropEncode()(graph) if kind is Encoding.BERNOULLI else graph
        rule = None if isinstance(self.surrogate, Surrogate) else self.surrogate
        replacing = self.surrogate if isinstance(self.surrogate, Surrogate) else None
        training = _input_training(_attacked(sequence, self.threshold, replacing), self.loss)
        slopes = {} if rule is None else dict.fromkeys(_sloped(training), rule)
        object.__setattr__(self, "encoding", kind)
        object.__setattr__(self, "sequence", sequence)
        object.__setattr__(self, "_training", training)
        object.__setattr__(self, "_wanted", gradient_of(sequence.input.name))
        object.__setattr__(self, "_kept", _read_backward(training, gradient_of(sequence.input.name)))
        object.__setattr__(self, "_slopes", slopes)

    @property
    def classes(self) -> int:
        """How many classes there are."""
        return self.graph.types[self.graph.output].size("C")

    @property
    def has_time(self) -> bool:
        """Whether what the gradient is taken by is a sequence."""
        return self.sequence.types[self.sequence.input.name].has("T")

    def scores(self, x: Tensor, places: Sequence[int] | None = None) -> Tensor:
        """Class scores.

        places: of each sample, its block times BLOCK plus its place there, on which the last bits may depend; one
        after the other unless given.
        Shapes: x as the sequence's input, N any -> (N, K).
        """
        at = places_of(places, x.shape[self._axis])
        blocks = torch.split(spread(x, at, self._axis), BLOCK, self._axis)
        return torch.cat([evaluate(self.sequence, block).output for block in blocks])[at]

    def gradient(self, x: Tensor, classes: Tensor, places: Sequence[int] | None = None) -> Tensor:
        """The gradient of each sample's loss by its input, over BLOCK.

        Shapes: x as the sequence's input, classes (N,) -> as x; places as for `scores`.
        Raises: CompileError where it is not finite.
        """
        at = places_of(places, x.shape[self._axis])
        blocks = torch.split(spread(x, at, self._axis), BLOCK, self._axis)
        labels = torch.split(spread(classes, at, 0), BLOCK)
        gradients = [self._gradient(block, own) for block, own in zip(blocks, labels, strict=True)]
        return self._finite(torch.cat(gradients, self._axis).index_select(self._axis, at))

    def forward(self, x: Tensor, places: Sequence[int]) -> Forward:
        """One block's scores, with what its gradient needs of the same pass.

        Shapes: x as the sequence's input, N at most BLOCK; places differ by more than whole blocks.
        """
        at = torch.tensor(places) % BLOCK
        block = spread(x, at, self._axis)
        if self.threshold is not None:
            return Forward(self, block, at, evaluate(self.sequence, block).output[at], _NOTHING)
        values = run_training(self._training, block, want=self._kept).values
        return Forward(self, block, at, values[self.sequence.output][at], values)

    def _gradient(self, block: Tensor, labels: Tensor, given: Mapping[str, Tensor] = _NOTHING) -> Tensor:
        """Of one block; given: values of its forward pass."""
        run = run_training(self._training, block, labels, given=given, want=(self._wanted,), slopes=self._slopes)
        return run.values[self._wanted]

    def _finite(self, gradient: Tensor) -> Tensor:
        if not bool(torch.isfinite(gradient).all()):
            node = self.graph.input
            raise CompileError(f"{node.name}: the gradient of the loss by the input is not finite", node.loc)
        return gradient

    @property
    def _axis(self) -> int:
        return int(self.has_time)


@dataclass(frozen=True, slots=True, eq=False)
class Forward:
    """One block's scores, and its gradient without a second forward pass where one network gives both."""

    victim: Victim
    block: Tensor
    at: Tensor  # places of the samples
    scores: Tensor
    kept: Mapping[str, Tensor]  # by value name; nothing if the gradient is another network's

    def gradient(self, classes: Tensor, rows: Sequence[int]) -> Tensor:
        """As `Victim.gradient`, of some of the samples.

        Shapes: classes (len(rows),) -> as x with that N.
        Raises: CompileError where it is not finite.
        """
        at = self.at[torch.tensor(rows)]
        labels = torch.zeros(BLOCK, dtype=torch.int64).index_copy(0, at, classes)
        victim = self.victim
        return victim._finite(victim._gradient(self.block, labels, self.kept).index_select(victim._axis, at))


def places_of(places: Sequence[int] | None, samples: int) -> Tensor:
    """Places in as few blocks as may be, each at its old place in a block, which alone decides about bits."""
    if places is None:
        return torch.arange(samples)
    used = [0] * BLOCK
    at = []
    for place in (place % BLOCK for place in places):
        at.append(used[place] * BLOCK + place)
        used[place] += 1
    return torch.tensor(at)


def spread(x: Tensor, at: Tensor, axis: int) -> Tensor:
    """Samples at their places in whole blocks of zeros."""
    shape = list(x.shape)
    shape[axis] = (int(at.max()) // BLOCK + 1) * BLOCK
    return x.new_zeros(shape).index_copy(axis, at, x)


def penultimate(graph: Graph) -> Node:
    """The last neurons in front of the last layer.

    Raises: CompileError if there are none.
    """
    ahead = graph.digraph()
    layers = [node for node in graph.nodes if isinstance(node.op, Conv2d | Linear)]
    if layers:
        before = set(_ancestors(ahead, layers[-1].name))
        neurons = [node for node in graph.nodes if node.name in before and isinstance(node.op, Lif)]
        if neurons:
            return neurons[-1]
    raise CompileError("the network has no neurons in front of its last layer", graph.input.loc)


def with_threshold(graph: Graph, name: str, threshold: float) -> Graph:
    """The network with another threshold of one population, whose surrogate stays where it was.

    Source: section 5.3.2.
    Raises: CompileError for a population with a threshold for each channel.
    """
    node = graph.node(name)
    op = node.op
    assert isinstance(op, Lif)
    if not isinstance(op.threshold, float | int):
        raise graph.site(node).fail("has a threshold for each channel, which one number cannot replace")
    surrogate = replace(op.surrogate, offset=op.surrogate.offset + (op.threshold - threshold))
    return _with_ops(graph, {name: replace(op, threshold=threshold, surrogate=surrogate)})


def _attacked(graph: Graph, threshold: float | None, surrogate: Surrogate | None) -> Graph:
    if surrogate is not None:
        lifs = {node.name: node.op for node in graph.nodes if isinstance(node.op, Lif)}
        graph = _with_ops(graph, {name: replace(op, surrogate=surrogate) for name, op in lifs.items()})
    return graph if threshold is None else with_threshold(graph, penultimate(graph).name, threshold)


def _with_ops(graph: Graph, ops: Mapping[str, Lif]) -> Graph:
    return graph.with_nodes(tuple(replace(node, op=ops.get(node.name, node.op)) for node in graph.nodes))


def _input_training(graph: Graph, loss: Loss) -> TrainingGraph:
    """A training graph that makes no gradients of parameters unless asked.

    Raises: CompileError if no gradient reaches the input.
    """
    training = differentiate(graph, loss, statistics=BatchStatistics.RUNNING)
    if gradient_of(graph.input.name) not in training.values:
        raise CompileError(f"{graph.input.name}: no gradient of the scores reaches the input", graph.input.loc)
    return replace(training, outputs=(graph.output,))


def _read_backward(training: TrainingGraph, wanted: str) -> tuple[str, ...]:
    """The network's output and the forward values from which a gradient follows."""
    nodes = training.needed([wanted])
    made = {value.name for node in nodes if node.stage is Stage.FP for value in node.results}
    read = [name for node in nodes if node.stage is not Stage.FP for name in node.inputs if name in made]
    return tuple(dict.fromkeys((training.graph.output, *read)))


def _sloped(training: TrainingGraph) -> list[str]:
    """Neurons through which the gradient goes."""
    nodes = training.needed([gradient_of(training.graph.input.name)])
    return [node.name for node in nodes if isinstance(node.step, LifBackward)]


def _ancestors(digraph: object, name: str) -> frozenset[str]:
    import networkx as nx

    found: set[str] = nx.ancestors(digraph, name)
    return frozenset(found)
