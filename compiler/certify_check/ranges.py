"""Intervals of every value, computed forward: what the checker knows of a network on a set of inputs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from compiler.certify_check.layers import Affine, Given, Greatest, Layer, Neurons, OverTime, Repeat, Same, Sum
from compiler.certify_check.rounding import (
    FINEST,
    Reals,
    fineness,
    inward,
    joined,
    largest,
    loss,
    multiplied,
)
from compiler.certify_check.sets import Inputs
from compiler.ir import Compare, Graph, Reading, Reset
from compiler.ir.ops import Lif

if TYPE_CHECKING:
    from scipy.sparse import csr_array

Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True, kw_only=True)
class Range:
    """lower <= value <= upper, and how far rounding alone moves the value from the layer's result in real numbers.

    size: the largest sum of absolute values of the terms that make it; the checker's f64 errors are in proportion.
    few: at a single step at most so many elements differ from `clean`. Shapes: (S, F); S is 1 without time.
    """

    lower: Reals
    upper: Reals
    lost: Reals
    size: Reals
    grid: int | None
    few: int | None = None
    clean: Reals | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """A population at one step: its membrane potentials' bounds, and which spikes are known.

    lost, size: of the potential as a Range's. lost_reset: of the potential less the threshold, behind a soft reset.
    Shapes: (U,).
    """

    lower: Reals
    upper: Reals
    fires: Bools
    silent: Bools
    lost: Reals
    size: Reals
    lost_reset: Reals
    grid: int | None

    @property
    def open(self) -> Bools:
        """Which may fire and may not."""
        return ~(self.fires | self.silent)


Bounds = tuple[Reals, Reals]
Judge = Callable[["Knowledge", str, int, Reals, Reals], Bounds]


def as_computed(known: Knowledge, name: str, step: int, lower: Reals, upper: Reals) -> Bounds:
    """The judge that takes the intervals of membrane potentials as they come."""
    return lower, upper


@dataclass(slots=True)
class Knowledge:
    """What is known so far of a graph's values on a set of inputs. layers: the graph's own."""

    graph: Graph
    inputs: Inputs
    layers: Mapping[str, Layer]
    values: dict[str, Range] = field(default_factory=dict)
    cells: dict[str, list[Cell]] = field(default_factory=dict)

    @property
    def is_finite(self) -> bool:
        """Whether f32 cannot overflow anywhere."""
        lost = [value.lost for value in self.values.values()]
        lost += [part for cells in self.cells.values() for cell in cells for part in (cell.lost, cell.lost_reset)]
        return all(bool(np.isfinite(part).all()) for part in lost)

    def walk(self, judge: Judge = as_computed) -> None:
        """Bound all values in order. The judge says which bounds of membrane potentials hold, from those computed."""
        for node in self.graph.nodes:
            layer = self.layers[node.name]
            taken = [self.values[name] for name in node.inputs]
            self.values[node.name] = self._bounded(node.name, layer, taken, judge)

    def _bounded(self, name: str, layer: Layer, taken: list[Range], judge: Judge) -> Range:
        match layer:
            case Given():
                return self._given()
            case Same():
                return replace(taken[0], lost=np.zeros_like(taken[0].lost))
            case Repeat():
                return _repeated(taken[0], layer.steps)
            case Sum():
                return _summed(*taken)
            case Affine():
                return _affine(layer, taken[0])
            case Greatest():
                return _greatest(layer, taken[0])
            case OverTime():
                return _over_time(layer.kind, taken[0])
            case Neurons():
                return self._neurons(name, layer, taken[0], judge)

    def _given(self) -> Range:
        own = self.inputs
        is_known = own.is_binary or bool(np.array_equal(own.lower, own.upper))
        return Range(
            lower=own.lower,
            upper=own.upper,
            lost=np.zeros_like(own.lower),
            size=largest(own.lower, own.upper),
            grid=fineness(own.clean) if is_known else None,
            few=own.budget,
            clean=own.clean,
        )

    def _neurons(self, name: str, layer: Neurons, x: Range, judge: Judge) -> Range:
        """m[t] = decay v[t-1] + scale x[t] + leak (- threshold s[t-1]), then the reset, step by step."""
        cells = self.cells.setdefault(name, [])
        is_spiking = isinstance(layer.op, Lif)
        grids = [fineness(part) for part in (layer.decay, layer.scale, layer.leak)]
        flow = joined(multiplied(x.grid, grids[1]), grids[2])
        left = Range(
            lower=layer.initial,
            upper=layer.initial,
            lost=np.zeros_like(layer.initial),
            size=np.abs(layer.initial),
            grid=fineness(layer.initial),
        )
        late = (np.zeros_like(layer.decay),) * 3
        found = []
        for t in range(len(x.lower)):
            ends = layer.scale * x.lower[t], layer.scale * x.upper[t]
            lower = layer.decay * left.lower + np.minimum(*ends) + layer.leak
            upper = layer.decay * left.upper + np.maximum(*ends) + layer.leak
            size = layer.decay * left.size + np.abs(layer.scale) * largest(x.lower[t], x.upper[t])
            size = size + np.abs(layer.leak) + late[2]
            grid = joined(multiplied(left.grid, grids[0]), flow, fineness(late[2]))
            lost = loss(4, size, grid)
            lower, upper = inward(lower + late[0] - lost, upper + late[1] + lost, grid)
            cells.append(_cell(layer, lower, upper, lost, size, grid))
            if is_spiking:
                cells[t] = _cell(layer, *judge(self, name, t, lower, upper), lost, size, grid)
            cell = cells[t]
            left, late = _left(layer, cell)
            found.append(Range(lower=cell.lower, upper=cell.upper, lost=np.zeros_like(lost), size=size, grid=grid))
        if not is_spiking:
            return _stacked(found)
        return Range(
            lower=np.stack([cell.fires for cell in cells]).astype(np.float64),
            upper=np.stack([~cell.silent for cell in cells]).astype(np.float64),
            lost=np.zeros_like(x.lower),
            size=np.ones_like(x.lower),
            grid=0,
        )


def _cell(layer: Neurons, lower: Reals, upper: Reals, lost: Reals, size: Reals, grid: int | None) -> Cell:
    op, nowhere = layer.op, np.zeros(lower.shape, bool)
    if not isinstance(op, Lif):
        fires, silent = nowhere, ~nowhere  # a potential that is never reset
    elif op.compare is Compare.GE:
        fires, silent = lower >= layer.threshold, upper < layer.threshold
    else:
        fires, silent = lower > layer.threshold, upper <= layer.threshold
    lost_reset = np.zeros_like(lower)
    if isinstance(op, Lif) and op.reset is Reset.SOFT and not op.reset_delay:
        start = np.maximum(lower, layer.threshold)
        sunk = largest(start - layer.threshold, upper - layer.threshold)
        lost_reset = np.where(silent, 0.0, loss(1, sunk, joined(grid, fineness(layer.threshold))))
    return Cell(
        lower=lower,
        upper=upper,
        fires=fires,
        silent=silent,
        lost=lost,
        size=size,
        lost_reset=lost_reset,
        grid=grid,
    )


def _left(layer: Neurons, cell: Cell) -> tuple[Range, tuple[Reals, Reals, Reals]]:
    """v[t], and what a delayed reset adds to the next potential: its least, its most, and its largest absolute value.

    What is left of a silent neuron is at most the threshold, and of one that fires at least that. On a grid the one of
    the two that cannot be at the threshold ends at the multiple next to it.
    """
    op, threshold, grid = layer.op, layer.threshold, cell.grid
    none = np.zeros_like(threshold)
    below, above = threshold, threshold
    if grid is not None and isinstance(op, Lif) and op.compare is Compare.GE:
        below = (np.ceil(threshold * 2.0**grid) - 1.0) / 2.0**grid
    elif grid is not None:
        above = (np.floor(threshold * 2.0**grid) + 1.0) / 2.0**grid
    top, bottom = np.minimum(cell.upper, below), np.maximum(cell.lower, above)

    def either(silent: Bounds, fired: Bounds) -> Bounds:
        low = np.where(cell.silent, silent[0], np.minimum(silent[0], fired[0]))
        high = np.where(cell.silent, silent[1], np.maximum(silent[1], fired[1]))
        return np.where(cell.fires, fired[0], low), np.where(cell.fires, fired[1], high)

    own = (cell.lower, cell.upper)
    late = (none, none, none)
    if not isinstance(op, Lif) or op.reset is Reset.NONE:
        lower, upper = own
    elif op.reset is Reset.HARD:
        lower, upper = either((cell.lower, top), (layer.value, layer.value))
        grid = joined(grid, fineness(layer.value))
    elif not op.reset_delay:
        finer = joined(grid, fineness(threshold))
        after = inward(bottom - threshold - cell.lost_reset, cell.upper - threshold + cell.lost_reset, finer)
        lower, upper = either((cell.lower, top), after)
        grid = finer
    else:
        # decay m - threshold s, taken together: m and s are not free of each other
        lower, upper = own
        ends = either(
            (layer.decay * cell.lower, layer.decay * top),
            (layer.decay * bottom - threshold, layer.decay * cell.upper - threshold),
        )
        late = (ends[0] - layer.decay * lower, ends[1] - layer.decay * upper, np.abs(threshold))
    size = largest(lower, upper)
    return Range(lower=lower, upper=upper, lost=cell.lost_reset, size=size, grid=grid), late


def _repeated(x: Range, steps: int) -> Range:
    def over(part: Reals) -> Reals:
        return np.repeat(part, steps, 0)

    return Range(
        lower=over(x.lower),
        upper=over(x.upper),
        lost=np.zeros((steps, x.lower.shape[1])),
        size=over(x.size),
        grid=x.grid,
        few=x.few,
        clean=None if x.clean is None else over(x.clean),
    )


def _summed(first: Range, second: Range) -> Range:
    lower, upper = first.lower + second.lower, first.upper + second.upper
    made = _made(lower, upper, 1, largest(lower, upper), joined(first.grid, second.grid))
    return replace(made, size=largest(first.lower, first.upper) + largest(second.lower, second.upper))


def _affine(layer: Affine, x: Range) -> Range:
    matrix, peak = layer.matrix, largest(x.lower, x.upper)
    size = _through(abs(matrix), peak) + layer.mass
    grid = layer.result_grid(x.grid)
    lost = loss(layer.operations, size, grid)
    if layer.center is not None and grid is not None:  # the difference x - mean has to be exact as well
        centered = peak + layer.center
        steps = joined(x.grid, layer.center_grid)
        is_held = np.asarray(steps is not None and centered <= 2.0 ** (24 - (steps or 0)))
        lost = np.where(is_held, lost, loss(layer.operations, size, None))
    if x.few is not None and x.clean is not None:
        base = _through(matrix, x.clean) + layer.bias
        low, high = _few_changes(matrix, x.lower + x.upper - 2.0 * x.clean, x.few)
        lower, upper = base + low, base + high
    else:
        middle, half = (x.lower + x.upper) / 2.0, (x.upper - x.lower) / 2.0
        center, spread = _through(matrix, middle) + layer.bias, _through(abs(matrix), half)
        lower, upper = center - spread, center + spread
    lower, upper = inward(lower - lost, upper + lost, grid)
    return Range(lower=lower, upper=upper, lost=lost, size=size, grid=grid)


def _few_changes(matrix: csr_array | Reals, change: Reals, few: int) -> Bounds:
    """The least and the most that up to so many changed inputs of a step change each output by. Shapes: (S, F)."""
    low, high = np.zeros((2, len(change), matrix.shape[0]))
    for t, own in enumerate(change):
        where = np.flatnonzero(own)
        columns = matrix[:, where]
        terms = (columns if isinstance(columns, np.ndarray) else columns.toarray()) * own[where]
        kept = min(few, terms.shape[1])
        if kept:
            low[t] = np.minimum(np.partition(terms, kept - 1, 1)[:, :kept], 0.0).sum(1)
            high[t] = np.maximum(-np.partition(-terms, kept - 1, 1)[:, :kept], 0.0).sum(1)
    return low, high


def _greatest(layer: Greatest, x: Range) -> Range:
    inside = layer.places >= 0
    at = np.maximum(layer.places, 0)

    def pick(part: Reals, outside: float) -> Reals:
        return np.asarray(np.where(inside, part[:, at], outside).max(1))

    lower, upper = pick(x.lower, -np.inf), pick(x.upper, -np.inf)
    return Range(lower=lower, upper=upper, lost=np.zeros_like(lower), size=largest(lower, upper), grid=x.grid)


def _over_time(kind: Reading, x: Range) -> Range:
    steps = len(x.lower)
    if kind is Reading.RATE:
        shift = steps.bit_length() - 1 if steps & (steps - 1) == 0 else FINEST + 1
        size = largest(x.lower, x.upper).mean(0, keepdims=True)
        means = x.lower.mean(0, keepdims=True), x.upper.mean(0, keepdims=True)
        return _made(*means, steps + 1, size, multiplied(x.grid, shift))
    pick = slice(steps - 1, None) if kind is Reading.LAST else slice(None)
    lower, upper = x.lower[pick].max(0, keepdims=True), x.upper[pick].max(0, keepdims=True)
    return Range(lower=lower, upper=upper, lost=np.zeros_like(lower), size=largest(lower, upper), grid=x.grid)


def _made(lower: Reals, upper: Reals, operations: int, size: Reals, grid: int | None) -> Range:
    lost = loss(operations, size, grid)
    lower, upper = inward(lower - lost, upper + lost, grid)
    return Range(lower=lower, upper=upper, lost=lost, size=size, grid=grid)


def _stacked(steps: list[Range]) -> Range:
    def over(what: str) -> Reals:
        return np.stack([getattr(step, what) for step in steps])

    return Range(
        lower=over("lower"),
        upper=over("upper"),
        lost=over("lost"),
        size=over("size"),
        grid=joined(*(step.grid for step in steps)),
    )


def _through(matrix: csr_array | Reals, x: Reals) -> Reals:
    """matrix x at each step. Shapes: x (S, F) -> (S, outputs)."""
    return np.asarray((matrix @ x.T).T)
