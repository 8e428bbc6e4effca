"""A second definition of a race in a phase of training: conflicts that no chain of queues and semaphores orders."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from graphlib import TopologicalSorter

from hwmodel.isa import (
    AddGradient,
    Buffer,
    ConvTile,
    FcTile,
    Grad,
    GradConvTile,
    GradFcTile,
    HostLoss,
    HostUpdate,
    Instruction,
    Load,
    LutProgram,
    OuterTile,
    Queue,
    SgdStep,
    Signal,
    Soma,
    Store,
    UpdateFcTile,
    UpdateTile,
    Wait,
)
from hwmodel.program import Format, Program, Streams

Work = tuple[Queue, int]  # the nth instruction of a queue that is no signal and no wait
Bank = tuple[str, int]
Box = tuple[tuple[int, int], ...]
_LUT: Bank = ("lut", 0)
_MEMORY = {Queue.DMA0: 0, Queue.DMA1: 1, Queue.DMA2: 2}
_FORWARD = {name: name for name in ("s_in", "w", "psum", "s_out", "mask", "neuron", "state")}
_BACKWARD = dict(zip(_FORWARD, ("be_in", "be_w", "be_psum", "be_out", "be_mask", "be_neuron", "be_state"), strict=True))


@dataclass(frozen=True, slots=True)
class Region:
    """Part of a tensor in one of the memories, as the launch sees them."""

    memory: int
    first: int  # byte, of the whole tensor
    end: int
    tensor: int  # that a view shows
    box: Box

    def meets(self, other: Region) -> bool:
        """Whether both may touch a byte; two tensors that share bytes count as a whole."""
        if self.memory != other.memory or self.first >= other.end or other.first >= self.end:
            return False
        boxes = zip(self.box, other.box, strict=True)
        return self.tensor != other.tensor or all(a < d and c < b for (a, b), (c, d) in boxes)


Access = tuple[Bank | Region, bool]  # what, and whether it is written
BankOf = Callable[..., Access]


def racing(program: Program, streams: Streams) -> list[tuple[Work, Work]]:
    """Pairs of conflicting instructions of two queues that may run in any order."""
    return unordered(streams, conflicts(program, streams))


def conflicts(program: Program, streams: Streams) -> list[tuple[Work, Work]]:
    """Pairs of instructions of two queues that touch the same bank or bytes, one of them writing."""
    banks: dict[Bank, list[tuple[Work, bool]]] = defaultdict(list)
    regions: list[tuple[Work, Region, bool]] = []
    for queue, stream in streams.items():
        work = (i for i in stream if not isinstance(i, Signal | Wait))
        for at, instruction in enumerate(work):
            for place, writes in accesses(program, queue, instruction):
                if isinstance(place, Region):
                    regions.append(((queue, at), place, writes))
                else:
                    banks[place].append(((queue, at), writes))
    pairs = [
        (one, other)
        for users in banks.values()
        for i, (one, one_writes) in enumerate(users)
        for other, other_writes in users[:i]
        if one[0] is not other[0] and (one_writes or other_writes)
    ]
    pairs += [
        (one, other)
        for i, (one, place, one_writes) in enumerate(regions)
        for other, other_place, other_writes in regions[:i]
        if one[0] is not other[0] and (one_writes or other_writes) and place.meets(other_place)
    ]
    return list(dict.fromkeys(pairs))


def unordered(streams: Streams, pairs: Iterable[tuple[Work, Work]]) -> list[tuple[Work, Work]]:
    """Those of the pairs between which there is no chain of program order and signals."""
    places: dict[Work, tuple[Queue, int]] = {}
    for queue, stream in streams.items():
        work = (at for at, i in enumerate(stream) if not isinstance(i, Signal | Wait))
        places |= {(queue, number): (queue, at) for number, at in enumerate(work)}
    before, numbers = _ancestors(streams)
    return [
        (one, other)
        for one, other in pairs
        if not before[places[one]] >> numbers[places[other]] & 1
        and not before[places[other]] >> numbers[places[one]] & 1
    ]


def meetings(streams: Streams) -> list[tuple[tuple[Queue, int], tuple[Queue, int]]]:
    """The k-th signal of each semaphore with its k-th wait."""
    signals: dict[int, list[tuple[Queue, int]]] = defaultdict(list)
    waits: dict[int, list[tuple[Queue, int]]] = defaultdict(list)
    for queue, stream in streams.items():
        for at, instruction in enumerate(stream):
            if isinstance(instruction, Signal):
                signals[instruction.semaphore].append((queue, at))
            elif isinstance(instruction, Wait):
                waits[instruction.semaphore].append((queue, at))
    return [pair for number in signals for pair in zip(signals[number], waits[number], strict=True)]


def _ancestors(streams: Streams) -> tuple[dict[tuple[Queue, int], int], dict[tuple[Queue, int], int]]:
    """For each place in a queue the set of places before it, as bits; and the bit of each place."""
    direct = {
        (queue, at): [(queue, at - 1)] if at else [] for queue, stream in streams.items() for at in range(len(stream))
    }
    for signal, wait in meetings(streams):
        direct[wait].append(signal)
    order = list(TopologicalSorter(direct).static_order())
    numbers = {place: number for number, place in enumerate(order)}
    before: dict[tuple[Queue, int], int] = {}
    for place in order:
        before[place] = 0
        for earlier in direct[place]:
            before[place] |= before[earlier] | 1 << numbers[earlier]
    return before, numbers


def accesses(program: Program, queue: Queue, instruction: Instruction) -> Iterator[Access]:
    """What an instruction touches; parts of a bank share its space, so that the bank counts."""
    names = _BACKWARD if queue is Queue.BE else _FORWARD

    def bank(name: str, number: int, *, write: bool = False) -> Access:
        return (names.get(name, name), number), write

    match instruction:
        case Load() as load:
            yield bank(str(load.buffer), load.bank, write=True)
            yield _region(program, load, _MEMORY[queue]), False
        case Store() as store:
            yield bank(str(store.buffer), store.bank)
            if program.tensors[store.tensor].format is Format.MCOMP:
                yield bank("be_mask" if store.buffer is Buffer.BE_PSUM else "mask", store.bank)
            yield _region(program, store, _MEMORY[queue]), True
        case HostLoss() as loss:
            yield from ((_whole(program, loss.output), False), (_whole(program, loss.gradient), True))
        case HostUpdate() as update:
            yield _whole(program, update.gradient), True
            yield from ((_whole(program, update.weight, memory), True) for memory in (0, 1))
        case LutProgram() | ConvTile() | FcTile() | Soma():
            yield from _forward(queue, instruction, bank)
        case _:
            yield from _training(queue, instruction, bank)


def _forward(queue: Queue, instruction: Instruction, bank: BankOf) -> Iterator[Access]:
    match instruction:
        case LutProgram():
            yield from (bank("w", instruction.w_bank), (_LUT, True))
        case ConvTile() | FcTile() as tile:
            weights = bank("w", tile.w_bank) if queue is Queue.BE else (_LUT, False)
            yield from (bank("s_in", tile.src_bank), weights, bank("psum", tile.dst_bank, write=True))
        case Soma() as soma:
            yield from (bank("psum", soma.psum_bank, write=True), bank("s_out", soma.out_bank, write=True))
            yield bank("neuron", soma.neuron_bank)
            if soma.keep:
                yield bank("mask", soma.out_bank, write=True)
            yield from _states(soma, bank)


def _training(queue: Queue, instruction: Instruction, bank: BankOf) -> Iterator[Access]:
    match instruction:
        case GradConvTile() | GradFcTile() as tile:
            yield from (bank("s_in", tile.src_bank), bank("w", tile.w_bank), bank("psum", tile.dst_bank, write=True))
            if isinstance(tile, GradConvTile) and tile.out_sparsity:
                yield bank("mask", tile.dst_bank)
        case Grad() as grad:
            yield from (bank("neuron", grad.neuron_bank), bank("s_out", grad.bank), bank("be_m", grad.bank))
            yield from (bank("psum", grad.bank, write=True), bank("mask", grad.bank, write=True))
            yield from _states(grad, bank)
        case UpdateTile() | UpdateFcTile() as tile:
            yield from (bank("wu_in", tile.src_bank), bank("wu_gm", tile.gm_bank))
            yield bank("wu_psum", tile.dst_bank, write=True)
        case OuterTile() as tile:
            yield from (bank("s_in", tile.src_bank), bank("be_m", tile.gm_bank))
            yield bank("psum", tile.dst_bank, write=True)
        case AddGradient() as add:
            engine = "be" if queue is Queue.BE else "wu"
            yield from (bank(f"{engine}_psum", add.psum_bank), bank(f"{engine}_grad", add.stream_bank, write=True))
        case SgdStep() as step:
            yield bank("wu_grad", step.gradient_bank, write=True)
            yield bank("wu_weight", step.weight_bank, write=True)
            if step.has_momentum:
                yield bank("wu_momentum", step.momentum_bank, write=True)


def _states(soma: Soma | Grad, bank: BankOf) -> Iterator[Access]:
    for stage in range(soma.present1 + soma.present2):
        if soma.state_in or soma.state_out:
            yield bank("state", stage, write=soma.state_out)


def _region(program: Program, move: Load | Store, memory: int) -> Region:
    whole = _whole(program, move.tensor, memory)
    box = [(move.t0, move.t0 + move.nt), (move.n0, move.n0 + move.nn)]
    if move.flat:
        box += list(whole.box[2:])
    else:
        box += [(move.y0, move.y0 + move.h), (move.x0, move.x0 + move.w), (move.c0, move.c0 + move.nc)]
    is_reshaped = program.tensors[whole.tensor].shape != program.tensors[move.tensor].shape
    return whole if is_reshaped else Region(memory, whole.first, whole.end, whole.tensor, tuple(box))


def _whole(program: Program, index: int, memory: int | None = None) -> Region:
    tensor = program.tensors[index]
    base = program.index_of(tensor.view_of) if tensor.view_of else index
    shown = program.tensors[base]
    box = tuple((0, size) for size in shown.shape)
    where = tensor.memory if memory is None else memory
    return Region(where, shown.address, shown.address + shown.size_bytes, base, box)
