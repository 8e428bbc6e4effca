"""Linear bounds of what a neuron makes of its membrane potential, and of a maximum of several values."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

import torch
from torch import Tensor

from compiler.ir import Compare, Reset


class Relaxation(StrEnum):
    """How spike and reset are bounded by lines in the membrane potential.

    paper  equations 6.5 and 6.7, one after the other; `<=` for `<` in 6.7, `>= 0` for `> 0` in the last row of 6.5
    hull   the convex hull of (m, s, z) as one body
    """

    PAPER = "paper"
    HULL = "hull"


@dataclass(frozen=True, slots=True, kw_only=True)
class Neurons:
    """What a neuron makes of a membrane potential m in [lower, upper]: a spike s, and z, what is left of m.

    Below the threshold s = 0 and z = m; above it s = 1 and z = keep * m + shift: keep 0 and shift the reset value
    (hard), keep 1 and shift -threshold (soft), keep 1 and shift 0 (none). Bounds of a neuron that cannot fire (`off`)
    or must (`on`) need no relaxation. At the threshold both cases count, whatever the compare rule: what holds there
    on both sides holds under either.

    Shapes: every tensor (...), f64 or bool, alike; `left` is 1 / (threshold - lower), `right` 1 / (upper - threshold),
    `across` 1 / (upper - lower), each 0 where it does not exist or the neuron is stable.
    """

    lower: Tensor
    upper: Tensor
    threshold: Tensor
    shift: Tensor
    off: Tensor
    on: Tensor
    left: Tensor
    right: Tensor
    across: Tensor
    high: Tensor  # whether the middle of the bounds is at or above the threshold
    keep: float
    touching: bool  # whether a bound of an unstable neuron is its threshold

    @property
    def unstable(self) -> Tensor:
        """Whether a neuron may fire and may not."""
        return ~(self.off | self.on)

    def __getitem__(self, index: int | slice | Tensor | tuple[Tensor, ...]) -> Neurons:
        """Some of the neurons, as indexing selects them from each tensor."""
        return Neurons(
            lower=self.lower[index],
            upper=self.upper[index],
            threshold=self.threshold[index],
            shift=self.shift[index],
            off=self.off[index],
            on=self.on[index],
            left=self.left[index],
            right=self.right[index],
            across=self.across[index],
            high=self.high[index],
            keep=self.keep,
            touching=self.touching,
        )


def neurons(
    lower: Tensor, upper: Tensor, threshold: Tensor, reset: Reset, reset_value: Tensor, compare: Compare
) -> Neurons:
    """Neurons from bounds of their membrane potentials.

    reset: NONE also for a soft reset that acts one step later, as it leaves z = m.
    Shapes: lower and upper (...), f64 for bounds that hold; the others broadcast to them.
    Source: equation 6.4 for which are stable.
    """
    threshold = threshold.to(lower.dtype).expand_as(lower)
    shift = {Reset.HARD: reset_value, Reset.SOFT: -threshold, Reset.NONE: torch.zeros(())}[reset]
    is_at = compare is Compare.GE
    off = upper < threshold if is_at else upper <= threshold
    on = lower >= threshold if is_at else lower > threshold
    unstable = ~(off | on)
    below, above = threshold - lower, upper - threshold
    return Neurons(
        lower=lower,
        upper=upper,
        threshold=threshold,
        shift=shift.to(lower.dtype).expand_as(lower),
        off=off,
        on=on,
        left=_inverse(below, unstable),
        right=_inverse(above, unstable),
        across=_inverse(upper - lower, unstable),
        high=above >= below,
        keep=0.0 if reset is Reset.HARD else 1.0,
        touching=bool((unstable & ((below <= 0.0) | (above <= 0.0))).any()),
    )


def relax(
    relaxation: Relaxation, cells: Neurons, spike: Tensor, left_over: Tensor, free: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """A line below a linear form of spike and rest: spike * s + left_over * z >= slope * m + constant on the bounds.

    free: in [0, 1], which of the slopes that no other beats; the middle of the bounds decides unless given.
    Shapes: spike, left_over and free (R, ...) for cells (...) -> slope and constant (R, ...), f64.
    Source: equations 6.5 and 6.7, or the hull's vertices (see `intercept`).
    """
    choose = _paper if relaxation is Relaxation.PAPER else _hull
    slope, constant = choose(cells, spike, left_over, free)
    kept = torch.where(cells.on, left_over * cells.keep, left_over)
    shifted = torch.where(cells.on, spike + left_over * cells.shift, 0.0)
    unstable = cells.unstable
    return torch.where(unstable, slope, kept), torch.where(unstable, constant, shifted)


def intercept(cells: Neurons, spike: Tensor, left_over: Tensor, slope: Tensor) -> Tensor:
    """The largest constant with spike * s + left_over * z >= slope * m + constant, whatever the slope.

    The difference of both sides is linear in m below the threshold and above it, so that its minimum is at one of the
    ends of the two pieces, the vertices of the hull: (m, s, z) = (lower, 0, lower), (threshold, 0, threshold),
    (threshold, 1, keep * threshold + shift), (upper, 1, keep * upper + shift).

    Shapes: (R, ...) for unstable cells (...) -> (R, ...).
    """
    below = left_over - slope
    above = left_over * cells.keep - slope
    fired = spike + left_over * cells.shift
    low = torch.minimum(below * cells.lower, below * cells.threshold)
    return torch.minimum(low, fired + torch.minimum(above * cells.threshold, above * cells.upper))


def _hull(cells: Neurons, spike: Tensor, left_over: Tensor, free: Tensor | None) -> tuple[Tensor, Tensor]:
    """A line that touches the convex envelope of the form over m.

    The envelope has the ends of the bounds and the lower of the two points at the threshold as its corners. If it has
    a corner at the threshold, the slopes of the lines through it are those between its two sides' slopes.
    """
    fired = spike + left_over * cells.shift
    first = left_over * cells.lower
    last = fired + left_over * (cells.keep * cells.upper)
    corner = torch.minimum(left_over * cells.threshold, fired + left_over * (cells.keep * cells.threshold))
    if cells.touching:
        first = torch.where(cells.left > 0.0, first, corner)
        last = torch.where(cells.right > 0.0, last, corner)
    left, right = (corner - first) * cells.left, (last - corner) * cells.right
    if cells.touching:
        left, right = torch.where(cells.left > 0.0, left, right), torch.where(cells.right > 0.0, right, left)
    middle = torch.where(cells.high, right, left) if free is None else left + free * (right - left)
    slope = torch.where(left <= right, middle, (last - first) * cells.across)
    return slope, intercept(cells, spike, left_over, slope)


def _paper(cells: Neurons, spike: Tensor, left_over: Tensor, free: Tensor | None) -> tuple[Tensor, Tensor]:
    """Equation 6.7 for a hard reset, exact equalities for the others, then equation 6.5.

    With a reset value r, 6.7 reads (1 - s) * lower + s * r <= z <= (1 - s) * threshold + s * r. The general slopes of
    6.5 are s >= k * (m - threshold) with k at most `right`, s <= 1 + k * (m - threshold) with k at most `left`.
    """
    if cells.keep:
        slope, constant = left_over, torch.zeros_like(left_over)
        fire = spike + left_over * cells.shift
    else:
        bound = torch.where(left_over >= 0.0, cells.lower, cells.threshold)
        slope, constant = torch.zeros_like(left_over), left_over * bound
        fire = spike + left_over * (cells.shift - bound)
    is_below = fire >= 0.0
    steepest = torch.where(is_below, cells.right, cells.left)
    share = (is_below == cells.high).to(fire.dtype) if free is None else free
    rise = fire * share * steepest
    return slope + rise, constant + torch.where(is_below, 0.0, fire) - rise * cells.threshold


@dataclass(frozen=True, slots=True, kw_only=True)
class Maximum:
    """Linear bounds of y = max over j of x_j, for x_j in [lower_j, upper_j].

    y >= x_best, the one with the greatest lower bound, and y = x_best where no other can be above it (`exact`).
    Else y <= sum over j of x_j + offset with offset = max of lower - sum of lower (where `summed`), since for the
    largest x_j, x_j <= lower_j + sum of (x_i - lower_i); or y <= greatest upper, what is lower in the middle.

    Shapes: best (J, ...) one-hot, the others (...); J the number of values.
    """

    best: Tensor
    exact: Tensor
    summed: Tensor
    offset: Tensor
    ceiling: Tensor
    real: Tensor  # (J, ...): whether there is such a value

    def lower(self, coefficients: Tensor) -> tuple[Tensor, Tensor]:
        """A line below coefficients * y, with the coefficients of the x_j and a constant of each element.

        Shapes: coefficients (R, ...) -> (R, J, ...), (R, ...).
        """
        over = coefficients.clamp(max=0.0)
        single = torch.where(self.exact, coefficients, coefficients.clamp(min=0.0))
        spread = torch.where(self.summed, over, 0.0)
        constant = torch.where(self.exact, 0.0, torch.where(self.summed, self.offset, self.ceiling)) * over
        return single[:, None] * self.best + spread[:, None] * self.real, constant


def maximum(lower: Tensor, upper: Tensor) -> Maximum:
    """Bounds of the maximum along axis 0.

    Shapes: lower and upper (J, ...), both -inf where there is no value; at least one along the axis is finite.
    """
    real = torch.isfinite(upper)
    floor, best = lower.max(0)
    is_best = torch.zeros_like(real).scatter_(0, best[None], True)
    others = upper.masked_fill(is_best, -torch.inf).amax(0)
    ceiling = upper.amax(0)
    low, high = lower.masked_fill(~real, 0.0).sum(0), upper.masked_fill(~real, 0.0).sum(0)
    exact = others <= floor
    return Maximum(
        best=is_best.to(torch.float64),
        exact=exact,
        summed=~exact & (floor + (high - low) / 2 < ceiling),
        offset=floor - low,
        ceiling=ceiling,
        real=real.to(torch.float64),
    )


def _inverse(width: Tensor, where: Tensor) -> Tensor:
    wide = where & (width > 0.0)
    return torch.where(wide, 1.0 / torch.where(wide, width, 1.0), 0.0)
