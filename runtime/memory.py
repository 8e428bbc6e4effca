"""External memories and on-chip buffers of the simulated machine, as typed arrays per tensor and bank."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import cast

import numpy as np
import numpy.typing as npt

from hwmodel.isa import Load, Store
from hwmodel.program import Format, Program, Tensor

SAMPLE_MEMORIES = (0, 1)  # they change places in training

Values = npt.NDArray[np.float16] | npt.NDArray[np.uint8]


@dataclass(slots=True)
class Bank:
    """What stands in one bank of a buffer, and a key that names the content while memory does not change."""

    values: Values
    key: Hashable = None


class RegionCache:
    """Results that a later grid iteration needs again; the oldest go first when the budget is used up."""

    def __init__(self, budget_bytes: int) -> None:
        self._budget = budget_bytes
        self._used = 0
        self._items: OrderedDict[Hashable, npt.NDArray[np.generic]] = OrderedDict()

    def get(self, key: Hashable, make: Callable[[], npt.NDArray[np.generic]]) -> npt.NDArray[np.generic]:
        """The array of that key, made on first use."""
        found = self._items.get(key)
        if found is not None:
            self._items.move_to_end(key)
            return found
        made = make()
        self._items[key] = made
        self._used += made.nbytes
        while self._used > self._budget and len(self._items) > 1:
            _, old = self._items.popitem(last=False)
            self._used -= old.nbytes
        return made


class Memory:
    """The external memories: one array (t, n, y, x, c) per tensor and memory it may stand in, constants as FP16.

    The static checker has proved that tensors sharing an address are never needed together, so each keeps an
    array of its own; a view shares that of its tensor. Spikes are held a byte each, compressed membrane potentials
    in full with +0 where the mask is 0; sizes and addresses in the program count what the format takes.
    """

    def __init__(self, program: Program) -> None:
        self._tensors = program.tensors
        self._trains = program.training is not None
        self.swapped = False  # Mem 0 and Mem 1 have changed places
        places = {tensor.name: index for index, tensor in enumerate(program.tensors)}
        self._base = [
            places[tensor.view_of] if tensor.view_of else index for index, tensor in enumerate(program.tensors)
        ]
        self._arrays: dict[tuple[int, int], Values] = {}
        self._versions: dict[tuple[int, int], int] = {}
        for index, tensor in enumerate(program.tensors):
            if not tensor.view_of:
                for memory in self._memories(tensor):
                    self._arrays[index, memory] = _initial(program, tensor)
                    self._versions[index, memory] = 0

    def array(self, index: int, memory: int | None = None) -> Values:
        """A tensor as it stands now in the memory (its own by default), to read or to change."""
        tensor = self._tensors[index]
        place = self._place(index, tensor.memory if memory is None else memory)
        return cast(Values, self._arrays[place].reshape(tensor.shape))

    def changed(self, index: int, memory: int | None = None) -> None:
        """Say that a tensor's array was changed."""
        self._versions[self._place(index, self._tensors[index].memory if memory is None else memory)] += 1

    def copies(self, index: int) -> tuple[int, ...]:
        """The memories in which a tensor stands."""
        return self._memories(self._tensors[index])

    def _memories(self, tensor: Tensor) -> tuple[int, ...]:
        if tensor.mirrored and not self._trains:
            return (0,)  # never written, so one copy shows both
        return SAMPLE_MEMORIES if tensor.mirrored or (self._trains and tensor.memory < 2) else (tensor.memory,)

    def _place(self, index: int, memory: int) -> tuple[int, int]:
        base = self._base[index]
        if not self._trains:
            return base, 0 if self._tensors[base].mirrored else memory
        return base, 1 - memory if self.swapped and memory in SAMPLE_MEMORIES else memory

    def key(self, load: Load, memory: int) -> Hashable:
        """Names a region and the state of its tensor."""
        where = self._place(load.tensor, memory)
        place = (load.t0, load.nt, load.n0, load.nn, load.y0, load.h, load.x0, load.w, load.c0, load.nc)
        return (load.tensor, where[1], self._versions[where], load.flat, *place)

    def fetch(self, load: Load, memory: int) -> Values:
        """A copy of the region with time and sample merged; zeros outside the tensor (halo).

        Shapes: (nt * nn, h, w, nc).
        """
        array = self.array(load.tensor, memory)
        outer = array[load.t0 : load.t0 + load.nt, load.n0 : load.n0 + load.nn]
        batch = load.nt * load.nn
        if load.flat:
            part = outer.reshape(load.nt, load.nn, -1)[:, :, load.c0 : load.c0 + load.nc]
            return cast(Values, part.copy().reshape(batch, 1, 1, load.nc))
        region = np.zeros((load.nt, load.nn, load.h, load.w, load.nc), array.dtype)
        rows, columns = _inside(load.y0, load.h, array.shape[2]), _inside(load.x0, load.w, array.shape[3])
        region[:, :, rows.there, columns.there] = outer[:, :, rows.here, columns.here, load.c0 : load.c0 + load.nc]
        return cast(Values, region.reshape(batch, load.h, load.w, load.nc))

    def put(self, store: Store, memory: int, values: Values) -> None:
        """Write a region that lies inside the tensor."""
        self.changed(store.tensor, memory)
        self.array(store.tensor, memory)[
            store.t0 : store.t0 + store.nt,
            store.n0 : store.n0 + store.nn,
            store.y0 : store.y0 + store.h,
            store.x0 : store.x0 + store.w,
            store.c0 : store.c0 + store.nc,
        ] = values.reshape(store.nt, store.nn, store.h, store.w, store.nc)


def _initial(program: Program, tensor: Tensor) -> Values:
    """Constants, zeros elsewhere."""
    if tensor.name in program.constants:
        return cast(Values, program.constants[tensor.name].reshape(tensor.shape).copy())
    return np.zeros(tensor.shape, np.uint8) if tensor.format is Format.S1 else np.zeros(tensor.shape, np.float16)


@dataclass(frozen=True, slots=True)
class _Inside:
    """Where the part of a region that lies inside a tensor stands, in the tensor and in the region."""

    here: slice
    there: slice


def _inside(start: int, size: int, extent: int) -> _Inside:
    """The overlap along one axis; empty where a region is nothing but halo."""
    begin = min(max(start, 0), extent)
    end = max(min(start + size, extent), begin)
    first = min(max(begin - start, 0), size)
    return _Inside(slice(begin, end), slice(first, first + end - begin))
