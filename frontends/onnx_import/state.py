"""Time in a model: how many steps it was unrolled over, and whether its neurons still have a state."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from compiler.ir import CompileError, Loc
from frontends.onnx_import import elementwise
from frontends.onnx_import.nodes import OnnxNode
from frontends.onnx_import.values import STEP_OF_SCAN, Step, Values

_COMPARISONS = ("Greater", "GreaterOrEqual", "Less", "LessOrEqual", "Sign")
_LAYERS = ("Conv", "Gemm", "MatMul")
_KEEPING = {*elementwise.RULES, "Add", "Unsqueeze", "Squeeze", "Gather", "Slice", "Split", "Expand"}
_STATEFUL = ("Leaky", "LIF", "IFNode", "IAF", "LapicqueNeuron", "Lapicque", "Synaptic", "Izhikevich")


@dataclass(frozen=True, slots=True, kw_only=True)
class Firing:
    """The comparisons of one neuron module, or of a whole model whose exporter names no modules."""

    place: str
    neuron: str  # class of a known neuron module, "" if none
    count: int
    alone: bool  # the place is one neuron module


def firings(values: Values, steps: Sequence[Step]) -> tuple[Firing, ...]:
    """Where membranes are compared with thresholds, outside scans, which carry a state by what they are."""
    compared = [step for step in steps if step.node.op in _COMPARISONS and not _is_of_spikes(values, step)]
    nodes = {(step.node.op, step.node.inputs): step.node for step in compared}  # the same one, written twice, is one
    outside = [node for node in nodes.values() if not STEP_OF_SCAN.search(node.name)]
    places = _calls_together(Counter(_place(node) for node in outside))
    return tuple(
        Firing(place=place, neuron=neuron, count=count, alone=bool(place)) for (place, neuron), count in places.items()
    )


def unrolled_steps(values: Values, found: Sequence[Firing]) -> int | None:
    """The number of time steps that the model itself shows: of its scans, or of the copies of each neuron."""
    counts = set(values.scanned) | {firing.count for firing in found if firing.alone and firing.count > 1}
    if len(counts) != 1 or any(not firing.alone for firing in found):
        return None
    (steps,) = counts
    return steps


def refuse_lost_state(file: str, values: Values, steps: Sequence[Step], found: Sequence[Firing]) -> None:
    """Only for models of more than one time step: there each neuron fires at each, on what it was before.

    Raises: CompileError with the neurons' places.
    """
    lost = [firing for firing in found if firing.alone and firing.count == 1]
    if not lost and (not found or _is_carried(values, steps) or _repeats_weights(values, steps)):
        return
    names = ", ".join(f"{firing.place} ({firing.neuron})" if firing.neuron else firing.place for firing in lost)
    where = f"in the whole model there is one comparison at {names}"
    if not lost:
        where = f"none of its {sum(firing.count for firing in found)} comparisons depends on an earlier one"
    raise CompileError(
        f"the exporter kept no state: {where}, and nothing carries the membrane potential on",
        Loc(file),
        hint="export a module whose forward runs over all time steps from the reset state; "
        "a model of one step is read with timesteps=1",
    )


def _is_carried(values: Values, steps: Sequence[Step]) -> bool:
    """Whether a membrane potential depends, by operators on each element, on another one or on its spikes."""
    compared = [step for step in steps if step.node.op in _COMPARISONS and not _is_of_spikes(values, step)]
    reached: dict[str, set[str]] = {}  # membrane potentials by the values that depend on them
    for step in compared:
        for name in (*step.operands, *step.results):
            reached.setdefault(name, set()).update(step.operands)
    for step in steps:
        if step.node.op in _KEEPING:
            sources = set().union(*(reached.get(name, set()) for name in step.operands))
            for name in step.results:
                reached.setdefault(name, set()).update(sources)
    return any(reached[name] - set(step.operands) for step in compared for name in step.operands)


def _repeats_weights(values: Values, steps: Sequence[Step]) -> bool:
    """Whether a layer is there more than once."""
    weights = [name for step in steps if step.node.op in _LAYERS for name in step.operands[1:2]]
    return len(weights) > len(set(weights))


def _is_of_spikes(values: Values, step: Step) -> bool:
    """Whether it compares a spike, as resets do, not a membrane potential."""
    makers = [values.makers[name] for name in step.operands if name in values.makers]
    return any(
        maker.node.op in ("Cast", "CastLike") and values.known[maker.operands[0]].meta.dtype == torch.bool
        for maker in makers
    )


def _calls_together(places: Counter[tuple[str, str]]) -> Counter[tuple[str, str]]:
    """TorchScript's exporter names the calls of a module lif, lif_1, lif_2 ...: together one place."""
    together: Counter[tuple[str, str]] = Counter()
    for (place, neuron), count in places.items():
        stem, _, call = place.rpartition("_")
        is_call = (
            call.isdecimal()
            and len(call) < 6
            and all((f"{stem}_{n}" if n else stem, "") in places for n in range(int(call)))
        )
        together[(stem if is_call and not neuron else place, neuron)] += count
    return together


def _place(node: OnnxNode) -> tuple[str, str]:
    """The module that a comparison stands in, and its class if it is a known neuron."""
    for path, cls in reversed(node.scopes()):
        name = cls.rsplit(".", 1)[-1]
        if path and name.startswith(_STATEFUL):
            return path, name
    scopes = node.scopes()
    if scopes:
        return scopes[-1][0], ""
    return node.name.strip("/").rpartition("/")[0].replace("/", "."), ""
