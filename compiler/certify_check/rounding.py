"""What f32 may do to a result, and where it does nothing: the checker's own account of it.

Assumed of the machine: f32 with rounding to nearest, sums in any order, products rounded or not before they are added
(fused multiply-add), tiny results exact, gradual or flushed to zero; no overflow, no shorter formats.

A term that takes part in n rounded operations comes out as term (1 + d_1) .. (1 + d_n), |d_i| <= 2^-24. Since
(1 + h)^n - 1 <= n h / (1 - n h), the result is within that share of the sum of the terms' absolute values, `size`.
The checker's f64 loses at most 2^-53 a time, by at most 2 n + 16 operations on the same terms (of intervals that are
made of a clean value and changes, each has n): that is added.

If every term is a multiple of 2^-grid and size <= 2^24 of those, then so is every partial sum, and f32 holds such
numbers: nothing is lost, and f64 loses nothing either.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Reals = npt.NDArray[np.float64]

F32_LOSS = 2.0**-24
F64_LOSS = 2.0**-53
SMALLEST = 2.0**-126  # below it results may be flushed to zero
OVERFLOW = 2.0**127
MANTISSA = 24
FINEST = 120  # of grids: 2^-120 in 2^24 steps stays away from SMALLEST


def loss(operations: int, size: Reals, grid: int | None) -> Reals:
    """How far a result may be from real arithmetic; infinite where f32 may overflow. Shapes: size any -> the same."""
    share = operations * F32_LOSS
    assert share < 0.5, "no digit is left after so many operations"
    lost = size * (share / (1.0 - share) + (2 * operations + 16) * F64_LOSS) + operations * SMALLEST
    if grid is not None:
        lost = np.where(size <= 2.0 ** (MANTISSA - grid), 0.0, lost)
    return np.asarray(np.where(size <= OVERFLOW, lost, np.inf))


def fineness(values: npt.ArrayLike) -> int | None:
    """The least grid >= 0 with every value a multiple of 2^-grid; None if that is finer than FINEST.

    A value is m 2^(e - 53) with an integer m of at most 53 bits; m's trailing zeros make it coarser.
    """
    mantissa, exponent = np.frexp(np.asarray(values, np.float64))
    whole = (mantissa * 2.0**53).astype(np.int64)
    is_there = whole != 0
    if not is_there.any():
        return 0
    whole, exponent = whole[is_there], exponent[is_there]
    zeros = np.frexp((whole & -whole).astype(np.float64))[1] - 1
    grid = max(0, int((53 - exponent - zeros).max()))
    return grid if grid <= FINEST else None


def joined(*grids: int | None) -> int | None:
    """The grid of a sum of values on these grids."""
    known = [grid for grid in grids if grid is not None]
    return max(known, default=0) if len(known) == len(grids) else None


def multiplied(first: int | None, second: int | None) -> int | None:
    """The grid of a product of values on these grids."""
    if first is None or second is None or first + second > FINEST:
        return None
    return first + second


def inward(lower: Reals, upper: Reals, grid: int | None) -> tuple[Reals, Reals]:
    """The multiples of 2^-grid inside an interval span it just as well: what it bounds is one of them."""
    if grid is None:
        return lower, upper
    scale = 2.0**grid
    return np.ceil(lower * scale) / scale, np.floor(upper * scale) / scale


def largest(lower: Reals, upper: Reals) -> Reals:
    """The largest absolute value in an interval."""
    return np.maximum(np.abs(lower), np.abs(upper))
