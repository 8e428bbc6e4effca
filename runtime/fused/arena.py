"""Scratch memory of a fused module: one block planned before the first step, and a count of what did not fit."""

from __future__ import annotations

import itertools
import math
import threading
import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef

from compiler.fused.arena import ALIGNMENT_BYTES, Key, Place

_CPU = torch.device("cpu")
Planner = Callable[[int], Mapping[Key, Place]]  # batch -> places of its buffers


@dataclass(slots=True)
class _Block:
    """Memory, and the storages handed out from it that somebody still holds."""

    memory: npt.NDArray[np.uint8]
    issued: list[tuple[int, int, StorageWeakRef]] = field(default_factory=list)

    def free(self, first: int, last: int) -> bool:
        """Whether nobody holds a byte of the range; forgets what has been let go there."""
        there = [entry for entry in self.issued if first < entry[1] and entry[0] < last]
        for entry in there:
            if not torch.UntypedStorage._expired(entry[2].cdata):  # as StorageWeakRef.expired, without its detours
                return False
            self.issued.remove(entry)
        return True

    def issue(self, first: int, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        count = math.prod(shape)
        tensor = torch.frombuffer(self.memory, dtype=dtype, count=count, offset=first).view(shape)
        reference = StorageWeakRef(tensor.untyped_storage())  # type: ignore[no-untyped-call]
        self.issued.append((first, first + count * dtype.itemsize, reference))
        return tensor


class Arena:
    """Hands out buffers at their planned places; never one that a live tensor overlaps.

    The plan is made for the first batch, and again for each that is larger.

    A buffer that the plan does not know, that outgrew its place, or whose place is still in use (two forward passes
    before a backward pass, a retained graph) comes from a further block, which is kept and used again: `growths`
    counts how many such blocks were made.
    """

    def __init__(self, planner: Planner | None = None) -> None:
        self._planner, self._batch = planner, 0
        self._places: Mapping[Key, Place] = {}
        self._planned = _Block(_memory(0))
        self._spare: list[_Block] = []
        self._lock = threading.Lock()
        self.growths = 0
        self.number = next(_NUMBERS)  # by which ops find it while it lives
        _ARENAS[self.number] = self

    def __deepcopy__(self, memo: object) -> Arena:
        return Arena(self._planner)

    def __reduce__(self) -> tuple[type[Arena], tuple[Planner | None]]:
        return Arena, (self._planner,)

    def prepare(self, batch: int) -> None:
        """Make room for a step on that many samples; buffers of a larger plan fit a smaller batch."""
        if self._planner is None or batch <= self._batch:
            return
        places = self._planner(batch)
        size = max((place.offset + place.size_bytes for place in places.values()), default=0)
        with self._lock:
            self._places, self._batch = places, batch
            self._planned, self._spare = _Block(_memory(size)), []  # tensors from before keep their memory

    @property
    def size_bytes(self) -> int:
        """All memory that the arena holds."""
        return sum(block.memory.nbytes for block in (self._planned, *self._spare))

    def take(self, key: Key, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device = _CPU) -> Tensor:
        """A buffer of undefined contents; it is free again when its last tensor dies.

        On a GPU it comes from torch's own allocator, which keeps blocks: after the first step none is asked for.
        """
        if device != _CPU:
            return torch.empty(shape, dtype=dtype, device=device)
        size = math.prod(shape) * dtype.itemsize
        if size == 0:
            return torch.empty(shape, dtype=dtype)
        with self._lock:
            place = self._places.get(key)
            fits = place is not None and size <= place.size_bytes
            if place is not None and fits and self._planned.free(place.offset, place.offset + size):
                return self._planned.issue(place.offset, shape, dtype)
            return self._spare_block(size).issue(0, shape, dtype)

    def _spare_block(self, size: int) -> _Block:
        """The smallest free block that is large enough, or a new one.

        No block of more than twice the size: a small tensor that somebody keeps must not hold it.
        """
        sized = [block for block in self._spare if size <= block.memory.nbytes <= 2 * size]
        fitting = [block for block in sized if block.free(0, block.memory.nbytes)]
        if fitting:
            return min(fitting, key=lambda block: block.memory.nbytes)
        block = _Block(_memory(size))
        self._spare.append(block)
        self.growths += 1
        return block


_NUMBERS = itertools.count()
_ARENAS: weakref.WeakValueDictionary[int, Arena] = weakref.WeakValueDictionary()


def arena_of(number: int) -> Arena:
    """The arena, or a common one for graphs that outlived it."""
    return _ARENAS.get(number, _COMMON)


def _memory(size_bytes: int) -> npt.NDArray[np.uint8]:
    """Uninitialised memory that starts at a vector's boundary."""
    raw = np.empty(size_bytes + ALIGNMENT_BYTES, np.uint8)
    start = -raw.ctypes.data % ALIGNMENT_BYTES
    return raw[start : start + size_bytes]


_COMMON = Arena()
