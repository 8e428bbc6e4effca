"""How far f32 arithmetic may be from the real numbers, so that bounds hold for what `evaluate` computes.

The model: f32, round to nearest, so that each operation returns (a op b)(1 + d), |d| <= u = 2^-24, or is off by at most
TINY = 2^-126 where the result is that small (gradual underflow, or results flushed to zero). Sums of a layer may be in
any order, and products may go into them unrounded (fused multiply-add); a convolution sums its products directly, not
by a transform (Winograd, FFT), and no mode with fewer bits is on (TF32, bfloat16). Nothing may overflow. Real numbers
are in the model, all d = 0, and so is f64: bounds hold for them too.

A product of k factors (1 + d) is 1 + e with |e| <= gamma(k) = k u / (1 - k u). So a result made of terms, each of
which goes through at most k operations, is off by at most gamma(k) times the sum of the terms' absolute values: its
`size`. The bounds themselves are computed in f64 from the same terms by fewer than k + 4 operations, whose errors are
2^29 times smaller; SLACK = 2 more operations of f32 pay for them.

Where all values are multiples of 2^-grid and the size is at most 2^24 such units, every partial result is such a
multiple with at most 24 bits, which f32 holds: nothing is rounded and the error is 0, as of networks whose numbers are
on a dyadic grid. Rounded or not, multiples of 2^-grid they stay: rounding takes away low bits only.

Source: Higham, Accuracy and Stability of Numerical Algorithms, 2nd ed., lemma 3.1 and section 4.2.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

UNIT = 2.0**-24
TINY = 2.0**-126
LARGEST = 2.0**127  # sizes up to here cannot overflow, rounded or not
BITS = 24
FINEST = 120  # grids finer than that are none: their units come near the smallest f32
SLACK = 2


def gamma(operations: int) -> float:
    """k u / (1 - k u): the relative error of a result behind k operations.

    Source: Higham, lemma 3.1.
    """
    product = operations * UNIT
    assert product < 0.5, "so many operations leave no digit"
    return product / (1 - product)


def error(operations: int, size: Tensor, grid: int | None) -> Tensor:
    """How far a result may be off: gamma(k + SLACK) size + TINY for each operation, or 0 where all is exact.

    size: sum of the terms' absolute values, each behind at most `operations`; infinite errors where f32 may overflow.
    grid: all terms, and all partial results, are multiples of 2^-grid; None: unknown.
    Shapes: size any -> the same.
    """
    rough = gamma(operations + SLACK) * size + operations * TINY
    if grid is not None:
        rough = torch.where(size <= 2.0 ** (BITS - grid), 0.0, rough)
    return torch.where(size <= LARGEST, rough, math.inf)


def layer_error(terms: int, size: Tensor, grid: int | None) -> Tensor:
    """Of a sum of `terms` products, the bias among them: a product is rounded once and goes through terms - 1 sums.

    Zero padding and weights of zero only add exact terms. size = |weight| |x| + |bias|.
    """
    return error(terms, size, grid)


def norm_error(size: Tensor, grid: int | None) -> Tensor:
    """Of a batch norm from running statistics, whichever of two ways it is computed. size = |a| (|x| + |mean|) + |b|.

    a = weight / sqrt(var + eps): eps as f32, sum, square root (which halves the relative error so far), reciprocal,
    product: at most 1 + 1 + 1 + 1 = 4 roundings of a.
    x a + (bias - mean a): x behind 4 + 2, mean behind 4 + 3, bias behind 2.
    ((x - mean) / sqrt(var + eps)) weight + bias: x and mean behind 1 + 3 + 1 + 1 + 1 = 7, bias behind 1.
    """
    return error(7, size, grid)


def mean_error(terms: int, size: Tensor, grid: int | None) -> Tensor:
    """Of a mean: terms - 1 sums, and a division or the product with a rounded reciprocal. size = mean of |x|.

    grid: of the mean; unknown unless the divisor is a power of two.
    """
    return error(terms + 1, size, grid)


def sum_error(size: Tensor, grid: int | None) -> Tensor:
    """Of one sum or product. size: bound of its absolute value."""
    return error(1, size, grid)


def membrane_error(size: Tensor, grid: int | None) -> Tensor:
    """Of decay v + input_scale x + leak_bias - threshold s: a product, then at most 3 sums.

    size = |decay v| + |input_scale x| + |leak_bias| + |threshold s|, the last for a delayed reset only.
    """
    return error(4, size, grid)


def mean_grid(grid: int | None, terms: int) -> int | None:
    """The grid of a mean over so many terms: known where they are a power of two."""
    return products(grid, terms.bit_length() - 1) if terms & (terms - 1) == 0 else None


def grid_of(values: npt.ArrayLike) -> int | None:
    """The least grid >= 0 of which all values are multiples: value = integer * 2^-grid; None: finer than FINEST."""
    array = np.asarray(values, np.float64)
    bits = array.view(np.int64)
    is_power = bits & ((1 << 52) - 1) == 0  # or 0: the lowest set bit is the hidden one
    without_lowest = np.where(is_power, 0, bits & (bits - 1)).view(np.float64)
    lowest = np.abs(array - without_lowest)
    least = float(lowest.min(initial=np.inf, where=lowest > 0))
    finest = max(0, 1 - math.frexp(least)[1]) if least < np.inf else 0
    return finest if finest <= FINEST else None


def products(*grids: int | None) -> int | None:
    """The grid of a product of values on grids."""
    known = [grid for grid in grids if grid is not None]
    total = sum(known)
    return total if len(known) == len(grids) and total <= FINEST else None


def sums(grids: Iterable[int | None]) -> int | None:
    """The grid of a sum of values on grids: the finest of them."""
    finest = 0
    for grid in grids:
        if grid is None:
            return None
        finest = max(finest, grid)
    return finest


def snapped(lower: Tensor, upper: Tensor, grid: int | None) -> tuple[Tensor, Tensor]:
    """Bounds moved inwards to the next multiple of 2^-grid, as what they bound is one."""
    if grid is None:
        return lower, upper
    unit = 2.0**grid  # scaling by it is exact
    return (lower * unit).ceil() / unit, (upper * unit).floor() / unit


def outward(lower: Tensor, upper: Tensor, off: Tensor, grid: int | None) -> tuple[Tensor, Tensor]:
    """Bounds of real numbers widened by an error, then snapped to the grid."""
    return snapped(lower - off, upper + off, grid)


def magnitude(lower: Tensor, upper: Tensor) -> Tensor:
    """The largest absolute value between two bounds."""
    return torch.maximum(lower.abs(), upper.abs())
