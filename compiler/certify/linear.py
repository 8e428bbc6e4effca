"""Lower bounds of class margins from linear forms: from the scores back through all steps and layers to the input."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import StrEnum

import torch
from torch import Tensor

from compiler.certify.arithmetic import snapped
from compiler.certify.closing import Closing, closing
from compiler.certify.input_sets import InputSet
from compiler.certify.interval import interval
from compiler.certify.known_ranges import neurons_of, sample_ranges
from compiler.certify.last_layer import margins as interval_margins
from compiler.certify.model import Bounds
from compiler.certify.relaxation import Neurons, Relaxation
from compiler.certify.slopes import Ascent, Slopes, ascend
from compiler.certify.transposed import Coefficients, Descent, Ranges, Sparse, Weights, potentials_of, transpose
from compiler.ir import Graph, Node
from compiler.ir.ops import Input, Lif, Linear

LARGEST = 2**22  # elements of the coefficients of one node: more forms go one group after the other


class Intermediate(StrEnum):
    """Where the bounds of membrane potentials come from that the relaxations rest on.

    interval  S-IBP
    backward  linear forms of each potential that may and may not reach its threshold, cut with S-IBP
    """

    INTERVAL = "interval"
    BACKWARD = "backward"


@dataclass(frozen=True, slots=True, kw_only=True)
class Substitution:
    """Forms of one sample's values, bounded from below over its input set."""

    weights: Weights
    ranges: Ranges
    closing: Closing
    relaxation: Relaxation

    def lower(self, name: str, forms: Coefficients, run: Descent) -> Tensor:
        """Lower bounds of forms of a node's value, and of what the descent already shed.

        Shapes: forms (R, T, C, ...) -> (R,).
        """
        graph = self.weights.graph
        waiting: dict[str, Coefficients] = {name: forms}
        for node in reversed(graph.nodes):
            own = waiting.pop(node.name, None)
            if own is None:
                continue
            if isinstance(node.op, Input):
                return run.constant + self.closing.support(self._dense(node, own))
            if node.name == self.closing.entry and isinstance(node.op, Linear):
                return self.closing.enter(own, node, run)
            for source, part in zip(node.inputs, transpose(node, own, run), strict=True):
                waiting[source] = self._sum(graph.node(source), waiting.get(source), part)
        raise AssertionError("every value is made from the input")

    def margins(self, rows: Tensor, free: Slopes | None = None) -> Tensor:
        """Lower bounds of forms of the scores. Shapes: rows (R, K) -> (R,)."""
        return self.lower(self.weights.graph.output, rows, self.descent(len(rows), free or {}))

    def descent(self, rows: int, free: Slopes | None = None) -> Descent:
        """A descent of that many forms."""
        return Descent(
            weights=self.weights,
            ranges=self.ranges,
            relaxation=self.relaxation,
            constant=torch.zeros(rows, dtype=torch.float64),
            free=free or {},
        )

    def _sum(self, node: Node, first: Coefficients | None, second: Coefficients) -> Coefficients:
        return second if first is None else self._dense(node, first) + self._dense(node, second)

    def _dense(self, node: Node, coefficients: Coefficients) -> Tensor:
        if isinstance(coefficients, Sparse):
            return coefficients.dense(self.weights.shape(node.name))
        return coefficients


def margins(
    graph: Graph,
    sets: Sequence[InputSet],
    labels: Sequence[int],
    *,
    relaxation: Relaxation = Relaxation.HULL,
    intermediate: Intermediate = Intermediate.BACKWARD,
    ascent: Ascent | None = None,
) -> Tensor:
    """Lower bounds of score[label] - score[j] for each class j: the best that is known of each.

    The larger of S-IBP's, S-CROWN's (paper, interval) and those of `linear_margins`; with backward intermediate bounds
    both relaxations are tried on them. No linear bound beats the others everywhere, and S-CROWN's are often below
    S-IBP's.

    Shapes, Raises: as `linear_margins`.
    """
    classes = _classes(graph, sets, labels)
    weights = Weights(graph)
    found = []
    with torch.no_grad():
        for one, label in zip(sets, labels, strict=True):
            bounds = interval(graph, [one])
            best = interval_margins(graph, bounds, [label])[0]
            own = substitution(weights, bounds, one, Relaxation.PAPER)
            best = torch.fmax(best, class_margins(own, label, classes, None))
            if intermediate is Intermediate.BACKWARD:
                refine(replace(own, relaxation=relaxation))
                best = torch.fmax(best, class_margins(own, label, classes, None))
            found.append(torch.fmax(best, class_margins(replace(own, relaxation=relaxation), label, classes, ascent)))
    return torch.stack(found)


def linear_margins(
    graph: Graph,
    sets: Sequence[InputSet],
    labels: Sequence[int],
    *,
    relaxation: Relaxation = Relaxation.HULL,
    intermediate: Intermediate = Intermediate.BACKWARD,
    ascent: Ascent | None = None,
) -> Tensor:
    """Lower bounds of score[label] - score[j] for each class j, of one kind; S-CROWN is paper with interval.

    score[label] - score[j] >= min over the set of (sum over t of A[t].x[t]) + B, for what `evaluate` computes in f32.
    Samples are bounded one by one, so that a sample's bounds do not depend on the others.

    Shapes: one set and one label a sample -> (N, K) f64, infinite at the label.
    Raises: CompileError if a set does not fit the input, labels are not as many as sets, the output is no vector of
        class scores, or a label none of its classes.
    Source: algorithm 7 (with equations 6.12 to 6.15 for margins), corrected: constants outside of the sum over time.
    """
    classes = _classes(graph, sets, labels)
    weights = Weights(graph)
    found = []
    with torch.no_grad():
        for one, label in zip(sets, labels, strict=True):
            own = substitution(weights, interval(graph, [one]), one, relaxation)
            if intermediate is Intermediate.BACKWARD:
                refine(own)
            found.append(class_margins(own, label, classes, ascent))
    return torch.stack(found)


def refine(own: Substitution) -> None:
    """Replace the bounds of the populations' potentials by better ones, layer by layer and step by step.

    Only neurons that may fire and may not are looked at: for the others nothing is relaxed.
    """
    for node in own.weights.graph.nodes:
        if isinstance(node.op, Lif):
            cells = own.ranges.cells[node.name]
            for step, cell in enumerate(cells):
                units = cell.unstable.nonzero()[:, 0]
                if len(units) and not own.closing.is_exact(node, step):
                    cells[step] = _refined(own, node, step, units)


def substitution(weights: Weights, bounds: Bounds, one: InputSet, relaxation: Relaxation) -> Substitution:
    """A substitution that rests on S-IBP's bounds of one set."""
    return Substitution(
        weights=weights,
        ranges=sample_ranges(weights, bounds, 0),
        closing=closing(weights.graph, one),
        relaxation=relaxation,
    )


def class_margins(own: Substitution, label: int, classes: int, ascent: Ascent | None) -> Tensor:
    """Lower bounds of score[label] - score[j] of one sample, infinite at the label. Shapes: (K,)."""
    others = torch.tensor([j for j in range(classes) if j != label], dtype=torch.int64)
    rows = torch.zeros(classes - 1, classes, dtype=torch.float64)
    rows[:, label] = 1.0
    rows[torch.arange(classes - 1), others] = -1.0
    found = own.margins(rows)
    if ascent is not None:
        start = {
            name: torch.stack([cell.high for cell in cells]).to(torch.float64).expand(len(rows), -1, -1)
            for name, cells in own.ranges.cells.items()
        }
        with torch.enable_grad():
            found = torch.fmax(found, ascend(lambda free: own.margins(rows, free), start, ascent))
    return found.new_full((classes,), torch.inf).index_copy(0, others, found.nan_to_num(nan=-torch.inf))


def _classes(graph: Graph, sets: Sequence[InputSet], labels: Sequence[int]) -> int:
    """How many classes there are, of a network and labels that fit."""
    kind, node = graph.types[graph.output], graph.node(graph.output)
    if kind.axes != "NC":
        raise graph.site(node).fail(
            f"the output {kind} is no vector of class scores", "end the network in a readout over time"
        )
    classes = kind.size("C")
    if len(sets) != len(labels) or not sets:
        raise graph.site(node).fail(f"{len(labels)} labels are given for {len(sets)} input sets", "give one for each")
    wrong = [label for label in labels if not 0 <= label < classes]
    if wrong:
        raise graph.site(node).fail(f"label {wrong[0]} is none of the {classes} classes")
    return classes


def _refined(own: Substitution, node: Node, step: int, units: Tensor) -> Neurons:
    cell = own.ranges.cells[node.name][step]
    lower, upper = cell.lower.clone(), cell.upper.clone()
    for group in torch.split(units, _group(own.weights.graph, step + 1)):
        signs = torch.tensor([1.0, -1.0], dtype=torch.float64).repeat_interleave(len(group))
        run = own.descent(len(signs))
        forms = potentials_of(node, step, group.repeat(2), signs, run)
        low, high = own.lower(node.inputs[0], forms, run).reshape(2, -1)
        lower[group] = torch.fmax(lower[group], low)  # NaN, as of an overflow, says nothing
        upper[group] = torch.fmin(upper[group], -high)
    return neurons_of(own.weights, node, *snapped(lower, upper, own.ranges.grids[node.name]))


def _group(graph: Graph, steps: int) -> int:
    largest = max(math.prod(kind.size(axis) for axis in "CHW" if kind.has(axis)) for kind in graph.types.values())
    return max(1, LARGEST // (2 * steps * largest))
