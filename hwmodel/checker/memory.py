"""Checks accesses to external memory: bounds, use before write, races, and tensors that share bytes."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from math import prod

import numpy as np

from hwmodel.checker.clocks import QUEUES, Clock, culprit, zero_clock
from hwmodel.isa import Buffer, Load, Store
from hwmodel.program import Format, Phase, Program, Role, Tensor, Trained

MOST_CELLS = 1 << 16  # of a tensor whose stores are no grid
_CONSTANTS = {Role.WEIGHT, Role.NEURON}
_INITIAL = {Role.INPUT, Role.WEIGHT, Role.NEURON}
_ACCUMULATORS = {Role.WEIGHT_GRADIENT, Role.MOMENTUM}  # zero at first
_SAMPLES = (0, 1)  # memories that change places
_GRADIENTS = 2
_HALO = {Buffer.S_IN, Buffer.BE_IN, Buffer.WU_IN}  # sources of convolutions

Box = tuple[tuple[int, int], ...]  # begin and end along t, n, y, x, c


class TensorState:
    """Cells of one tensor in one memory, cut at every boundary of a store, with their last accesses."""

    def __init__(self, tensor: Tensor, bounds: Sequence[Sequence[int]]) -> None:
        self.tensor = tensor
        self.bounds = bounds
        cells = _cell_counts(bounds)
        self.written = np.full(cells, tensor.role in _INITIAL | _ACCUMULATORS)
        self.reads = np.zeros((*cells, len(QUEUES)), np.int64)
        self.writes = np.zeros((*cells, len(QUEUES)), np.int64)
        self.last = zero_clock()  # the last access of each queue, for tensors that share bytes

    def cells(self, box: Sequence[tuple[int, int]]) -> tuple[slice, ...]:
        """The cells that a box touches."""
        return tuple(
            slice(bisect_right(bound, low) - 1, bisect_left(bound, high))
            for bound, (low, high) in zip(self.bounds, box, strict=True)
        )

    def settle(self) -> None:
        """Forget accesses: all of them happened before what follows."""
        self.reads.fill(0)
        self.writes.fill(0)
        self.last.fill(0)


def _is_written(state: TensorState, trained: Trained) -> bool:
    """Whether a launch has written a whole tensor; of the neuron table that holds a bias, its row."""
    written = state.writes.max(-1) > 0
    is_table = trained.is_bias and state.tensor.name == trained.tensor
    return bool((written[:, :, :1, :1] if is_table else written).all())


def _cut(tensor: Tensor, stores: Sequence[Store]) -> list[list[int]]:
    """The edges of all stores to a tensor, along each axis."""
    boxes = [store_box(store) for store in stores]
    return [
        sorted({0, size, *(edge for box in boxes for edge in box[axis] if 0 <= edge <= size)})
        for axis, size in enumerate(tensor.shape)
    ]


def _cell_counts(bounds: Sequence[Sequence[int]]) -> tuple[int, ...]:
    return tuple(len(bound) - 1 for bound in bounds)


def store_box(store: Store | Load) -> Box:
    """Begin and end of a region along t, n, y, x, c."""
    return (
        (store.t0, store.t0 + store.nt),
        (store.n0, store.n0 + store.nn),
        (store.y0, store.y0 + store.h),
        (store.x0, store.x0 + store.w),
        (store.c0, store.c0 + store.nc),
    )


class MemoryState:
    """All tensors of a program; each access returns its fault, or "".

    In training Mem 0 and Mem 1 change places between launches: each tensor of theirs has a state in both.
    """

    def __init__(self, program: Program) -> None:
        self._tensors = program.tensors
        self._trains = program.training is not None
        self._parameters = program.training.parameters if program.training is not None else ()
        self._phase = Phase.RUN
        self._swapped = False
        places = {tensor.name: index for index, tensor in enumerate(program.tensors)}
        self._base = [
            places[tensor.view_of] if tensor.view_of else index for index, tensor in enumerate(program.tensors)
        ]
        stores: dict[int, list[Store]] = {}
        for streams in program.phases.values():
            for stream in streams.values():
                for instruction in stream:
                    if isinstance(instruction, Store) and instruction.tensor < len(self._base):
                        stores.setdefault(self._base[instruction.tensor], []).append(instruction)
        self.faults: list[str] = []
        self._states: dict[tuple[int, int], TensorState] = {}
        for index, tensor in enumerate(program.tensors):
            if tensor.view_of:
                continue
            own = stores.get(index, ())
            bounds = _cut(tensor, own)
            if prod(_cell_counts(bounds)) > MOST_CELLS + 16 * len(own):  # a grid has as many cells as stores
                self.faults.append(f"{len(own)} stores cut {tensor.name} into more than {MOST_CELLS} pieces")
                bounds = _cut(tensor, ())
            for memory in self._memories(tensor):
                self._states[index, memory] = TensorState(tensor, bounds)
        self._shared: list[list[int]] = [[] for _ in program.tensors]
        for left, right in _overlaps(program.tensors, swaps=self._trains):
            self._shared[left].append(right)
            self._shared[right].append(left)

    def launch(self, phase: Phase, *, swapped: bool) -> None:
        """All earlier accesses are over, and the memories stand as told."""
        self._phase = phase
        self._swapped = swapped
        for state in self._states.values():
            state.settle()

    def load(self, load: Load, memory: int, queue: int, clock: Clock) -> str:
        """A DMA read; rows and columns may lie outside (halo)."""
        tensor = self._tensors[load.tensor]
        shape = tensor.shape
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
        return self._read(load.tensor, memory, inside, queue, clock)

    def halo(self, load: Load) -> str:
        """Only the source of a convolution may reach beyond its tensor, and gradients beyond the end of theirs.

        The rows that a pooling drops have a gradient of zero.
        """
        box, shape = store_box(load), self._tensors[load.tensor].shape
        for axis in (2, 3):
            low, high = box[axis]
            is_beyond = low < 0 or (high > shape[axis] and load.buffer is not Buffer.BE_PSUM)
            if is_beyond and not load.flat and load.buffer not in _HALO:
                return f"reads {'tnyxc'[axis]} {low} to {high} of {shape[axis]}, and {load.buffer} has no halo"
        return ""

    def store(self, store: Store, memory: int, queue: int, clock: Clock) -> str:
        """A DMA write; it must lie inside, and ends the life of tensors that share its bytes."""
        tensor = self._tensors[store.tensor]
        if fault := self._read_only(tensor):
            return fault
        if store.flat:
            return "writes a flat region; stores are boxes"
        box = store_box(store)
        for axis, ((low, high), size) in enumerate(zip(box, tensor.shape, strict=True)):
            if low < 0 or high > size or low >= high:
                return f"writes {'tnyxc'[axis]} {low} to {high} of {size}"
        return self._write(store.tensor, memory, box, queue, clock)

    def whole(self, tensor: int, memory: int, queue: int, clock: Clock, *, write: bool) -> str:
        """The host's access to a whole tensor."""
        box = [(0, size) for size in self._tensors[tensor].shape]
        if write and (fault := self._read_only(self._tensors[tensor])):
            return fault
        access = self._write if write else self._read
        return access(tensor, memory, box, queue, clock)

    def _read_only(self, tensor: Tensor) -> str:
        """Nothing writes inputs, and only an update writes constants."""
        allowed = _CONSTANTS if self._phase is Phase.UPDATE else set()
        return f"writes to {tensor.name}, which is {tensor.role}" if tensor.role in _INITIAL - allowed else ""

    def unwritten_output(self) -> str:
        """The output tensor if part of it was never written."""
        for (_, memory), state in self._states.items():
            in_place = memory == self._place(state.tensor.memory)
            if state.tensor.role is Role.OUTPUT and in_place and not state.written.all():
                return state.tensor.name
        return ""

    def missed_parameters(self, phase: Phase) -> list[str]:
        """Gradients that a backward pass has not added to, parameters that an update has not changed everywhere."""
        if phase not in (Phase.OVERLAP, Phase.BACKWARD, Phase.UPDATE):
            return []
        places = {tensor.name: index for index, tensor in enumerate(self._tensors) if not tensor.view_of}
        faults = []
        for trained in self._parameters:
            parts = [(trained.gradient, _GRADIENTS)]
            if phase is Phase.UPDATE:
                parts += [(trained.tensor, memory) for memory in _SAMPLES]
                parts += [(trained.momentum, _GRADIENTS)] if trained.momentum else []
            for name, memory in parts:
                state = self._states.get((places.get(name, -1), memory))
                if state is None or not _is_written(state, trained):
                    faults.append(f"{trained.parameter}: {name} is not written completely in memory {memory}")
        return faults

    def _read(self, index: int, memory: int, box: Sequence[tuple[int, int]], queue: int, clock: Clock) -> str:
        state, cells = self._cells(index, memory, box)
        if not state.written[cells].all():
            return "reads what was not written"
        late = state.writes[cells].reshape(-1, len(QUEUES)).max(0)
        if (late > clock).any():
            return f"races with a write of {culprit(late, clock)}"
        state.reads[cells][..., queue] = clock[queue]
        state.last[queue] = clock[queue]
        return ""

    def _write(self, index: int, memory: int, box: Sequence[tuple[int, int]], queue: int, clock: Clock) -> str:
        if self._tensors[index].shape != self._states[self._base[index], self._place(memory)].tensor.shape:
            return f"writes through {self._tensors[index].name}, which shows another shape"
        if self._tensors[index].view_of:
            return f"writes through {self._tensors[index].name}, which is there to be read"
        state, cells = self._cells(index, memory, box)
        for other_index in self._shared[self._base[index]]:
            other = self._states[other_index, self._place(memory)]
            if (other.last > clock).any():
                return f"overwrites {other.tensor.name} in a race with {culprit(other.last, clock)}"
            other.written[...] = False
        for accesses, what in ((state.writes, "write"), (state.reads, "read")):
            late = accesses[cells].reshape(-1, len(QUEUES)).max(0)
            if (late > clock).any():
                return f"races with a {what} of {culprit(late, clock)}"
        if self._trains and state.tensor.role is not Role.STATE and state.writes[cells].any():
            return f"writes a part of {state.tensor.name} again"
        state.written[cells] = True
        state.writes[cells][..., queue] = clock[queue]
        state.last[queue] = clock[queue]
        return ""

    def _cells(self, index: int, memory: int, box: Sequence[tuple[int, int]]) -> tuple[TensorState, tuple[slice, ...]]:
        """The state of a tensor where it now stands; of a view in another shape all of it."""
        state = self._states[self._base[index], self._place(memory)]
        if state.tensor.shape != self._tensors[index].shape:
            box = [(0, size) for size in state.tensor.shape]
        return state, state.cells(box)

    def _place(self, memory: int) -> int:
        return 1 - memory if self._swapped and memory in _SAMPLES else memory

    def _memories(self, tensor: Tensor) -> tuple[int, ...]:
        if tensor.mirrored or (self._trains and tensor.memory in _SAMPLES):
            return _SAMPLES
        return (tensor.memory,)


def _overlap(left: Tensor, right: Tensor, *, swaps: bool) -> bool:
    memories = [
        set(_SAMPLES) if tensor.mirrored or (swaps and tensor.memory in _SAMPLES) else {tensor.memory}
        for tensor in (left, right)
    ]
    if not memories[0] & memories[1]:
        return False
    return left.address < right.address + right.size_bytes and right.address < left.address + left.size_bytes


def _overlaps(tensors: Sequence[Tensor], *, swaps: bool) -> Iterator[tuple[int, int]]:
    """Pairs of tensors that share bytes, by a sweep over the addresses; views are their tensors."""
    active: list[int] = []
    owners = [index for index, tensor in enumerate(tensors) if not tensor.view_of]
    for index in sorted(owners, key=lambda i: tensors[i].address):
        tensor = tensors[index]
        active = [i for i in active if tensors[i].address + tensors[i].size_bytes > tensor.address]
        yield from ((other, index) for other in active if _overlap(tensors[other], tensor, swaps=swaps))
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
        if tensor.role in _ACCUMULATORS and tensor.memory != _GRADIENTS:
            faults.append(f"tensor {tensor.name} accumulates in memory {tensor.memory}, must stand in {_GRADIENTS}")
        if tensor.mirrored and tensor.role not in _CONSTANTS:
            faults.append(f"tensor {tensor.name} is mirrored, but no constant")
        if tensor.role in _CONSTANTS and tensor.format is not Format.FP16:
            faults.append(f"constant {tensor.name} is {tensor.format}, must be {Format.FP16}")
        if fault := _view_fault(program, tensor):
            faults.append(fault)
    for pair in _overlaps(program.tensors, swaps=program.training is not None):
        one, other = sorted((program.tensors[i] for i in pair), key=lambda t: t.role not in _CONSTANTS)
        if one.role in _CONSTANTS:
            faults.append(f"constant {one.name} shares bytes with {other.name}")
    return faults


def _view_fault(program: Program, tensor: Tensor) -> str:
    """A view must show the bytes of a tensor that is none."""
    if not tensor.view_of:
        return ""
    base = next((other for other in program.tensors if other.name == tensor.view_of), None)
    if base is None or base.view_of:
        return f"tensor {tensor.name} is a view of {tensor.view_of}, which is no tensor of its own"
    same = (base.address, prod(base.shape), base.format, base.role, base.mirrored)
    if same != (tensor.address, prod(tensor.shape), tensor.format, tensor.role, tensor.mirrored):
        return f"tensor {tensor.name} does not show the bytes of {base.name}"
    if tensor.memory != base.memory and (program.training is None or not {tensor.memory, base.memory} <= set(_SAMPLES)):
        return f"tensor {tensor.name} shows {base.name} in another memory"
    return ""
