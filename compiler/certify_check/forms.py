"""Lower bounds of linear forms of values, by going back through the network with lines below each neuron.

A form is a row of coefficients. Whatever the coefficients are after f64 rounding, they are what is bounded; what was
lost on the way to them, and in sums of constants, is at most FUZZ of the absolute values of the terms, as no term goes
through 2^20 operations.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, field

import numpy as np

from compiler.certify_check.layers import Affine, Given, Greatest, Integers, Layer, Neurons, OverTime, Repeat, Same, Sum
from compiler.certify_check.ranges import Cell, Knowledge, Range
from compiler.certify_check.rounding import Reals, largest
from compiler.ir import Reading, Reset
from compiler.ir.ops import Lif

FUZZ = 2.0**-32
OPERATIONS = 1 << 20
AT_ONCE = 1 << 22  # coefficients of one node

# (population, step, cell, coefficients of the spikes, and of what is left) -> slopes, all (R, U)
Slopes = Callable[[str, int, Cell, Reals, Reals], Reals]


@dataclass(slots=True, kw_only=True)
class Descent:
    """Forms on their way back. constant: what is known of them so far; mass: absolute values of its terms. (R,)"""

    known: Knowledge
    slopes: Slopes | None = None
    stops: Collection[str] = ()  # nodes whose intervals bound what is left of the forms
    constant: Reals = field(init=False)
    mass: Reals = field(init=False)

    def lower(self, forms: dict[str, Reals]) -> Reals:
        """Lower bounds of sums of forms of several nodes. Shapes: (R, S', F) each, S' steps or fewer -> (R,)."""
        rows = len(next(iter(forms.values())))
        self.constant, self.mass = np.zeros(rows), np.zeros(rows)
        return self.finish(dict(forms))

    def potential(self, name: str, step: int, units: Integers, signs: Reals) -> Reals:
        """Lower bounds of sign * m[step] of single neurons. Shapes: units and signs (R,) -> (R,)."""
        rows, layer = len(units), self.known.layers[name]
        assert isinstance(layer, Neurons)
        self.constant, self.mass = np.zeros(rows), np.zeros(rows)
        last = np.zeros((rows, len(layer.decay)))
        last[np.arange(rows), units] = signs
        silent = np.zeros((rows, step, len(layer.decay)))
        source = self.known.graph.node(name).inputs[0]
        return self.finish({source: self._through_time(name, layer, silent, last)})

    def finish(self, waiting: dict[str, Reals]) -> Reals:
        """Lower bounds of what is waiting at several nodes and of the constants."""
        for node in reversed(self.known.graph.nodes):
            form = waiting.pop(node.name, None)
            if form is None:
                continue
            layer, value = self.known.layers[node.name], self.known.values[node.name]
            self._doubt(form, value.lost + FUZZ * (value.size + largest(value.lower, value.upper)))
            if isinstance(layer, Given):
                self._shed(self._closed(form), np.abs(form) * largest(value.lower, value.upper)[: form.shape[1]])
            elif node.name in self.stops:
                ends = np.where(form >= 0.0, value.lower[: form.shape[1]], value.upper[: form.shape[1]])
                self._shed((form * ends).sum((1, 2)), np.abs(form * ends))
            else:
                parts = self._back(node.name, layer, form, value, node.inputs)
                for source, part in zip(node.inputs, parts, strict=True):
                    waiting[source] = _added(waiting[source], part) if source in waiting else part
        return self.constant - FUZZ * self.mass

    def _closed(self, form: Reals) -> Reals:
        missing = len(self.known.inputs.clean) - form.shape[1]
        return self.known.inputs.least(np.pad(form, ((0, 0), (0, missing), (0, 0))))

    def _shed(self, amounts: Reals, sizes: Reals) -> None:
        """Add to the constants. Shapes: (R,), (R, ...)."""
        self.constant = self.constant + amounts
        self.mass = self.mass + sizes.reshape(len(sizes), -1).sum(1)

    def _doubt(self, form: Reals, off: Reals) -> None:
        """Lower the forms by what the values may be off. Shapes: (R, S', F), (S, F)."""
        amounts = np.abs(form).reshape(len(form), -1) @ off[: form.shape[1]].reshape(-1)
        self._shed(-amounts, amounts)

    def _back(self, name: str, layer: Layer, form: Reals, value: Range, sources: tuple[str, ...]) -> list[Reals]:
        """Coefficients of a layer's inputs from those of its value."""
        match layer:
            case Same():
                return [form]
            case Sum():
                return [form, form]
            case Repeat():
                return [form.sum(1, keepdims=True)]
            case Affine():
                assert max(layer.matrix.shape) < OPERATIONS, "so many terms lose more than FUZZ"
                self._shed((form * layer.bias).sum((1, 2)), np.abs(form) * layer.mass)
                flat = form.reshape(-1, form.shape[2])
                return [np.asarray(flat @ layer.matrix).reshape(*form.shape[:2], -1)]
            case Greatest():
                return [self._maximum(layer, form, self.known.values[sources[0]])]
            case OverTime():
                return [self._over_time(layer.kind, form, self.known.values[sources[0]])]
            case Neurons():
                return [self._through_time(name, layer, form, None)]
            case Given():
                raise AssertionError("the input is closed, not gone through")

    def _over_time(self, kind: Reading, form: Reals, x: Range) -> Reals:
        steps = len(x.lower)
        if kind is Reading.RATE:
            return np.repeat(form / steps, steps, 1)
        if kind is Reading.LAST:
            return np.concatenate([np.zeros((len(form), steps - 1, form.shape[2])), form], 1)
        parts, constant = _under_maximum(form[:, 0], x.lower, x.upper)
        self._shed(constant.sum(1), np.abs(constant))
        return np.moveaxis(parts, 0, 1)

    def _maximum(self, layer: Greatest, form: Reals, x: Range) -> Reals:
        inside, at = layer.places >= 0, np.maximum(layer.places, 0)
        steps = form.shape[1]
        lower, upper = (np.moveaxis(np.where(inside, part[:steps, at], -np.inf), 1, 0) for part in (x.lower, x.upper))
        parts, constant = _under_maximum(form, lower, upper)
        self._shed(constant.sum((1, 2)), np.abs(constant))
        taken = np.zeros((*form.shape[:2], x.lower.shape[1]))
        for j, part in enumerate(parts):
            flat = taken.reshape(-1, taken.shape[2]).T
            np.add.at(flat, at[j][inside[j]], part.reshape(-1, part.shape[2])[:, inside[j]].T)
        return taken

    def _through_time(self, name: str, layer: Neurons, spikes: Reals, last: Reals | None) -> Reals:
        """Coefficients of what flows in, from those of spikes (of potentials, of integrators), latest step first.

        m[t] = decay v[t-1] + scale x[t] + leak, less the threshold s[t-1] of a delayed reset: so the coefficient of
        v[t-1] is decay times that of m[t], and v[t-1], s[t-1] are bounded together by a line in m[t-1].
        """
        cells, op = self.known.cells[name], layer.op
        is_late = isinstance(op, Lif) and op.reset is Reset.SOFT and op.reset_delay
        steps = spikes.shape[1] + (last is not None)
        inflow = np.zeros((len(spikes), steps, spikes.shape[2]))
        later = last
        for t in reversed(range(steps)):
            if last is None or t < steps - 1:
                rest = np.zeros_like(spikes[:, t]) if later is None else layer.decay * later
                fired = spikes[:, t]
                if is_late and later is not None:
                    fired = fired - layer.threshold * later
                later = self._line(name, t, layer, fired, rest) if isinstance(op, Lif) else fired + rest
            assert later is not None
            cell = cells[t]
            off = cell.lost + FUZZ * (cell.size + largest(cell.lower, cell.upper))
            self._doubt(later[:, None], off[None])
            self._shed(later @ layer.leak, np.abs(later) * np.abs(layer.leak))
            inflow[:, t] = layer.scale * later
        assert later is not None
        self._shed(later @ (layer.decay * layer.initial), np.abs(later * layer.decay * layer.initial))
        return inflow

    def _line(self, name: str, t: int, layer: Neurons, fired: Reals, rest: Reals) -> Reals:
        """Slopes in m of a line below fired * s + rest * v; its constant is shed. Shapes: (R, U)."""
        cell = self.known.cells[name][t]
        keep, shift = reset_line(layer)
        slope = np.where(cell.silent, rest, rest * keep)  # of spikes that are known
        constant = np.where(cell.fires, fired + rest * shift, 0.0)
        self.mass = self.mass + ((np.abs(fired) + np.abs(rest * shift)) * cell.fires).sum(1)
        units = np.flatnonzero(cell.open)
        if len(units):
            some = opened(cell, units)
            threshold, moved = layer.threshold[units], shift[units]
            if self.slopes is None:
                own = envelope_slopes(some, threshold, keep, moved, fired[:, units], rest[:, units])
            else:
                own = self.slopes(name, t, some, fired[:, units], rest[:, units])
            slope[:, units] = own
            points = corners(some, threshold, keep, moved)
            values = [fired[:, units] * s + rest[:, units] * v - own * m for m, s, v in points]
            constant[:, units] = np.minimum.reduce(values)
            peak = np.maximum.reduce([np.maximum(np.abs(m), np.abs(v)) for m, _, v in points])
            weight = np.abs(fired[:, units]) + (np.abs(rest[:, units]) + np.abs(own)) * peak
            self.mass = self.mass + weight.sum(1)
        self._shed(constant.sum(1), np.abs(constant))
        self._doubt(rest[:, None], cell.lost_reset[None])
        return slope


def reset_line(layer: Neurons) -> tuple[float, Reals]:
    """What a firing neuron leaves of m: keep * m + shift."""
    op = layer.op
    if isinstance(op, Lif) and op.reset is Reset.HARD:
        return 0.0, layer.value
    is_now = isinstance(op, Lif) and op.reset is Reset.SOFT and not op.reset_delay
    return 1.0, -layer.threshold if is_now else np.zeros_like(layer.threshold)


def corners(cell: Cell, threshold: Reals, keep: float, shift: Reals) -> list[tuple[Reals, float, Reals]]:
    """The corners (m, s, v) of all that a neuron may do: below the threshold (m, 0, m), above (m, 1, keep m + shift).

    On both sides the threshold itself counts, whichever of them it is on.
    """
    return [
        (cell.lower, 0.0, cell.lower),
        (threshold, 0.0, threshold),
        (threshold, 1.0, keep * threshold + shift),
        (cell.upper, 1.0, keep * cell.upper + shift),
    ]


def envelope(
    cell: Cell, threshold: Reals, keep: float, shift: Reals, fired: Reals, rest: Reals
) -> tuple[Reals, Reals, Reals]:
    """The convex envelope's slopes on either side of the threshold, and that of its ends' chord. Shapes: (R, U)."""
    left, right = cell.lower, cell.upper
    first, end = rest * left, fired + rest * (keep * right + shift)
    bend = np.minimum(rest * threshold, fired + rest * (keep * threshold + shift))
    below, above = threshold - left, right - threshold
    with np.errstate(divide="ignore", invalid="ignore"):
        falling, rising = (bend - first) / below, (end - bend) / above
        falling, rising = np.where(below > 0.0, falling, rising), np.where(above > 0.0, rising, falling)
        whole = (np.where(above > 0.0, end, bend) - np.where(below > 0.0, first, bend)) / (right - left)
    return falling, rising, whole


def envelope_slopes(cell: Cell, threshold: Reals, keep: float, shift: Reals, fired: Reals, rest: Reals) -> Reals:
    """Slopes where a certificate names none: of the side of the convex envelope that is over the middle.

    A choice, of which no bound's truth depends: any slope has its constant. Shapes: (R, U).
    """
    falling, rising, whole = envelope(cell, threshold, keep, shift, fired, rest)
    is_high = cell.upper - threshold >= threshold - cell.lower
    slopes = np.where(falling <= rising, np.where(is_high, rising, falling), whole)
    return np.asarray(np.where(np.isfinite(slopes), slopes, 0.0))


def opened(cell: Cell, units: Integers) -> Cell:
    """Some of a cell's neurons."""
    return Cell(
        lower=cell.lower[units],
        upper=cell.upper[units],
        fires=cell.fires[units],
        silent=cell.silent[units],
        lost=cell.lost[units],
        size=cell.size[units],
        lost_reset=cell.lost_reset[units],
        grid=cell.grid,
    )


def _added(first: Reals, second: Reals) -> Reals:
    """The sum of forms of a node, of which one may say nothing of late steps."""
    steps = max(first.shape[1], second.shape[1])
    return sum((np.pad(form, ((0, 0), (0, steps - form.shape[1]), (0, 0))) for form in (first, second)), np.zeros(()))


def _under_maximum(form: Reals, lower: Reals, upper: Reals) -> tuple[Reals, Reals]:
    """Lines below form * y, y the maximum of J values: coefficients of those, and constants.

    y is at least the value with the greatest lower bound, and that value where no other reaches it. Else y is at most
    the greatest upper bound, and, as what is greatest exceeds its lower bound no more than all together do, at most
    sum of x_j - sum of lower_j + greatest lower: whichever is lower over the middles.

    Shapes: form (R, ...), lower and upper (J, ...), -inf where there is no value -> (J, R, ...), (R, ...).
    """
    is_there = np.isfinite(upper)
    best = np.argmax(lower, 0)
    is_best = np.arange(len(lower)).reshape(-1, *(1,) * best.ndim) == best
    floor, ceiling = lower.max(0), upper.max(0)
    is_known = np.where(is_best, -np.inf, upper).max(0) <= floor
    least, most = np.where(is_there, lower, 0.0).sum(0), np.where(is_there, upper, 0.0).sum(0)
    is_summed = floor + (most - least) / 2.0 < ceiling
    is_down = (form < 0.0) & ~is_known
    single = np.where(is_down, 0.0, form)
    summed = np.where(is_down & is_summed, form, 0.0)
    constant = np.where(is_down, form * np.where(is_summed, floor - least, ceiling), 0.0)
    parts = is_best[:, None] * single[None] + is_there[:, None] * summed[None]
    return parts, constant
