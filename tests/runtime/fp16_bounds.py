"""How far the machine's FP16 gradients may lie from those in real numbers: a running error analysis.

A `Bounded` is the value of one quantity in real numbers and a bound on the distance of the machine's. Every rule
below takes the bounds of its operands and adds what one more rounding can do, so that the bound of a result follows
from the operations that made it, in the documented order, and from nothing else.

One operation. FP16 has 11 significant bits and rounds to nearest, so for a result x of real numbers

    |fl(x) - x| <= U |x| / (1 + U) < U |x|,  U = 2^-11      where |x| >= 2^-14, the smallest normal number
    |fl(x) - x| <= TINY = 2^-25                             below: half the spacing 2^-24 of subnormal numbers

A sum of FP16 numbers is a multiple of 2^-24. Up to 2^-13 these are all FP16 numbers, so a sum is exact there. A sum
with 0 and a product with 0 or 1 are exact; a product with another power of two is exact but for TINY.

A sum of n terms, in any order, each of which passes at most h additions. Each addition multiplies what it holds by
some 1 + delta, |delta| <= U, so a term arrives multiplied by at most (1 + U)^h <= 1 + gamma(h),
gamma(h) = h U / (1 - h U), and

    |fl(sum) - sum| <= gamma(h) sum |term|

h is the longest chain in the documented order, and at most n' - 1, n' the terms that are not 0: an addition of 0
is exact, and n' terms need n' - 1 others. Where the terms are rounded products, h grows by one, and each of the n'
products adds TINY, which the additions multiply like a term: n' TINY (1 + gamma(h)).

The real numbers are f64 here. Its rounding, 2^-53 an operation, hides in U - U / (1 + U) > 2^-23 of each rounding,
and where no FP16 operation rounds, f64 does not round either (sums of multiples of 2^-24 below 2^28).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import conv2d, conv_transpose2d, pad
from torch.nn.grad import conv2d_weight

from compiler.ir import Reset
from compiler.ir.ops import AvgPool2d, Conv2d, Li, Lif

U = 2.0**-11
TINY = 2.0**-25
EXACT_SUM = 2.0**-13  # multiples of 2^-24 up to here are FP16 numbers


@dataclass(frozen=True, slots=True)
class Bounded:
    """A value in f64, and how far the machine's may lie from it."""

    value: Tensor
    error: Tensor

    @property
    def reach(self) -> Tensor:
        """The largest magnitude that the machine's value may have."""
        return self.value.abs() + self.error

    def __getitem__(self, index: object) -> Bounded:
        return Bounded(self.value[index], self.error[index])  # type: ignore[index]

    def __neg__(self) -> Bounded:
        return Bounded(-self.value, self.error)

    def where(self, mask: Tensor) -> Bounded:
        """+0 where the mask is 0."""
        return Bounded(torch.where(mask > 0, self.value, 0.0), torch.where(mask > 0, self.error, 0.0))

    def excess(self, machine: Tensor) -> float:
        """By how much the machine's value breaks the bound; not above 0 if it holds."""
        assert machine.shape == self.value.shape
        return float(((machine - self.value).abs() - self.error).max()) if machine.numel() else 0.0


def exact(value: Tensor) -> Bounded:
    """A value that the machine holds as it is."""
    return Bounded(value, torch.zeros_like(value))


def product(left: Bounded, right: Bounded) -> Bounded:
    """round(left * right).

    The operands may be off by their errors, |l r - l' r'| <= |l| er + |r| el + el er; then one rounding of at most
    max(U |l' r'|, TINY), or TINY alone or nothing where an operand is a power of two or 0.
    """
    value = left.value * right.value
    carried = left.value.abs() * right.error + right.value.abs() * left.error + left.error * right.error
    rounding = torch.clamp(U * (value.abs() + carried), min=TINY)
    for factor in (left, right):
        size = factor.value.abs()
        is_power = (torch.frexp(size).mantissa == 0.5) & (factor.error == 0)
        rounding = torch.where(is_power, torch.clamp(rounding, max=TINY), rounding)
        rounding = torch.where((is_power & (size >= 1)) | ((size == 0) & (factor.error == 0)), 0.0, rounding)
    return Bounded(value, carried + rounding)


def total(left: Bounded, right: Bounded) -> Bounded:
    """round(left + right): the errors add, and one rounding of U |l' + r'|, or nothing for small sums or with 0."""
    value, carried = left.value + right.value, left.error + right.error
    reach = value.abs() + carried
    is_exact = (reach <= EXACT_SUM) | (left.reach == 0) | (right.reach == 0)
    return Bounded(value, carried + torch.where(is_exact, 0.0, U * reach))


def gamma(additions: Tensor) -> Tensor:
    """Relative error of as many roundings; no bound exists from 1 / U on."""
    assert not additions.numel() or float(additions.max()) * U < 1
    return additions * U / (1 - additions * U)


@dataclass(frozen=True, slots=True, kw_only=True)
class Terms:
    """The terms of sums, as three tensors of the sums' shape, and what the operands' errors add up to."""

    value: Tensor  # sums
    magnitude: Tensor  # sums of the machine's magnitudes
    count: Tensor  # terms that are not 0
    carried: Tensor

    def summed(self, additions: int, *, products: bool) -> Bounded:
        """The sums, by at most as many additions in a chain, of terms that are rounded products or exact."""
        chain = torch.clamp(self.count - 1, min=0, max=additions)
        if not products:
            return Bounded(self.value, self.carried + gamma(chain) * self.magnitude)
        flushed = self.count * TINY * (1 + gamma(chain))
        growth = gamma(chain + (self.count > 0))
        return Bounded(self.value, self.carried + growth * self.magnitude + flushed)


def input_gradient(dy: Bounded, weight: Tensor, op: Conv2d | None, size: tuple[int, ...], additions: int) -> Bounded:
    """Equation 2.4, spatial part: dx = sum of round(weight * dy) over taps and output channels.

    Shapes: dy (T, N, O, H', W'), weight (O, C / groups, kh, kw), size the shape of dx; or (T, N, O), (O, C), no op.
    """

    def spread(w: Tensor, g: Tensor) -> Tensor:
        if op is None:
            return g @ w
        flat = conv_transpose2d(g.flatten(0, 1), w, stride=op.stride, groups=op.groups)
        top, left = op.padding
        height, width = size[-2:]
        missing = (max(0, left + width - flat.shape[3]), max(0, top + height - flat.shape[2]))
        whole = pad(flat, (0, missing[0], 0, missing[1]))[:, :, top : top + height, left : left + width]
        return whole.reshape(size)

    terms = Terms(
        value=spread(weight, dy.value),
        magnitude=spread(weight.abs(), dy.reach),
        count=spread(_ones(weight), _ones(dy.reach)),
        carried=spread(weight.abs(), dy.error),
    )
    return terms.summed(additions, products=True)


def weight_gradient(
    dy: Bounded, x: Tensor, shape: tuple[int, ...], op: Conv2d | None, additions: int, *, real: bool
) -> Bounded:
    """Equation 2.7: dweight = sum of dy over the positions where x spikes, or of round(x * dy) where x is `real`.

    Shapes: dy as in `input_gradient`, x (T, N, C, ...), shape of the weights.
    """

    def correlate(source: Tensor, g: Tensor) -> Tensor:
        if op is None:
            return g.flatten(0, 1).T @ source.flatten(0, 1)
        found: Tensor = conv2d_weight(source.flatten(0, 1), shape, g.flatten(0, 1), op.stride, op.padding, 1, op.groups)
        return found

    terms = Terms(
        value=correlate(x, dy.value),
        magnitude=correlate(x.abs(), dy.reach),
        count=correlate(_ones(x), _ones(dy.reach)),
        carried=correlate(x.abs(), dy.error),
    )
    return terms.summed(additions, products=real)


def bias_gradient(dy: Bounded, additions: int) -> Bounded:
    """Equation 2.8: sums of dy over all but the channels; where they are products, these are by 1."""
    axes = [axis for axis in range(dy.value.ndim) if axis != 2]
    terms = Terms(
        value=dy.value.sum(axes),
        magnitude=dy.reach.sum(axes),
        count=_ones(dy.reach).sum(axes),
        carried=dy.error.sum(axes),
    )
    return terms.summed(additions, products=False)


def accumulated(parts: list[Bounded]) -> Bounded:
    """The sum over sub-batches in Mem 2, one addition each."""
    result = parts[0]
    for part in parts[1:]:
        result = total(result, part)
    return result


@dataclass(frozen=True, slots=True, kw_only=True)
class Numbers:
    """A neuron's numbers as the machine rounds them, shaped to broadcast along the channels."""

    decay: Tensor
    threshold: Tensor
    reset_value: Tensor
    input_scale: Tensor
    eta: Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class Kept:
    """What the forward pass kept of a neuron. Shapes: (T, N, C, ...); None where it is not needed."""

    spikes: Tensor | None = None
    mask: Tensor | None = None
    membrane: Tensor | None = None


def neuron_backward(given: Bounded, op: Lif | Li, numbers: Numbers, kept: Kept) -> Bounded:
    """Equations 2.4 and 2.5 from the last step to the first, each operation by `product` or `total`.

    The error of dm[t + 1] reaches dm[t] through decay and, where the reset is not detached, through the surrogate:
    it is carried from step to step like the value.
    """
    steps = len(given.value)
    zero = exact(torch.zeros_like(given.value[0]))
    dm, found = zero, []
    for t in reversed(range(steps)):
        g = product(_spread(numbers.decay, zero), dm)
        dm = total(given[t], g) if isinstance(op, Li) else _fired(given[t], g, t, op, numbers, kept)
        scaled = dm if bool((numbers.input_scale == 1).all()) else product(_spread(numbers.input_scale, zero), dm)
        found.append(scaled)
    found.reverse()
    return Bounded(torch.stack([f.value for f in found]), torch.stack([f.error for f in found]))


def _fired(given: Bounded, g: Bounded, t: int, op: Lif, numbers: Numbers, kept: Kept) -> Bounded:
    ds = given
    if not op.detach_reset and op.reset is Reset.HARD:
        assert kept.membrane is not None
        change = total(_spread(numbers.reset_value, g), exact(-kept.membrane[t]))
        ds = total(given, product(g, change))
    elif not op.detach_reset and op.reset is Reset.SOFT:
        ds = total(given, -product(g, _spread(numbers.threshold, g)))
    assert kept.mask is not None
    through_spike = product(ds, _spread(numbers.eta, g)).where(kept.mask[t])
    if op.reset is Reset.HARD:
        assert kept.spikes is not None
        g = g.where(1 - kept.spikes[t])
    return total(g, through_spike)


def average_backward(dy: Bounded, op: AvgPool2d, size: tuple[int, ...]) -> Bounded:
    """round(dy * FP16(1 / n)) to each of the n elements of a window; the reciprocal's own error is known exactly."""
    rows, columns = (torch.arange(dy.value.shape[axis]) * op.kernel[axis] for axis in (-2, -1))
    inside = [torch.clamp(size[axis] - start, max=op.kernel[axis]) for axis, start in ((-2, rows), (-1, columns))]
    share = 1.0 / (inside[0][:, None] * inside[1]).to(torch.float64)
    rounded = torch.from_numpy(share.numpy().astype(np.float16).astype(np.float64))
    part = product(dy, Bounded(share.expand_as(dy.value), (rounded - share).abs().expand_as(dy.value)))
    return Bounded(_repeated(part.value, op, size), _repeated(part.error, op, size))


def maximum_backward(dy: Bounded, winners: Tensor, size: tuple[int, ...]) -> Bounded:
    """All of dy to the winner, row * W + column; nothing is rounded."""

    def scattered(values: Tensor) -> Tensor:
        flat = values.new_zeros(*size[:-2], size[-2] * size[-1])
        flat.scatter_(-1, winners.flatten(-2), values.flatten(-2))
        return flat.reshape(size)

    return Bounded(scattered(dy.value), scattered(dy.error))


def convolved(x: Tensor, weight: Tensor, op: Conv2d) -> Tensor:
    """A convolution over time and sample. Shapes: (T, N, C, H, W) -> (T, N, O, H', W')."""
    y = conv2d(x.flatten(0, 1), weight, None, op.stride, op.padding, 1, op.groups)
    return y.reshape(*x.shape[:2], *y.shape[1:])


def _repeated(values: Tensor, op: AvgPool2d, size: tuple[int, ...]) -> Tensor:
    wide = values.repeat_interleave(op.kernel[0], -2).repeat_interleave(op.kernel[1], -1)
    height, width = size[-2:]
    missing = (max(0, width - wide.shape[-1]), max(0, height - wide.shape[-2]))
    return pad(wide, (0, missing[0], 0, missing[1]))[..., :height, :width]


def _ones(values: Tensor) -> Tensor:
    return (values != 0).to(torch.float64)


def _spread(number: Tensor, like: Bounded) -> Bounded:
    return exact(number.expand_as(like.value))
