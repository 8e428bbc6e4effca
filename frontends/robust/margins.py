"""Least margins between class scores in training, from intervals."""

from __future__ import annotations

import torch
from torch import Tensor

from compiler.certify.last_layer import Tail, tail_of
from compiler.ir import Graph, Reading
from compiler.ir.ops import Li, Linear, Readout
from frontends.robust.values import Bounds, Interval, Run
from frontends.to_torch import GraphModule


def interval_margins(graph: Graph, module: GraphModule, bounds: Bounds, labels: Tensor) -> Tensor:
    """Lower bounds of score[label] - score[j]; 0 for the label itself.

    The larger of lower score[label] - upper score[j] and, behind a last linear layer, the bound by differences of its
    rows, as `compiler.certify.last_layer.margins`.

    Shapes: labels (N,) -> (N, K).
    """
    scores = bounds.nodes[graph.output]
    best = scores.lower.gather(1, labels[:, None]) - scores.upper
    tail = tail_of(graph)
    if tail is not None:
        best = torch.maximum(best, _by_rows(Run(graph, module, bounds), tail, labels))
    return best.scatter(1, labels[:, None], 0.0)


def _by_rows(run: Run, tail: Tail, labels: Tensor) -> Tensor:
    ends = _differences(run, tail, run.bounds.nodes[tail.linear.inputs[0]], labels)
    least = ends.lower
    if tail.integrators is not None:
        op = tail.integrators.op
        assert isinstance(op, Li)
        decay, scale = run.number(op.decay, "TNC"), run.number(op.input_scale, "TNC")
        added = torch.minimum(scale * ends.lower, scale * ends.upper)
        steps = [added[0]]
        for now in added[1:]:
            steps.append(decay * steps[-1] + now)
        least = torch.stack(steps)
    if tail.readout is None:
        return least
    assert isinstance(tail.readout.op, Readout)
    match tail.readout.op.kind:
        case Reading.RATE:
            return least.mean(0)
        case Reading.LAST:
            return least[-1]
        case Reading.MAX:
            return least.amin(0)  # at the step where the other class is highest, the label is that much higher


def _differences(run: Run, tail: Tail, x: Interval, labels: Tensor) -> Interval:
    """Of the linear layer's results. Shapes: x (..., N, F), labels (N,) -> (..., N, K)."""
    op = tail.linear.op
    assert isinstance(op, Linear)
    weight = run.array(op.weight)
    rows = weight[labels][:, None] - weight
    middle = torch.einsum("...nf,nkf->...nk", (x.lower + x.upper) / 2, rows)
    spread = torch.einsum("...nf,nkf->...nk", (x.upper - x.lower) / 2, rows.abs())
    if op.bias is not None:
        bias = run.array(op.bias)
        middle = middle + (bias[labels][:, None] - bias)
    return Interval(lower=middle - spread, upper=middle + spread)
