"""External memories and on-chip buffers of the simulated machine, as typed arrays per tensor and bank."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import cast

import numpy as np
import numpy.typing as npt

from hwmodel.isa import Load, Store
from hwmodel.program import Format, Program

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
    """The external memories: one array (t, n, y, x, c) per tensor, constants as FP16.

    The static checker has proved that tensors sharing an address are never needed together, so each keeps an
    array of its own. Spikes are held a byte each; sizes and addresses in the program count bits.
    """

    def __init__(self, program: Program) -> None:
        self.arrays: list[Values] = []
        self.versions = [0] * len(program.tensors)
        for tensor in program.tensors:
            if tensor.name in program.constants:
                self.arrays.append(program.constants[tensor.name].reshape(tensor.shape))
            elif tensor.format is Format.S1:
                self.arrays.append(np.zeros(tensor.shape, np.uint8))
            else:
                self.arrays.append(np.zeros(tensor.shape, np.float16))

    def key(self, load: Load) -> Hashable:
        """Names a region and the state of its tensor."""
        place = (load.t0, load.nt, load.n0, load.nn, load.y0, load.h, load.x0, load.w, load.c0, load.nc)
        return (load.tensor, self.versions[load.tensor], load.flat, *place)

    def fetch(self, load: Load) -> Values:
        """A copy of the region with time and sample merged; zeros outside the tensor (halo).

        Shapes: (nt * nn, h, w, nc).
        """
        array = self.arrays[load.tensor]
        outer = array[load.t0 : load.t0 + load.nt, load.n0 : load.n0 + load.nn]
        batch = load.nt * load.nn
        if load.flat:
            part = outer.reshape(load.nt, load.nn, -1)[:, :, load.c0 : load.c0 + load.nc]
            return cast(Values, part.copy().reshape(batch, 1, 1, load.nc))
        region = np.zeros((load.nt, load.nn, load.h, load.w, load.nc), array.dtype)
        rows, columns = _inside(load.y0, load.h, array.shape[2]), _inside(load.x0, load.w, array.shape[3])
        region[:, :, rows.there, columns.there] = outer[:, :, rows.here, columns.here, load.c0 : load.c0 + load.nc]
        return cast(Values, region.reshape(batch, load.h, load.w, load.nc))

    def put(self, store: Store, values: Values) -> None:
        """Write a region that lies inside the tensor."""
        self.versions[store.tensor] += 1
        self.arrays[store.tensor][
            store.t0 : store.t0 + store.nt,
            store.n0 : store.n0 + store.nn,
            store.y0 : store.y0 + store.h,
            store.x0 : store.x0 + store.w,
            store.c0 : store.c0 + store.nc,
        ] = values.reshape(store.nt, store.nn, store.h, store.w, store.nc)


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
