"""Bounds of class margins, and whether claims about membrane potentials follow from what is known."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from compiler.certify_check.forms import AT_ONCE, Descent, Slopes
from compiler.certify_check.layers import Greatest, Integers, Neurons, OverTime
from compiler.certify_check.ranges import Bools, Bounds, Cell, Knowledge
from compiler.certify_check.rounding import Reals, inward
from compiler.ir import Compare, Reading
from compiler.ir.ops import Lif


@dataclass(frozen=True, slots=True, kw_only=True)
class Claims:
    """What is said of a population: bounds of its potentials, which spikes are known, and where forms show it.

    stability: 1 fires whatever the input, -1 never does, 0 may and may not. Shapes: all (T, U).
    """

    lower: Reals
    upper: Reals
    stability: npt.NDArray[np.int8]
    refined: Bools

    def at(self, step: int, layer: Neurons, grid: int | None) -> Bounds:
        """The bounds at a step, cut at the threshold where the spike is said to be known, on the potentials' grid."""
        op = layer.op
        is_at = isinstance(op, Lif) and op.compare is Compare.GE
        on = layer.threshold if is_at else np.nextafter(layer.threshold, np.inf)
        off = np.nextafter(layer.threshold, -np.inf) if is_at else layer.threshold
        says = self.stability[step]
        lower, upper = inward(self.lower[step], self.upper[step], grid)
        lower = np.where(says == 1, np.maximum(lower, on), lower)
        upper = np.where(says == -1, np.minimum(upper, off), upper)
        return lower, upper


def refined(known: Knowledge, name: str, step: int, units: Integers) -> Bounds:
    """Bounds of single potentials by forms. Shapes: units (R,) -> two (R,)."""
    sizes = [value.lower.shape[1] for value in known.values.values()]
    most = max(1, AT_ONCE // (2 * (step + 1) * max(sizes)))
    lower, upper = np.empty(len(units)), np.empty(len(units))
    for start in range(0, len(units), most):
        part = slice(start, start + most)
        both = np.tile(units[part], 2)
        signs = np.repeat([1.0, -1.0], len(units[part]))
        low, high = Descent(known=known).potential(name, step, both, signs).reshape(2, -1)
        lower[part], upper[part] = low, -high
    return inward(lower, upper, known.cells[name][step].grid)


def score_rows(label: int, classes: Integers, count: int) -> Reals:
    """score[label] - score[class] as forms of the scores. Shapes: classes (R,) -> (R, 1, count)."""
    rows = np.zeros((len(classes), 1, count))
    rows[:, 0, label] += 1.0
    rows[np.arange(len(classes)), 0, classes] -= 1.0
    return rows


def margins_by_intervals(known: Knowledge, label: int) -> Reals:
    """Lower bounds of score[label] - score[j], with nothing but intervals of spikes and of maxima.

    From the scores' own intervals, or from forms that end at those intervals; behind a maximum over time the least
    difference of any one step: at the step where the other class is highest, the label is that much higher.
    Shapes: -> (K,).
    """
    graph = known.graph
    node = graph.node(graph.output)
    scores = known.values[node.name]
    plain = scores.lower[0, label] - scores.upper[0]
    count = len(plain)
    rows, at, steps = score_rows(label, np.arange(count), count), node.name, 1
    layer = known.layers[node.name]
    if isinstance(layer, OverTime) and layer.kind is Reading.MAX:
        at = node.inputs[0]
        steps = len(known.values[at].lower)
        rows = np.concatenate([np.eye(steps)[t][None, :, None] * rows for t in range(steps)])
    stops = [
        name
        for name, own in known.layers.items()
        if isinstance(own, Greatest) or (isinstance(own, Neurons) and isinstance(own.op, Lif))
    ]
    found = Descent(known=known, stops=stops).lower({at: rows}).reshape(steps, count).min(0)
    return np.asarray(np.fmax(plain, found))


def margins_by_forms(known: Knowledge, label: int, classes: Integers, slopes: Slopes | None = None) -> Reals:
    """Lower bounds of score[label] - score[j] for some classes, by lines below every neuron. Shapes: (R,) -> (R,)."""
    output = known.graph.output
    rows = score_rows(label, classes, known.values[output].lower.shape[1])
    return Descent(known=known, slopes=slopes).lower({output: rows})


@dataclass(frozen=True, slots=True)
class GivenSlopes:
    """The slopes of a certificate: for each population all its undecided spikes, step by step. Shapes: (R, open)."""

    known: Knowledge
    slopes: Mapping[str, Reals]

    def __call__(self, name: str, step: int, cell: Cell, fired: Reals, rest: Reals) -> Reals:
        before = sum(int(own.open.sum()) for own in self.known.cells[name][:step])
        return self.slopes[name][:, before : before + len(cell.lower)]
