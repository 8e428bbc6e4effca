"""A recognised loop and the op that stands for it, executed side by side."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, fx

from compiler.evaluate import evaluate
from compiler.ir import DType, Graph, Loc, Node
from compiler.ir.ops import Input, Li, Lif
from frontends.torch_import.recurrence.reading import Reader
from frontends.torch_import.recurrence.rules import execute
from frontends.torch_import.trace import STEP_CALLS

_SAMPLES = 1024  # values a step, at least, of each kind of input
_MOST_ROUNDS = 16


@dataclass(frozen=True, slots=True)
class Drive:
    """What a population takes at one step: the sum of factor * node."""

    parts: tuple[tuple[fx.Node, float], ...]

    def of(self, values: Mapping[fx.Node, Tensor]) -> Tensor:
        """The sum; a factor of 1 is left out."""
        terms = [
            _float(values[node]) * factor if factor != 1.0 else _float(values[node]) for node, factor in self.parts
        ]
        total = terms[0]
        for term in terms[1:]:
            total = total + term
        return total


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """How far the results of a loop and of its op are apart."""

    unequal: int
    total: int
    largest: float  # relative to the largest result


def difference(
    reader: Reader,
    drives: Sequence[Drive],
    results: Sequence[fx.Node],
    op: Lif | Li,
    arrays: Mapping[str, Tensor],
) -> Difference:
    """Execute a loop, node by node, and its op on random inputs and on inputs that meet the threshold exactly.

    drives, results: what goes in and comes out at each step.
    Units: the inputs are near threshold / input_scale, or multiples of 1/8.
    """
    shape = tuple(results[0].meta["val"].shape)
    order = _needed(reader, drives, results)
    generator = torch.Generator().manual_seed(0)
    unequal, total, furthest, largest = 0, 0, 0.0, 0.0
    for _ in range(min(_MOST_ROUNDS, -(-_SAMPLES // math.prod(shape)))):
        for kind in range(3):
            values = {node: _drawn(reader, node, kind, _unit(op, arrays), generator) for node in order.free}
            drive = torch.stack([step.of(values) for step in drives])
            want = torch.stack([_float(value) for value in _execute(reader, order, values, results)])
            got = _evaluated(op, arrays, drive)
            unequal += int((want != got).sum())
            total += want.numel()
            furthest = max(furthest, float((want - got).abs().max()))
            largest = max(largest, float(want.abs().max()))
    return Difference(unequal=unequal, total=total, largest=furthest / largest if largest else furthest)


@dataclass(frozen=True, slots=True)
class _Order:
    free: tuple[fx.Node, ...]  # inputs of the loop
    nodes: tuple[fx.Node, ...]  # its calls, in order


def _needed(reader: Reader, drives: Sequence[Drive], results: Sequence[fx.Node]) -> _Order:
    free = dict.fromkeys(reader.one(node) for drive in drives for node, _ in drive.parts)
    needed = {reader.one(node) for node in results}
    for node in reversed(list(reader.calls)):
        if node in needed and node not in free:
            if reader.elementwise(node) or reader.compares(node):
                needed.update(map(reader.one, reader.variable(reader.calls[node])))
            else:
                free[node] = None
    inside = tuple(node for node in reader.calls if node in needed and node not in free)
    others = sorted(needed - free.keys() - set(inside), key=lambda node: node.name)
    return _Order((*free, *others), inside)


def _execute(
    reader: Reader, order: _Order, values: Mapping[fx.Node, Tensor], results: Sequence[fx.Node]
) -> list[Tensor]:
    known = dict(values)

    def held(node: fx.Node) -> Tensor:
        constant = reader.constant(node)
        return known[reader.one(node)] if constant is None else constant

    for node in order.nodes:
        value = execute(reader.calls[node], held)
        assert isinstance(value, Tensor)
        known[node] = value
    return [held(node) for node in results]


def _drawn(reader: Reader, node: fx.Node, kind: int, unit: float, generator: torch.Generator) -> Tensor:
    value = node.meta["val"]
    shape = tuple(value.shape)
    if value.dtype is torch.bool:
        spikes = torch.rand(shape, generator=generator) < 0.5
        recognised = node in reader.calls and reader.calls[node].op in STEP_CALLS
        return _float(spikes) if recognised else spikes  # a recognised population's spikes are numbers
    match kind:
        case 0:
            return unit * (2.5 * torch.rand(shape, generator=generator) - 0.5)
        case 1:
            return torch.randint(-8, 17, shape, generator=generator) / 8
        case _:
            return unit * torch.randint(-4, 9, shape, generator=generator) / 4


def _unit(op: Lif | Li, arrays: Mapping[str, Tensor]) -> float:
    """An input that brings the membrane potential near the threshold in one step."""

    def size(name: str) -> float:
        value = getattr(op, name, 1.0)
        return abs(value) if isinstance(value, float) else float(arrays[value.name].abs().max())

    return (size("threshold") or 1.0) / size("input_scale")


def _evaluated(op: Lif | Li, arrays: Mapping[str, Tensor], drive: Tensor) -> Tensor:
    """The op's own values; features beside the channels stand as one line."""
    lined = drive if drive.ndim == 3 else drive.reshape(*drive.shape[:3], 1, -1)
    axes = "TNC" if drive.ndim == 3 else "TNCHW"
    place = Loc("recurrence")
    entry = Node("x", Input(shape=(lined.shape[0], "N", *lined.shape[2:]), dtype=DType.F32, axes=axes), (), place)
    parameters = {name: tensor.numpy() for name, tensor in arrays.items()}
    graph = Graph("recurrence", (entry, Node("y", op, ("x",), place)), "y", parameters)
    return evaluate(graph, lined).output.reshape(drive.shape)


def _float(value: Tensor) -> Tensor:
    return value.to(torch.float32)
