"""Spikes that move in time, each at its own position."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import combinations

import numpy as np
import numpy.typing as npt
from torch import Tensor

from compiler.certify.input_checks import (
    LOC,
    Doubles,
    Floats,
    check_form,
    fill,
    hull,
    is_spikes,
    least_sum,
    spikes,
    tensor,
    total,
)
from hwmodel.errors import CompileError


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Retiming:
    """Spikes of which at most `moved` stand at another step of their position's train: counts are kept.

    {x binary : sum over t of x = that of clean, at each position; |clean and not x| <= moved in all}

    min of a.x is exact: the j-th spike moved in a train costs least by leaving the step with the j-th largest a among
    those with a spike, for the step with the j-th least a among those without. This cost grows with j, so that the
    `moved` most negative ones of all trains together are a choice that can be made.

    Shapes: clean (T, C, ...).
    Raises: CompileError if clean is not binary or moved is negative.
    """

    clean: Floats
    moved: int
    lower: Doubles = field(init=False)
    upper: Doubles = field(init=False)

    def __post_init__(self) -> None:
        clean = spikes(self.clean)
        if self.moved < 0:
            raise CompileError(f"{self.moved} spikes are to be moved, must be at least 0", LOC)
        rates = clean.mean(0)
        movable = (rates > 0) & (rates < 1) & (self.moved > 0)
        fill(self, clean=clean, **hull(clean, movable))

    @property
    def shape(self) -> tuple[int, ...]:
        return self.clean.shape

    @property
    def step_flips(self) -> int | None:
        return self.moved  # a spike that leaves a step, or comes to it, is one move

    @property
    def is_binary(self) -> bool:
        return True

    def support(self, a: Tensor) -> Tensor:
        check_form(a, self.shape)
        axis = a.ndim - len(self.shape)
        is_on = tensor(self.clean > 0)
        leaving = (-a).masked_fill(~is_on, math.inf).sort(axis).values
        coming = a.masked_fill(is_on, math.inf).sort(axis).values
        costs = (leaving + coming).clamp(max=0.0).flatten(axis)
        best = least_sum(costs, self.moved)
        return total(a * tensor(self.clean), self.shape) + best

    def contains(self, x: npt.ArrayLike) -> bool:
        given = np.asarray(x)
        if not is_spikes(given, self.shape):
            return False
        gone = int(((self.clean > 0) & (given == 0)).sum())
        return gone <= self.moved and bool(np.array_equal(given.sum(0), self.clean.sum(0)))

    def sample(self, generator: np.random.Generator, count: int) -> Floats:
        made = np.repeat(self.clean[None], count, 0)
        trains = np.flatnonzero((self.lower < self.upper).any(0))
        for x in made:
            columns = x.reshape(len(x), -1)
            for train in generator.choice(trains, generator.integers(self.moved + 1)) if len(trains) else ():
                column = columns[:, train]
                column[generator.choice(np.flatnonzero(column))] = 0
                column[generator.choice(np.flatnonzero(column == 0))] = 1
        return made

    def members(self) -> Iterator[Floats]:
        yield from self._rest(self.clean.copy(), 0, self.moved)

    @property
    def count(self) -> int | None:
        ways = [1] + [0] * self.moved  # by number of moves
        for size in self.clean.reshape(len(self.clean), -1).sum(0).astype(int).tolist():
            own = [math.comb(size, j) * math.comb(len(self.clean) - size, j) for j in range(self.moved + 1)]
            ways = [sum(ways[i] * own[j - i] for i in range(j + 1)) for j in range(self.moved + 1)]
        return sum(ways)

    def _rest(self, x: Floats, train: int, moves: int) -> Iterator[Floats]:
        """All ways to move up to so many spikes in the trains from one on."""
        columns = x.reshape(len(x), -1)
        if train == columns.shape[1]:
            yield x.copy()
            return
        own = self.clean.reshape(len(x), -1)[:, train]
        for size in range(min(moves, int(own.sum()), int((own == 0).sum())) + 1):
            for leaving in combinations(np.flatnonzero(own), size):
                for coming in combinations(np.flatnonzero(own == 0), size):
                    columns[:, train] = own
                    columns[list(leaving), train] = 0
                    columns[list(coming), train] = 1
                    yield from self._rest(x, train + 1, moves - size)
        columns[:, train] = own
