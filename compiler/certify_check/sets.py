"""The input sets of certificates, from their data alone: hulls, members, and minima of linear forms."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from compiler.certify_check.content import Content, Fault, as_flag, as_number, as_whole, unpacked
from compiler.certify_check.rounding import Reals
from compiler.ir import DType, TensorType

Bools = npt.NDArray[np.bool_]
Values = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True, kw_only=True)
class Inputs(ABC):
    """A set of inputs; elements that differ in no member have lower == upper.

    budget: at most so many elements of a single step differ from the clean one; None: no such bound.
    Shapes: clean, lower and upper (S, F): S time steps, or 1 of an input without time, and F = C * H * W.
    """

    clean: Reals
    lower: Reals
    upper: Reals
    budget: int | None = None
    is_binary: bool = True

    @abstractmethod
    def least(self, forms: Reals) -> Reals:
        """The minimum of each form over the members, but for the rounding of f64. Shapes: (R, S, F) -> (R,)."""

    @abstractmethod
    def holds(self, x: Reals) -> bool:
        """Whether an input of the right shape is a member."""

    def contains(self, x: Values) -> bool:
        """Whether an input is a member. Shapes: any of S * F elements."""
        if x.size != self.clean.size or not np.isfinite(x).all():
            return False
        given = x.reshape(self.clean.shape).astype(np.float64)
        if self.is_binary and not np.isin(given, (0.0, 1.0)).all():
            return False
        return self.holds(given)


@dataclass(frozen=True, slots=True, kw_only=True)
class Free(Inputs):
    """Every element takes any value, or of spikes both, between its bounds."""

    def least(self, forms: Reals) -> Reals:
        ends = np.where(forms >= 0.0, self.lower, self.upper)
        return np.asarray((forms * ends).sum((1, 2)))

    def holds(self, x: Reals) -> bool:
        return bool(np.all((self.lower <= x) & (x <= self.upper)))


@dataclass(frozen=True, slots=True, kw_only=True)
class Few(Inputs):
    """Up to k of the free spikes flip, in all or (per_step) at each step."""

    free: Bools
    k: int
    per_step: bool

    def least(self, forms: Reals) -> Reals:
        gains = np.where(self.free, forms * (1.0 - 2.0 * self.clean), 0.0)
        groups = gains if self.per_step else gains.reshape(len(forms), 1, -1)
        return np.asarray((forms * self.clean).sum((1, 2)) + _most_negative(groups, self.k).sum(1))

    def holds(self, x: Reals) -> bool:
        changed = x != self.clean
        counts = changed.sum(1) if self.per_step else changed.sum(keepdims=True)
        return bool(np.all(counts <= self.k)) and not np.any(changed & ~self.free)


@dataclass(frozen=True, slots=True, kw_only=True)
class Moved(Inputs):
    """Up to k spikes stand at another step of their own train.

    Swapping the j-th dearest spike of a train for its j-th cheapest gap is best for each number of moves, and the more
    moves, the less each one gains: the k best over all trains can be made together.
    """

    k: int

    def least(self, forms: Reals) -> Reals:
        is_on = self.clean > 0.0
        dearest = -np.sort(np.where(is_on, -forms, np.inf), 1)
        cheapest = np.sort(np.where(is_on, np.inf, forms), 1)
        with np.errstate(invalid="ignore"):
            gains = np.nan_to_num(np.minimum(cheapest - dearest, 0.0), nan=0.0)
        return np.asarray((forms * self.clean).sum((1, 2)) + _most_negative(gains.reshape(len(forms), -1), self.k))

    def holds(self, x: Reals) -> bool:
        gone = int(np.sum((self.clean > 0.0) & (x == 0.0)))
        return gone <= self.k and bool(np.array_equal(x.sum(0), self.clean.sum(0)))


@dataclass(frozen=True, slots=True, kw_only=True)
class Codes(Inputs):
    """The codes (draws < v) of pixels v between two values.

    A code is that of the level v, or of a v just above one of the draws between: so many levels a pixel.
    """

    draws: Reals
    start: Reals  # (F,)
    end: Reals

    def least(self, forms: Reals) -> Reals:
        best = (forms * (self.draws < self.start)).sum(1)
        for draw in self.draws:  # all steps with a draw up to this one are on, once a pixel's value passes it
            sums = (forms * (self.draws <= draw)).sum(1)
            best = np.where((self.start <= draw) & (draw < self.end), np.minimum(best, sums), best)
        return np.asarray(best.sum(1))

    def holds(self, x: Reals) -> bool:
        highest_on = np.where(x > 0.0, self.draws, -np.inf).max(0)
        lowest_off = np.where(x > 0.0, np.inf, self.draws).min(0)
        # v f32 with highest_on < v <= lowest_off, within the ends, all of which are f32
        return bool(np.all((highest_on < lowest_off) & (highest_on < self.end) & (self.start <= lowest_off)))


def read_inputs(content: Content, kind: TensorType) -> Inputs:
    """The set of a certificate about a network with that input.

    Raises: Fault if the data are not those of a set, or do not fit.
    """
    shape = tuple(kind.size(axis) for axis in kind.axes if axis != "N")
    steps = kind.size("T") if kind.has("T") else 1
    name = str(content.get("kind"))
    if name not in _READERS:
        raise Fault(f"{name!r} is no kind of input set")
    if name == "linf":
        clean = unpacked(content.get("clean"), np.float32, shape).astype(np.float64)
    else:
        clean = unpacked(content.get("clean"), np.bool_, shape).astype(np.float64)
    if not np.isfinite(clean).all():
        raise Fault("the clean input is not finite")
    inputs = _READERS[name](content, clean.reshape(steps, -1), shape)
    if kind.dtype is DType.SPIKE and not inputs.is_binary:
        raise Fault("the network takes spikes, the set has other values")
    return inputs


def _box(content: Content, clean: Reals, shape: tuple[int, ...]) -> Inputs:
    free = unpacked(content.get("free"), np.bool_, shape).reshape(clean.shape)
    return Free(clean=clean, lower=np.where(free, 0.0, clean), upper=np.where(free, 1.0, clean))


def _l0(content: Content, clean: Reals, shape: tuple[int, ...]) -> Inputs:
    free = unpacked(content.get("free"), np.bool_, shape).reshape(clean.shape)
    k = as_whole(content.get("k"))
    moving = free & (k > 0)
    per_step = as_flag(content.get("per_step"))
    if per_step and len(clean) != shape[0]:
        raise Fault("a budget for each step needs an input over time")
    return Few(
        clean=clean,
        lower=np.where(moving, 0.0, clean),
        upper=np.where(moving, 1.0, clean),
        budget=k,
        free=free,
        k=k,
        per_step=per_step,
    )


def _retiming(content: Content, clean: Reals, shape: tuple[int, ...]) -> Inputs:
    k = as_whole(content.get("moved"))
    counts = clean.sum(0)
    moving = (counts > 0) & (counts < len(clean)) & (k > 0)
    lower, upper = np.where(moving, 0.0, clean), np.where(moving, 1.0, clean)
    return Moved(clean=clean, lower=lower, upper=upper, budget=k, k=k)


def _linf(content: Content, clean: Reals, shape: tuple[int, ...]) -> Inputs:
    least, most = as_number(content.get("least")), as_number(content.get("most"))
    lower, upper = _around(clean, as_number(content.get("eps")), least, most)
    return Free(clean=clean, lower=lower, upper=upper, is_binary=False)


def _chain(content: Content, clean: Reals, shape: tuple[int, ...]) -> Inputs:
    image = unpacked(content.get("image"), np.float32, shape[1:]).astype(np.float64).reshape(-1)
    draws = unpacked(content.get("draws"), np.float32, shape).astype(np.float64).reshape(clean.shape)
    if not np.isfinite(draws).all() or not np.isfinite(image).all():
        raise Fault("an image or its draws are not finite")
    start, end = _around(image, as_number(content.get("eps")), 0.0, 1.0)
    if not np.array_equal(clean, draws < image):
        raise Fault("the clean input is not the code of the image")
    lower, upper = (draws < start).astype(np.float64), (draws < end).astype(np.float64)
    return Codes(clean=clean, lower=lower, upper=upper, draws=draws, start=start, end=end)


def _most_negative(gains: Reals, k: int) -> Reals:
    """The sum of up to k negative values along the last axis, the least of them."""
    if 0 < k < gains.shape[-1]:
        gains = np.partition(gains, k - 1, -1)[..., :k]
    return np.asarray(np.minimum(gains, 0.0).sum(-1)) * (k > 0)


def _around(center: Reals, eps: float, least: float, most: float) -> tuple[Reals, Reals]:
    """The least and the largest number of f32 within eps and the range."""
    if eps < 0.0:
        raise Fault(f"eps is {eps:g}")
    low, high = np.maximum(center - eps, least), np.minimum(center + eps, most)
    start, end = low.astype(np.float32), high.astype(np.float32)
    start = np.where(start < low, np.nextafter(start, np.float32(np.inf)), start)
    end = np.where(end > high, np.nextafter(end, np.float32(-np.inf)), end)
    if np.any(start > center) or np.any(center > end):
        raise Fault("the clean input is not in its own set")
    return start.astype(np.float64), end.astype(np.float64)


_READERS = {"box": _box, "l0": _l0, "retiming": _retiming, "linf": _linf, "chain": _chain}
