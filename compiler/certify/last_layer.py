"""Margins between class scores: from the scores' intervals, and from differences of the last layer's rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy.typing as npt
import torch
from torch import Tensor

from compiler.certify.model import Bounds, Interval
from compiler.evaluate import Execution
from compiler.ir import CompileError, Graph, Node, Param, Reading
from compiler.ir.ops import Li, Linear, Readout


def margins(graph: Graph, bounds: Bounds, labels: Sequence[int] | npt.ArrayLike | Tensor) -> Tensor:
    """Lower bounds of score[label] - score[j], as `evaluate` computes both; inf for the label itself.

    The larger of two bounds: lower score[label] - upper score[j], and, where the network ends in a linear layer,
    with or without integrators (Li) and a readout behind it, the bound of
    d x + b[label] - b[j], d = weight[label] - weight[j], over the layer's input, less both scores' rounding.

    Shapes: labels (N,) -> (N, K), f64.
    Raises: CompileError if the output is no vector of class scores, or a label none of its classes.
    """
    scores = bounds.nodes[graph.output]
    kind = graph.types[graph.output]
    node = graph.node(graph.output)
    own = torch.as_tensor(labels)
    if kind.axes != "NC":
        raise graph.site(node).fail(
            f"the output {kind} is no vector of class scores", "end the network in a readout over time"
        )
    if own.shape != scores.lower.shape[:1] or not bool(((own >= 0) & (own < scores.lower.shape[1])).all()):
        raise CompileError(
            f"{node.name}: labels {own.tolist()} are not one of {scores.lower.shape[1]} classes for each of "
            f"{len(scores.lower)} samples",
            node.loc,
        )
    with torch.no_grad():
        best = scores.lower.gather(1, own[:, None]) - scores.upper
        tail = tail_of(graph)
        if tail is not None:
            best = torch.maximum(best, _tail_margins(graph, bounds, tail, own))
        return best.scatter(1, own[:, None], torch.inf)


def is_robust(margin: Tensor) -> Tensor:
    """Whether the label alone has the highest score for every input: a tie, a margin of 0, is not robust.

    Shapes: margins (N, K) -> (N,).
    """
    return (margin > 0).all(1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Tail:
    """What a network ends in: a linear layer, then maybe integrators, then maybe a readout."""

    linear: Node
    integrators: Node | None
    readout: Node | None


def tail_of(graph: Graph) -> Tail | None:
    """The network's end, where differences of scores are differences of rows."""
    node = graph.node(graph.output)
    readout = integrators = None
    if isinstance(node.op, Readout):
        readout, node = node, graph.node(node.inputs[0])
    if isinstance(node.op, Li):
        op = node.op
        numbers = (op.decay, op.input_scale, op.leak_bias, op.initial)
        integrators, node = node, graph.node(node.inputs[0])
        if any(isinstance(number, Param) for number in numbers):
            return None  # classes that integrate differently: no difference of rows
    return Tail(linear=node, integrators=integrators, readout=readout) if isinstance(node.op, Linear) else None


def _tail_margins(graph: Graph, bounds: Bounds, tail: Tail, labels: Tensor) -> Tensor:
    """score[label] - score[j] by row differences. Shapes: labels (N,) -> (N, K)."""
    least, largest = _differences(graph, tail.linear, bounds.nodes[tail.linear.inputs[0]], labels)
    off = _pairs(bounds.nodes[tail.linear.name], labels)
    least, largest = least - off, largest + off
    if tail.integrators is not None:
        least = _integrated(graph, tail.integrators, bounds, (least, largest), labels)
    if tail.readout is None:
        return least
    off = _pairs(bounds.nodes[tail.readout.name], labels)
    assert isinstance(tail.readout.op, Readout)
    match tail.readout.op.kind:
        case Reading.RATE:
            return least.mean(0) - off
        case Reading.LAST:
            return least[-1]
        case Reading.MAX:
            return least.amin(0)  # at the step where the other class is highest, the label is that much higher


def _differences(graph: Graph, node: Node, x: Interval, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Bounds of the differences in real numbers. Shapes: x (..., N, F), labels (N,) -> two (..., N, K)."""
    op = node.op
    assert isinstance(op, Linear)
    weight = torch.from_numpy(graph.parameters[op.weight.name].astype("f8"))
    rows = weight[labels][:, None] - weight
    middle = torch.einsum("...nf,nkf->...nk", (x.lower + x.upper) / 2, rows)
    spread = torch.einsum("...nf,nkf->...nk", (x.upper - x.lower) / 2, rows.abs())
    if op.bias is not None:
        bias = torch.from_numpy(graph.parameters[op.bias.name].astype("f8"))
        middle = middle + (bias[labels][:, None] - bias)
    return middle - spread, middle + spread


def _integrated(graph: Graph, node: Node, bounds: Bounds, ends: tuple[Tensor, Tensor], labels: Tensor) -> Tensor:
    """The least differences of membranes: leak and start are the same for all classes, and go."""
    execution, op = Execution(graph), node.op
    assert isinstance(op, Li)
    decay, scale = (execution.number(number, 2).double() for number in (op.decay, op.input_scale))
    added = torch.minimum(scale * ends[0], scale * ends[1]) - _pairs(bounds.nodes[node.name], labels)
    steps = [added[0]]
    for now in added[1:]:
        steps.append(decay * steps[-1] + now)
    return torch.stack(steps)


def _pairs(scores: Interval, labels: Tensor) -> Tensor:
    """The rounding errors of both scores together. Shapes: errors (..., N, K) -> the same."""
    off = scores.error.expand(scores.lower.shape)
    return off + off.gather(-1, labels[:, None].expand(*off.shape[:-1], 1))
