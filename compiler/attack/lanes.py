"""Which samples go through the network together: each at the place of its index, finished ones make room."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

from compiler.attack.victim import BLOCK

LANES = 4  # blocks at once: few places stay empty when samples leave

Item = TypeVar("Item")


class Lanes(Generic[Item]):
    """Items that wait for one of their places: a sample's place in a block always is that of its index."""

    def __init__(self, items: Iterator[Item], sample: Callable[[Item], int], *, blocks: int = LANES) -> None:
        """sample: the index of an item's sample; blocks: as many go through the network at once."""
        self._items, self._sample, self._blocks = items, sample, blocks
        self._waiting: list[deque[Item]] = [deque() for _ in range(BLOCK)]

    def fill(self, taken: set[int]) -> list[tuple[int, Item]]:
        """Items for the places that are free, with their places."""
        filled = []
        for place in range(self._blocks * BLOCK):
            if place not in taken:
                filled += [(place, item) for item in self._next(place % BLOCK)]
        return filled

    def _next(self, residue: int) -> list[Item]:
        """The next item of a place, if there is one."""
        own = self._waiting[residue]
        while not own:
            found = next(self._items, None)
            if found is None:
                return []
            self._waiting[self._sample(found) % BLOCK].append(found)
        return [own.popleft()]
