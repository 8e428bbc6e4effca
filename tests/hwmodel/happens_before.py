"""A second definition of a race: conflicting accesses that no chain of queues, signals and waits orders."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from graphlib import TopologicalSorter

from hwmodel.isa import Buffer, ConvTile, FcTile, Instruction, Load, LutProgram, Queue, Signal, Soma, Store, Wait
from hwmodel.program import Program

Event = tuple[Queue, int]
Resource = tuple[str, int]  # a buffer, and bank + 2 * part
_LUT: Resource = ("lut", 0)
_BACKWARD = {
    "s_in": Buffer.BE_IN,
    "w": Buffer.BE_W,
    "psum": Buffer.BE_PSUM,
    "s_out": Buffer.BE_OUT,
    "neuron": Buffer.BE_NEURON,
    "state": Buffer.BE_STATE,
}


def racing_events(program: Program) -> list[tuple[Event, Event, Resource]]:
    """Pairs of accesses to a bank from two queues, one of them a write, that are not ordered."""
    before = _ancestors(_predecessors(program))
    accesses: dict[Resource, list[tuple[Event, bool]]] = defaultdict(list)
    for queue, stream in program.streams.items():
        for at, instruction in enumerate(stream):
            for resource, is_write in _accesses(queue, instruction):
                accesses[resource].append(((queue, at), is_write))
    numbers = {event: number for number, event in enumerate(before)}
    return [
        (one, other, resource)
        for resource, users in accesses.items()
        for i, (one, one_writes) in enumerate(users)
        for other, other_writes in users[:i]
        if one[0] is not other[0]
        and (one_writes or other_writes)
        and not before[one] >> numbers[other] & 1
        and not before[other] >> numbers[one] & 1
    ]


def synchronisations(program: Program) -> list[tuple[Event, Event]]:
    """The k-th signal of each semaphore with its k-th wait."""
    signals: dict[int, list[Event]] = defaultdict(list)
    waits: dict[int, list[Event]] = defaultdict(list)
    for queue, stream in program.streams.items():
        for at, instruction in enumerate(stream):
            if isinstance(instruction, Signal):
                signals[instruction.semaphore].append((queue, at))
            elif isinstance(instruction, Wait):
                waits[instruction.semaphore].append((queue, at))
    return [pair for number in signals for pair in zip(signals[number], waits[number], strict=True)]


def _predecessors(program: Program) -> dict[Event, list[Event]]:
    direct = {
        (queue, at): [(queue, at - 1)] if at else []
        for queue, stream in program.streams.items()
        for at in range(len(stream))
    }
    for signal, wait in synchronisations(program):
        direct[wait].append(signal)
    return direct


def _ancestors(direct: dict[Event, list[Event]]) -> dict[Event, int]:
    """For each event, in a possible order, the set of events before it: bit i is the i-th of this order."""
    order = list(TopologicalSorter(direct).static_order())
    numbers = {event: number for number, event in enumerate(order)}
    before: dict[Event, int] = {}
    for event in order:
        before[event] = 0
        for earlier in direct[event]:
            before[event] |= before[earlier] | 1 << numbers[earlier]
    return before


def _accesses(queue: Queue, instruction: Instruction) -> Iterator[tuple[Resource, bool]]:
    """What an instruction touches on chip, and whether it writes it."""

    def bank(buffer: str, number: int, *, write: bool = False) -> tuple[Resource, bool]:
        name = _BACKWARD[buffer] if queue is Queue.BE else Buffer(buffer)
        return (str(name), number), write

    match instruction:
        case Load():
            yield (str(instruction.buffer), instruction.bank + 2 * instruction.part), True
        case Store():
            yield (str(instruction.buffer), instruction.bank + 2 * instruction.part), False
        case LutProgram():
            yield from (bank("w", instruction.w_bank), (_LUT, True))
        case ConvTile() | FcTile():
            weights = bank("w", instruction.w_bank) if queue is Queue.BE else (_LUT, False)
            yield from (bank("s_in", instruction.src_bank), weights, bank("psum", instruction.dst_bank, write=True))
        case Soma():
            yield bank("psum", instruction.psum_bank, write=True)
            yield bank("s_out", instruction.out_bank, write=True)
            if instruction.present1 or instruction.present2:
                yield bank("neuron", instruction.neuron_bank)
            for stage in range(instruction.present1 + instruction.present2):
                if instruction.state_in or instruction.state_out:
                    yield bank("state", stage, write=instruction.state_out)
