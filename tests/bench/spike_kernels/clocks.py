"""Calls timed in turn in one process, and what their paired times say."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping
from enum import StrEnum
from typing import TypeVar

LEVEL = 0.95
FEWEST_PAIRS = 6  # below, no two of the pairs bound the median at that level
Key = TypeVar("Key")
Call = Callable[[], object]


class Clock(StrEnum):
    """What is measured of a call."""

    WALL = "wall"
    CPU = "cpu"  # of all threads of this process: on a loaded machine, of one thread

    def now(self) -> float:
        """Seconds since some moment."""
        return time.perf_counter() if self is Clock.WALL else time.process_time()


def in_turn(calls: Mapping[Key, Call], rounds: int, clock: Clock) -> dict[Key, list[float]]:
    """Seconds of each call in each round, after one round that counts for nothing; every other one is reversed."""
    for call in calls.values():
        call()
    seconds: dict[Key, list[float]] = {key: [] for key in calls}
    for index in range(rounds):
        for key in calls if index % 2 == 0 else reversed(list(calls)):
            start = clock.now()
            calls[key]()
            seconds[key].append(clock.now() - start)
    return seconds


def median_interval(values: Iterable[float]) -> tuple[float, float]:
    """Two of the values that the median of their distribution lies between, at `LEVEL` or more.

    The number of values below the median is binomial(n, 1/2), whatever the distribution.
    Raises: ValueError for fewer than `FEWEST_PAIRS`.
    """
    ordered = sorted(values)
    count = len(ordered)
    if count < FEWEST_PAIRS:
        raise ValueError(f"{count} values bound no median at {LEVEL:.0%}, {FEWEST_PAIRS} do")
    outside, left_out = 0, 0  # of 2 ** count equally likely patterns; values beyond the interval at each end
    while 2 * (outside + math.comb(count, left_out)) <= (1 - LEVEL) * 2**count:
        outside += math.comb(count, left_out)
        left_out += 1
    return ordered[left_out - 1], ordered[-left_out]
