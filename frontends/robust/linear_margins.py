"""S-CROWN in training: least margins from linear forms of the scores, taken back to the input for a whole batch."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from compiler.certify.relaxation import Neurons, Relaxation
from compiler.certify.relaxation import neurons as relaxed
from compiler.certify.transposed import Coefficients, Descent, Ranges, Sparse, Weights, transpose
from compiler.ir import CompileError, Graph, Node, Number, Param, Reading, Reset
from compiler.ir.ops import Input, Lif, MaxPool2d, Readout
from frontends.robust.values import Bounds, Budget, Interval
from frontends.to_torch import GraphModule


def linear_margins(graph: Graph, module: GraphModule, bounds: Bounds, labels: Tensor) -> Tensor:
    """Lower bounds of score[label] - score[j] by the paper's relaxation on S-IBP's potentials; 0 for the label itself.

    score[label] - score[j] >= min over the set of (sum over t of A[t].x[t]) + B, differentiable in weights and bounds:
    the bounds of `compiler.certify.linear_margins` (paper, interval), without their margin for rounding.

    Shapes: labels (N,) -> (N, K).
    Source: algorithm 7 with equations 6.12 to 6.15 for margins, constants outside of the sum over time.
    """
    classes = bounds.nodes[graph.output].lower.shape[1]
    identity = torch.eye(classes, dtype=bounds.nodes[graph.output].lower.dtype)
    rows = (identity[labels][:, None] - identity).flatten(0, 1)
    run = _BatchDescent(
        weights=_ModuleWeights(graph, module=module),
        ranges=_ranges(graph, module, bounds, classes),
        relaxation=Relaxation.PAPER,
        constant=rows.new_zeros(len(rows)),
    )
    found = _down(graph, rows, run, bounds)
    return found.reshape(-1, classes).scatter(1, labels[:, None], 0.0)


def check_linear_rules(graph: Graph) -> None:
    """Refuse a network that has maxima: their lines are not made for batches.

    Raises: CompileError naming the node.
    """
    for node in graph.nodes:
        is_maximum = isinstance(node.op, Readout) and node.op.kind is Reading.MAX
        if is_maximum or isinstance(node.op, MaxPool2d):
            hint = "train with --robust-kappa 0"
            raise CompileError(f"{node.name}: S-CROWN of a maximum is not made in training", node.loc, hint=hint)


@dataclass(frozen=True, slots=True, eq=False)
class _ModuleWeights(Weights):
    """A module's parameters, which are being trained, in the place of a graph's."""

    module: GraphModule = field(kw_only=True)

    def array(self, param: Param) -> Tensor:
        return self.module.array(param)

    def number(self, value: Number, node: Node) -> Tensor:
        shape = self.shape(node.name)
        values = self.array(value) if isinstance(value, Param) else torch.tensor([float(value)])
        return values.to(_dtype(self.module)).expand(shape[0]).reshape(-1, *(1,) * (len(shape) - 1))


class _BatchDescent(Descent):
    """Forms of many samples, of each all its classes, in exact arithmetic as far as training goes."""

    def widen(self, coefficients: Tensor, name: str) -> None:
        """No margin for rounding."""


def _dtype(module: GraphModule) -> torch.dtype:
    return next(module.parameters()).dtype


def _ranges(graph: Graph, module: GraphModule, bounds: Bounds, classes: int) -> Ranges:
    """Each neuron of each sample once for each class. Shapes: cells (N K, U)."""
    weights = _ModuleWeights(graph, module=module)
    cells: dict[str, list[Neurons]] = {}
    for node in graph.nodes:
        op = node.op
        if isinstance(op, Lif):
            threshold, reset_value = (
                weights.number(value, node).expand(weights.shape(node.name)).flatten()
                for value in (op.threshold, op.reset_value)
            )
            reset = Reset.NONE if op.reset is Reset.SOFT and op.reset_delay else op.reset
            own = bounds.membranes[node.name]
            cells[node.name] = [
                relaxed(_each(low, classes), _each(high, classes), threshold, reset, reset_value, op.compare)
                for low, high in zip(own.lower, own.upper, strict=True)
            ]
    return Ranges(lower={}, upper={}, rounding={}, cells=cells, grids={})


def _each(end: Tensor, classes: int) -> Tensor:
    return end.flatten(1).repeat_interleave(classes, 0)


def _down(graph: Graph, rows: Tensor, run: Descent, bounds: Bounds) -> Tensor:
    """The forms' minima over the input sets. Shapes: rows (N K, K) -> (N K,)."""
    waiting: dict[str, Coefficients] = {graph.output: rows}
    for node in reversed(graph.nodes):
        own = waiting.pop(node.name, None)
        if own is None:
            continue
        assert not isinstance(own, Sparse), "forms of the scores are of all elements"
        if isinstance(node.op, Input):
            return run.constant + _support(own, bounds.nodes[node.name], "T" in graph.types[node.name].axes)
        for source, part in zip(node.inputs, transpose(node, own, run), strict=True):
            waiting[source] = waiting[source] + part if source in waiting else part  # type: ignore[operator]
    raise AssertionError("every value is made from the input")


def _support(forms: Tensor, given: Interval, has_time: bool) -> Tensor:
    """The least values of forms of the input. Shapes: forms (N K, T, C, ...) or (N K, C, ...) -> (N K,)."""

    def by_sample(end: Tensor) -> Tensor:
        return (end.transpose(0, 1) if has_time else end).flatten(1)

    samples = given.lower.shape[int(has_time)]
    flat = forms.reshape(samples, -1, forms[0].numel())
    if given.budget is not None:
        return (_fewest(flat, by_sample(given.budget.clean), given.budget)).flatten()
    lower, upper = by_sample(given.lower), by_sample(given.upper)
    middle = torch.einsum("nkf,nf->nk", flat, (lower + upper) / 2)
    return (middle - torch.einsum("nkf,nf->nk", flat.abs(), (upper - lower) / 2)).flatten()


def _fewest(flat: Tensor, clean: Tensor, budget: Budget) -> Tensor:
    """With so many flips of all steps together. Shapes: flat (N, K, F), clean (N, F) -> (N, K)."""
    count = min(-int(-budget.most // 1), flat.shape[2])
    gains = (flat * (1 - 2 * clean)[:, None]).topk(count, 2, largest=False).values.clamp(max=0.0)
    shares = (budget.most - torch.arange(count)).clamp(0.0, 1.0).to(flat.dtype)
    return torch.einsum("nkf,nf->nk", flat, clean) + gains @ shares
