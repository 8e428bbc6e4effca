"""What an attacker may turn one sample into: sets of inputs, each with the exact minimum of a linear form over it."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import StrEnum
from itertools import combinations, product
from typing import Protocol

import numpy as np
import numpy.typing as npt
from torch import Tensor

from compiler.certify.chain import Chain
from compiler.certify.input_checks import (
    LOC,
    Bools,
    Doubles,
    Floats,
    check_form,
    fill,
    finite,
    hull,
    is_spikes,
    least_sum,
    mask_of,
    real_interval,
    spikes,
    tensor,
    total,
)
from compiler.certify.retiming import Retiming
from hwmodel.errors import CompileError

__all__ = ["Box", "Chain", "Flips", "InputSet", "L0Ball", "LinfReal", "Retiming"]


class InputSet(Protocol):
    """A set of inputs around one sample, as `evaluate` takes them: f32.

    clean: the sample itself, a member. lower, upper: the hull; every value between is that of some member, or, of
    spikes, both values are. step_flips: at any one step, what members may hold is the clean step with up to that
    many of the elements where lower < upper at their other value; None: the hull of the step itself.
    is_binary: whether all values are 0 or 1.

    Shapes: without N: spikes (T, C, ...), reals of a direct code (C, ...).
    """

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def clean(self) -> Floats: ...

    @property
    def lower(self) -> Doubles: ...

    @property
    def upper(self) -> Doubles: ...

    @property
    def step_flips(self) -> int | None: ...

    @property
    def is_binary(self) -> bool: ...

    def support(self, a: Tensor) -> Tensor:
        """The minimum over the set of sum(a * x), exact but for the rounding of f64 (callers add a margin for it).

        Shapes: a f64 (..., *shape) -> (...).
        """

    def contains(self, x: npt.ArrayLike) -> bool:
        """Whether an input is a member."""

    def sample(self, generator: np.random.Generator, count: int) -> Floats:
        """Some members, drawn from no particular distribution. Shapes: (count, *shape)."""

    def members(self) -> Iterator[Floats]:
        """All members, each once.

        Raises: CompileError if the set is not finite.
        """

    @property
    def count(self) -> int | None:
        """How many members there are; None: not finitely many."""


class Flips(StrEnum):
    """Which spikes of a clean input may change."""

    BOTH = "both"
    INSERT = "insert"  # 0 -> 1
    DELETE = "delete"  # 1 -> 0


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Box:
    """Spikes of which any number of the free ones may flip, and no other.

    {x : x[i] in {0, 1} where free, else clean[i]}

    Source: equation 6.9, whose set this is: of picked elements, not of all with that many flips.
    Raises: CompileError if clean is not binary or free has another shape.
    """

    clean: Floats
    free: Bools
    lower: Doubles = field(init=False)
    upper: Doubles = field(init=False)

    def __post_init__(self) -> None:
        clean = spikes(self.clean)
        free = mask_of(self.free, clean.shape)
        fill(self, clean=clean, free=free, **hull(clean, free))

    @property
    def shape(self) -> tuple[int, ...]:
        return self.clean.shape

    @property
    def step_flips(self) -> int | None:
        return None

    @property
    def is_binary(self) -> bool:
        return True

    def support(self, a: Tensor) -> Tensor:
        check_form(a, self.shape)
        fixed = a * tensor(np.where(self.free, 0.0, self.clean))
        return total(fixed + a.clamp(max=0.0) * tensor(self.free), self.shape)

    def contains(self, x: npt.ArrayLike) -> bool:
        given = np.asarray(x)
        return is_spikes(given, self.shape) and not np.any((given != self.clean) & ~self.free)

    def sample(self, generator: np.random.Generator, count: int) -> Floats:
        flips = self.free & (
            generator.random((count, *self.shape)) < generator.random((count, *(1,) * len(self.shape)))
        )
        return np.where(flips, 1 - self.clean, self.clean)

    def members(self) -> Iterator[Floats]:
        where = np.flatnonzero(self.free)
        for values in product((0.0, 1.0), repeat=len(where)):
            x = self.clean.copy()
            x.flat[where] = values
            yield x

    @property
    def count(self) -> int | None:
        return int(2 ** int(self.free.sum()))


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class L0Ball:
    """Spikes with at most k flips, of all steps together or in each step.

    {x binary : |x - clean|_0 <= k};   min of a.x = a.clean + the k most negative of a[i] (1 - 2 clean[i])

    mask: where flips may be (everywhere unless given). flips: which kinds. per_step: k counts for each step (axis 0).
    Raises: CompileError if clean is not binary, mask has another shape, k is negative or above the number of
    elements that may flip (per_step: in every step).
    """

    clean: Floats
    k: int
    mask: Bools | None = None
    flips: Flips = Flips.BOTH
    per_step: bool = False
    free: Bools = field(init=False)
    lower: Doubles = field(init=False)
    upper: Doubles = field(init=False)

    def __post_init__(self) -> None:
        clean = spikes(self.clean)
        free = np.ones(clean.shape, bool) if self.mask is None else mask_of(self.mask, clean.shape)
        if self.flips is not Flips.BOTH:
            free = free & (clean == (0.0 if self.flips is Flips.INSERT else 1.0))
        groups = free.reshape(len(clean), -1).sum(1) if self.per_step else free.sum(keepdims=True)
        if not 0 <= self.k <= groups.max():
            where = " of a step" if self.per_step else ""
            raise CompileError(
                f"{self.k} flips are to be allowed, of {groups.max()} elements{where} that may flip",
                LOC,
                hint=f"take a k from 0 to {groups.max()}",
            )
        movable = free & (self.k > 0)
        fill(self, clean=clean, free=free, **hull(clean, movable))

    @property
    def shape(self) -> tuple[int, ...]:
        return self.clean.shape

    @property
    def step_flips(self) -> int | None:
        return self.k

    @property
    def is_binary(self) -> bool:
        return True

    def support(self, a: Tensor) -> Tensor:
        check_form(a, self.shape)
        clean = tensor(self.clean).double()
        gains = (a * (1 - 2 * clean)).clamp(max=0.0) * tensor(self.free)
        axes = len(self.shape)
        gains = gains.flatten(1 - axes) if self.per_step and axes > 1 else gains.flatten(-axes)
        gains = gains[..., None] if self.per_step and axes == 1 else gains
        best = least_sum(gains, self.k)
        return total(a * clean, self.shape) + (best.sum(-1) if self.per_step else best)

    def contains(self, x: npt.ArrayLike) -> bool:
        given = np.asarray(x)
        if not is_spikes(given, self.shape):
            return False
        changed = given != self.clean
        most = changed.reshape(len(changed), -1).sum(1).max() if self.per_step else changed.sum()
        return bool(most <= self.k) and not np.any(changed & ~self.free)

    def sample(self, generator: np.random.Generator, count: int) -> Floats:
        made = np.repeat(self.clean[None], count, 0)
        for x in made:
            for group in self._groups():
                size = generator.integers(min(self.k, len(group)) + 1)
                chosen = generator.permutation(group)[:size]
                x.flat[chosen] = 1 - x.flat[chosen]
        return made

    def members(self) -> Iterator[Floats]:
        choices = (
            [some for size in range(self.k + 1) for some in combinations(group, size)] for group in self._groups()
        )
        for chosen in product(*choices):
            where = [i for some in chosen for i in some]
            x = self.clean.copy()
            x.flat[where] = 1 - x.flat[where]
            yield x

    @property
    def count(self) -> int | None:
        return math.prod(sum(math.comb(len(group), size) for size in range(self.k + 1)) for group in self._groups())

    def _groups(self) -> list[npt.NDArray[np.int64]]:
        """Flat indices of the elements that share a budget of k flips."""
        where = np.flatnonzero(self.free)
        if not self.per_step:
            return [where]
        size = self.free[0].size
        return [where[where // size == t] for t in range(len(self.clean))]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class LinfReal:
    """Real inputs within eps of one, element by element: what a direct code repeats at each step.

    {x f32 : |x - clean| <= eps, x in [clip[0], clip[1]]}

    Raises: CompileError if eps is negative, the clip range empty, or the clean input not in it.
    """

    clean: Floats
    eps: float
    clip: tuple[float, float] = (0.0, 1.0)
    lower: Doubles = field(init=False)
    upper: Doubles = field(init=False)

    def __post_init__(self) -> None:
        clean = finite(self.clean, "clean input")
        least, most = self.clip
        if clean.min() < least or clean.max() > most:
            raise CompileError(
                f"the input has values from {clean.min():g} to {clean.max():g}, not in [{least:g}, {most:g}]",
                LOC,
                hint="give the range of values that the network takes as clip",
            )
        lower, upper = real_interval(clean, self.eps, self.clip)
        fill(self, clean=clean, lower=lower.astype(np.float64), upper=upper.astype(np.float64))

    @property
    def shape(self) -> tuple[int, ...]:
        return self.clean.shape

    @property
    def step_flips(self) -> int | None:
        return None

    @property
    def is_binary(self) -> bool:
        return False

    def support(self, a: Tensor) -> Tensor:
        check_form(a, self.shape)
        lower, upper = tensor(self.lower), tensor(self.upper)
        return total(a.clamp(min=0.0) * lower + a.clamp(max=0.0) * upper, self.shape)

    def contains(self, x: npt.ArrayLike) -> bool:
        given = np.asarray(x)
        return given.shape == self.shape and bool(np.all((self.lower <= given) & (given <= self.upper)))

    def sample(self, generator: np.random.Generator, count: int) -> Floats:
        """Half of the elements within the interval, half at one of its ends."""
        shape = (count, *self.shape)
        inside = np.clip(generator.uniform(self.lower, self.upper, shape), self.lower, self.upper)
        ends = np.where(generator.random(shape) < 0.5, self.lower, self.upper)
        return np.where(generator.random(shape) < 0.5, inside, ends).astype(np.float32)

    def members(self) -> Iterator[Floats]:
        if self.count is None:
            raise CompileError("a set of real inputs has no list of members", LOC)
        yield self.clean.copy()

    @property
    def count(self) -> int | None:
        return 1 if np.array_equal(self.lower, self.upper) else None
