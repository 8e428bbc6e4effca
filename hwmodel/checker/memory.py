"""Checks accesses to external memory: bounds, use before write, races, and tensors that share bytes."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from math import prod

import numpy as np

from hwmodel.checker.clocks import QUEUES, Clock, culprit, zero_clock
from hwmodel.isa import Load, Store
from hwmodel.program import Format, Program, Role, Tensor

MOST_CELLS = 1 << 16  # of a tensor whose stores are no grid
_CONSTANTS = {Role.WEIGHT, Role.NEURON}
_INITIAL = {Role.INPUT, Role.WEIGHT, Role.NEURON}


class TensorState:
    """Cells of one tensor, cut at every boundary of a store, with their last accesses."""

    def __init__(self, tensor: Tensor, bounds: Sequence[Sequence[int]]) -> None:
        self.tensor = tensor
        self.bounds = bounds
        cells = _cell_counts(bounds)
        self.written = np.full(cells, tensor.role in _INITIAL)
        self.reads = np.zeros((*cells, len(QUEUES)), np.int64)
        self.writes = np.zeros((*cells, len(QUEUES)), np.int64)
        self.last = zero_clock()  # the last access of each queue, for tensors that share bytes

    def cells(self, box: Sequence[tuple[int, int]]) -> tuple[slice, ...]:
        """The cells that a box touches."""
        return tuple(
            slice(bisect_right(bound, low) - 1, bisect_left(bound, high))
            for bound, (low, high) in zip(self.bounds, box, strict=True)
        )


def _cut(tensor: Tensor, stores: Sequence[Store]) -> list[list[int]]:
    """The edges of all stores to a tensor, along each axis."""
    boxes = [store_box(store) for store in stores]
    return [
        sorted({0, size, *(edge for box in boxes for edge in box[axis] if 0 <= edge <= size)})
        for axis, size in enumerate(tensor.shape)
    ]


def _cell_counts(bounds: Sequence[Sequence[int]]) -> tuple[int, ...]:
    return tuple(len(bound) - 1 for bound in bounds)


def store_box(store: Store | Load) -> tuple[tuple[int, int], ...]:
    """Begin and end of a region along t, n, y, x, c."""
    return (
        (store.t0, store.t0 + store.nt),
        (store.n0, store.n0 + store.nn),
        (store.y0, store.y0 + store.h),
        (store.x0, store.x0 + store.w),
        (store.c0, store.c0 + store.nc),
    )


class MemoryState:
    """All tensors of a program; each access returns its fault, or ""."""

    def __init__(self, program: Program) -> None:
        stores: dict[int, list[Store]] = {}
        for stream in program.streams.values():
            for instruction in stream:
                if isinstance(instruction, Store):
                    stores.setdefault(instruction.tensor, []).append(instruction)
        self.faults: list[str] = []
        self._states: list[TensorState] = []
        for index, tensor in enumerate(program.tensors):
            own = stores.get(index, ())
            bounds = _cut(tensor, own)
            if prod(_cell_counts(bounds)) > MOST_CELLS + 16 * len(own):  # a grid has as many cells as stores
                self.faults.append(f"{len(own)} stores cut {tensor.name} into more than {MOST_CELLS} pieces")
                bounds = _cut(tensor, ())
            self._states.append(TensorState(tensor, bounds))
        self._shared: list[list[TensorState]] = [[] for _ in self._states]
        for left, right in _overlaps(program.tensors):
            self._shared[left].append(self._states[right])
            self._shared[right].append(self._states[left])

    def load(self, load: Load, queue: int, clock: Clock) -> str:
        """A DMA read; rows and columns may lie outside (halo)."""
        state = self._states[load.tensor]
        shape = state.tensor.shape
        box = list(store_box(load))
        if load.flat:
            total = shape[2] * shape[3] * shape[4]
            if load.c0 + load.nc > total:
                return f"reads elements up to {load.c0 + load.nc} of {total}"
            box[2:] = [(0, shape[2]), (0, shape[3]), (0, shape[4])]
        for axis in (0, 1, 4):
            if box[axis][1] > shape[axis] or box[axis][0] >= box[axis][1]:
                return f"reads {'tnyxc'[axis]} {box[axis][0]} to {box[axis][1]} of {shape[axis]}"
        inside = [(max(low, 0), min(high, size)) for (low, high), size in zip(box, shape, strict=True)]
        if any(low >= high for low, high in inside):
            return ""  # nothing but halo
        cells = state.cells(inside)
        if not state.written[cells].all():
            return "reads what was not written"
        late = state.writes[cells].reshape(-1, len(QUEUES)).max(0)
        if (late > clock).any():
            return f"races with a write of {culprit(late, clock)}"
        state.reads[cells][..., queue] = clock[queue]
        state.last[queue] = clock[queue]
        return ""

    def store(self, store: Store, queue: int, clock: Clock) -> str:
        """A DMA write; it must lie inside, and ends the life of tensors that share its bytes."""
        state = self._states[store.tensor]
        tensor = state.tensor
        if tensor.role in _INITIAL:
            return f"writes to {tensor.name}, which is {tensor.role}"
        if store.flat:
            return "writes a flat region; stores are boxes"
        box = store_box(store)
        for axis, ((low, high), size) in enumerate(zip(box, tensor.shape, strict=True)):
            if low < 0 or high > size or low >= high:
                return f"writes {'tnyxc'[axis]} {low} to {high} of {size}"
        for other in self._shared[store.tensor]:
            if (other.last > clock).any():
                return f"overwrites {other.tensor.name} in a race with {culprit(other.last, clock)}"
            other.written[...] = False
        cells = state.cells(box)
        for accesses, what in ((state.writes, "write"), (state.reads, "read")):
            late = accesses[cells].reshape(-1, len(QUEUES)).max(0)
            if (late > clock).any():
                return f"races with a {what} of {culprit(late, clock)}"
        state.written[cells] = True
        state.writes[cells][..., queue] = clock[queue]
        state.last[queue] = clock[queue]
        return ""

    def unwritten_output(self) -> str:
        """The output tensor if part of it was never written."""
        for state in self._states:
            if state.tensor.role is Role.OUTPUT and not state.written.all():
                return state.tensor.name
        return ""


def _overlap(left: Tensor, right: Tensor) -> bool:
    memories = {left.memory} | ({0, 1} if left.mirrored else set())
    if not memories & ({right.memory} | ({0, 1} if right.mirrored else set())):
        return False
    return left.address < right.address + right.size_bytes and right.address < left.address + left.size_bytes


def _overlaps(tensors: Sequence[Tensor]) -> Iterator[tuple[int, int]]:
    """Pairs of tensors that share bytes, by a sweep over the addresses."""
    active: list[int] = []
    for index in sorted(range(len(tensors)), key=lambda i: tensors[i].address):
        tensor = tensors[index]
        active = [i for i in active if tensors[i].address + tensors[i].size_bytes > tensor.address]
        yield from ((other, index) for other in active if _overlap(tensors[other], tensor))
        active.append(index)


def table_faults(program: Program) -> list[str]:
    """Faults of the tensor table itself."""
    faults = []
    capacity = program.config.memory.capacity_bytes
    for tensor in program.tensors:
        if tensor.address + tensor.size_bytes > capacity:
            faults.append(f"tensor {tensor.name} ends beyond the memory of {capacity} bytes")
        if tensor.memory >= program.config.memory.count:
            faults.append(f"tensor {tensor.name} stands in memory {tensor.memory}, which does not exist")
        if tensor.mirrored and tensor.role not in _CONSTANTS:
            faults.append(f"tensor {tensor.name} is mirrored, but no constant")
        if tensor.role in _CONSTANTS and tensor.format is not Format.FP16:
            faults.append(f"constant {tensor.name} is {tensor.format}, must be {Format.FP16}")
    for pair in _overlaps(program.tensors):
        one, other = sorted((program.tensors[i] for i in pair), key=lambda t: t.role not in _CONSTANTS)
        if one.role in _CONSTANTS:
            faults.append(f"constant {one.name} shares bytes with {other.name}")
    return faults
