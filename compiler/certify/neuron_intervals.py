"""Intervals of neurons, step by step: membrane potentials, spikes, and what a reset leaves."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from compiler.certify.arithmetic import (
    grid_of,
    magnitude,
    membrane_error,
    outward,
    products,
    sum_error,
    sums,
)
from compiler.certify.model import Interval, Population, exactly
from compiler.ir import Compare, Reset
from compiler.ir.ops import Lif

Numbers = Callable[[str], Tensor]  # a number of an op by its field, along the channels


@dataclass(frozen=True, slots=True, kw_only=True)
class Pieces:
    """A membrane's interval, cut at the threshold: lower..top does not fire, bottom..upper does.

    Where a neuron is stable, one piece is empty.
    """

    lower: Tensor
    top: Tensor
    bottom: Tensor
    upper: Tensor
    fires: Tensor
    silent: Tensor

    def hull(self, silent: tuple[Tensor, Tensor], firing: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """The least interval around what the pieces become: each is given by what its ends become, in order."""
        low = torch.where(self.silent, silent[0], torch.minimum(silent[0], firing[0]))
        high = torch.where(self.silent, silent[1], torch.maximum(silent[1], firing[1]))
        return torch.where(self.fires, firing[0], low), torch.where(self.fires, firing[1], high)


def neurons(op: Lif, x: Interval, numbers: Numbers) -> tuple[Interval, Population]:
    """Spikes, and membrane potentials, of neurons with inputs in an interval.

    m[t] in decay v[t-1] + input_scale x[t] + leak_bias;   s by both ends (6.4);   v by the pieces on either side of the
    threshold (6.6): [l, u] where silent, the reset's result where firing, the hull of both where unstable. Of the
    silent piece the upper end is the threshold, or, on a grid and where it would fire, the last multiple below.

    Shapes: x (T, N, ...), numbers to broadcast along its channels -> spikes and population of the same shape.
    """
    threshold = numbers("threshold")
    step = _Step(x, numbers, late=threshold if op.reset is Reset.SOFT and op.reset_delay else None)
    after = exactly(numbers("initial").expand(x.lower.shape[1:]), grid_of(numbers("initial").numpy()))
    carried = step.decayed(after)
    membranes, afters, pieces = [], [], []
    for t in range(len(x.lower)):
        membrane = step.membrane(carried, t)
        cut = _cut(membrane, threshold, op.compare)
        after = _reset(op, membrane, cut, numbers)
        carried = step.decayed(after)
        if step.late is not None:
            carried = step.late_reset(membrane, cut)
        membranes.append(membrane)
        afters.append(after)
        pieces.append(cut)
    fires, silent = torch.stack([cut.fires for cut in pieces]), torch.stack([cut.silent for cut in pieces])
    spikes = Interval(
        lower=fires.double(), upper=(~silent).double(), error=torch.zeros((), dtype=torch.float64), grid=0
    )
    return spikes, Population(membrane=_over_time(membranes), after=_over_time(afters), fires=fires, silent=silent)


def integrator(x: Interval, numbers: Numbers) -> Interval:
    """Membrane potentials of leaky integrators (Li). Shapes: as x, (T, N, ...)."""
    step = _Step(x, numbers, late=None)
    membrane = exactly(numbers("initial").expand(x.lower.shape[1:]), grid_of(numbers("initial").numpy()))
    membranes = []
    for t in range(len(x.lower)):
        membrane = step.membrane(step.decayed(membrane), t)
        membranes.append(membrane)
    return _over_time(membranes)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Carried:
    """Bounds in real numbers of what the step before adds to a membrane, and of the size of its terms."""

    lower: Tensor
    upper: Tensor
    size: Tensor
    grid: int | None


class _Step:
    """One step of the recurrence."""

    def __init__(self, x: Interval, numbers: Numbers, *, late: Tensor | None) -> None:
        """late: the threshold, of a soft reset that acts one step later."""
        self.decay, self.late = numbers("decay"), late
        scale, leak = numbers("input_scale"), numbers("leak_bias")
        ends = scale * x.lower + leak, scale * x.upper + leak
        self.lower, self.upper = torch.minimum(*ends), torch.maximum(*ends)
        self.size = scale.abs() * magnitude(x.lower, x.upper) + leak.abs()
        self.grid = sums([products(x.grid, grid_of(scale.numpy())), grid_of(leak.numpy())])
        self.decay_grid = grid_of(self.decay.numpy())

    def decayed(self, after: Interval) -> _Carried:
        """decay v; a decay is never negative."""
        return _Carried(
            lower=self.decay * after.lower,
            upper=self.decay * after.upper,
            size=self.decay * magnitude(after.lower, after.upper),
            grid=products(self.decay_grid, after.grid),
        )

    def late_reset(self, membrane: Interval, cut: Pieces) -> _Carried:
        """decay m - threshold s."""
        assert self.late is not None
        plain = self.decayed(membrane)
        lower, upper = cut.hull(
            (self.decay * cut.lower, self.decay * cut.top),
            (self.decay * cut.bottom - self.late, self.decay * cut.upper - self.late),
        )
        grid = sums([plain.grid, grid_of(self.late.numpy())])
        return _Carried(lower=lower, upper=upper, size=plain.size + self.late.abs(), grid=grid)

    def membrane(self, carried: _Carried, t: int) -> Interval:
        """m[t] from what the step before left."""
        grid = sums([carried.grid, self.grid])
        off = membrane_error(carried.size + self.size[t], grid)
        lower, upper = outward(carried.lower + self.lower[t], carried.upper + self.upper[t], off, grid)
        return Interval(lower=lower, upper=upper, error=off, grid=grid)


def _cut(membrane: Interval, threshold: Tensor, compare: Compare) -> Pieces:
    """The parts of a membrane's interval on either side of the threshold.

    On a grid the parts do not touch: the silent one ends, or the firing one begins, at the multiple next to the
    threshold, as the threshold itself is in the other. Off it, both end there.
    """
    lower, upper, grid = membrane.lower, membrane.upper, membrane.grid
    if compare is Compare.GE:
        fires, silent = lower >= threshold, upper < threshold
        top, bottom = threshold if grid is None else ((threshold * 2.0**grid).ceil() - 1) / 2.0**grid, threshold
    else:
        fires, silent = lower > threshold, upper <= threshold
        top, bottom = threshold, threshold if grid is None else ((threshold * 2.0**grid).floor() + 1) / 2.0**grid
    return Pieces(
        lower=lower,
        top=torch.minimum(upper, top),
        bottom=torch.maximum(lower, bottom),
        upper=upper,
        fires=fires,
        silent=silent,
    )


def _reset(op: Lif, membrane: Interval, cut: Pieces, numbers: Numbers) -> Interval:
    """v[t]."""
    zero = torch.zeros((), dtype=torch.float64)
    if op.reset is Reset.HARD:
        value = numbers("reset_value")
        lower, upper = cut.hull((cut.lower, cut.top), (value, value))
        grid = sums([membrane.grid, grid_of(value.numpy())])
        return Interval(lower=lower, upper=upper, error=zero, grid=grid)
    if op.reset is Reset.NONE or op.reset_delay:
        return Interval(lower=membrane.lower, upper=membrane.upper, error=zero, grid=membrane.grid)
    threshold = numbers("threshold")
    grid = sums([membrane.grid, grid_of(threshold.numpy())])
    below = cut.bottom - threshold, cut.upper - threshold
    off = sum_error(magnitude(*below), grid).masked_fill(cut.silent, 0.0)
    lower, upper = cut.hull((cut.lower, cut.top), outward(*below, off, grid))
    return Interval(lower=lower, upper=upper, error=off, grid=grid)


def _over_time(steps: list[Interval]) -> Interval:
    """The intervals of all steps as one, on the finest of their grids."""
    lower = torch.stack([step.lower for step in steps])
    return Interval(
        lower=lower,
        upper=torch.stack([step.upper for step in steps]),
        error=torch.stack([step.error.expand(lower.shape[1:]) for step in steps]),
        grid=sums(step.grid for step in steps),
    )
