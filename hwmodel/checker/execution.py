"""Executes a program abstractly: queues, semaphores and accesses, without values."""

from __future__ import annotations

from collections import defaultdict, deque
from dataclasses import dataclass, field

import numpy as np

from hwmodel.assembler import disassemble
from hwmodel.checker.banks import BankError, BankRules, Content, Place
from hwmodel.checker.clocks import INDEX, Accesses, Clock, zero_clock
from hwmodel.checker.memory import MemoryState, table_faults
from hwmodel.errors import CompileError, Loc
from hwmodel.isa import (
    ENGINE_BUFFERS,
    OPCODES,
    ConvTile,
    FcTile,
    Halt,
    Instruction,
    Load,
    LutProgram,
    PoolSetup,
    Queue,
    Signal,
    Soma,
    Store,
    Wait,
    layout,
)
from hwmodel.program import Program

MOST_FAULTS = 5
_MEMORY_OF = {Queue.DMA0: 0, Queue.DMA1: 1, Queue.DMA2: 2}
_LUT: tuple[str, int] = ("lut", 0)
_REGION_SIZES = {"nt", "nn", "h", "w", "nc", "inputs", "out_h", "out_w"}
_SIZES = _REGION_SIZES | {"rows", "cols", "kernel_h", "kernel_w", "stride_h", "stride_w", "tap_rows"}
_SIZES_OF = {kind: tuple(item.name for item in layout(kind) if item.name in _SIZES) for kind in OPCODES.values()}


def check(program: Program) -> None:
    """Prove that a program stays inside its memories and buffers, uses only what was written, and ends.

    Queues are executed in turn; semaphores hand the signaller's vector clock on in order, so every conflicting
    access is known to be ordered, or is reported, whatever the speed of the queues.

    Raises: CompileError with the first faults: place, instruction and what it lacks.
    """
    faults = table_faults(program) or _stream_faults(program) or _Execution(program).run()
    if faults:
        raise CompileError(
            "the program is not valid: " + "\n  ".join(faults[:MOST_FAULTS]),
            Loc(program.name),
            hint="a file that was not changed by hand and fails here shows a fault of the compiler",
        )


@dataclass(slots=True)
class _Semaphore:
    clocks: deque[Clock] = field(default_factory=deque)
    signaller: Queue | None = None
    waiter: Queue | None = None


class _Execution:
    def __init__(self, program: Program) -> None:
        self._program = program
        self._memory = MemoryState(program)
        self._faults = list(self._memory.faults)
        self._banks = BankRules(program)
        self._accesses: dict[object, Accesses] = defaultdict(Accesses)
        self._semaphores: dict[int, _Semaphore] = defaultdict(_Semaphore)
        self._clocks = {queue: zero_clock() for queue in program.streams}
        self._position = dict.fromkeys(program.streams, 0)

    def run(self) -> list[str]:
        """Execute all queues; the faults found."""
        running = [queue for queue, stream in self._program.streams.items() if stream]
        while running and not self._faults:
            progress = [self._advance(queue) for queue in running]
            running = [q for q in running if self._position[q] < len(self._program.streams[q])]
            if not any(progress):
                self._faults.append(self._deadlock(running))
        if not self._faults and (name := self._memory.unwritten_output()):
            self._faults.append(f"output {name} is not written completely")
        return self._faults or self._left_over()

    def _advance(self, queue: Queue) -> bool:
        """Run one queue until it waits or ends; whether it moved."""
        stream = self._program.streams[queue]
        start = self._position[queue]
        clock = self._clocks[queue]
        while self._position[queue] < len(stream) and len(self._faults) < MOST_FAULTS:
            instruction = stream[self._position[queue]]
            if isinstance(instruction, Wait):
                semaphore = self._semaphores[instruction.semaphore]
                if not semaphore.clocks:
                    break
                self._own(semaphore, queue, instruction, signal=False)
                np.maximum(clock, semaphore.clocks.popleft(), out=clock)
            clock[INDEX[queue]] += 1
            if isinstance(instruction, Signal):
                semaphore = self._semaphores[instruction.semaphore]
                self._own(semaphore, queue, instruction, signal=True)
                semaphore.clocks.append(clock.copy())
            elif not isinstance(instruction, Wait | Halt):
                self._try(queue, instruction, clock)
            self._position[queue] += 1
        return self._position[queue] > start

    def _own(self, semaphore: _Semaphore, queue: Queue, instruction: Instruction, *, signal: bool) -> None:
        """A semaphore has one signaller and one waiter, so that signals and waits meet in order."""
        owner = semaphore.signaller if signal else semaphore.waiter
        if owner is None:
            if signal:
                semaphore.signaller = queue
            else:
                semaphore.waiter = queue
        elif owner is not queue:
            self._report(queue, instruction, f"{owner} uses this semaphore too")

    def _try(self, queue: Queue, instruction: Instruction, clock: Clock) -> None:
        try:
            self._apply(queue, instruction, clock)
        except BankError as fault:
            self._report(queue, instruction, str(fault))

    def _apply(self, queue: Queue, instruction: Instruction, clock: Clock) -> None:
        match instruction:
            case Load():
                _refuse(self._memory.load(instruction, INDEX[queue], clock))
                self._access(queue, clock, writes=((instruction.buffer, instruction.bank),))
                self._banks.load(instruction)
            case Store():
                place = (instruction.buffer, instruction.bank)
                self._access(queue, clock, reads=(place,))
                self._check_stored(instruction, self._banks.need(place))
                _refuse(self._memory.store(instruction, INDEX[queue], clock))
            case LutProgram():
                weight_bank = (ENGINE_BUFFERS[queue].weights, instruction.w_bank)
                self._access(queue, clock, reads=(weight_bank,), writes=(_LUT,))
                self._banks.lut_program(instruction)
            case ConvTile() | FcTile():
                banks = ENGINE_BUFFERS[queue]
                weights: object = _LUT if queue is Queue.FE else (banks.weights, instruction.w_bank)
                source = (banks.source, instruction.src_bank)
                self._access(queue, clock, reads=(source, weights), writes=((banks.psum, instruction.dst_bank),))
                if isinstance(instruction, ConvTile):
                    self._banks.conv_tile(queue, instruction)
                else:
                    self._banks.fc_tile(queue, instruction)
            case PoolSetup():
                self._banks.pool_setup(queue, instruction)
            case Soma():
                self._soma(queue, instruction, clock)

    def _soma(self, queue: Queue, soma: Soma, clock: Clock) -> None:
        banks = ENGINE_BUFFERS[queue]
        states: list[Place] = [(banks.state, stage) for stage in range(soma.present1 + soma.present2)]
        reads: list[Place] = states if soma.state_in else []
        if soma.present1 or soma.present2:
            reads = [*reads, (banks.neuron, soma.neuron_bank)]
        writes: list[Place] = [(banks.psum, soma.psum_bank), (banks.out, soma.out_bank)]
        self._access(queue, clock, reads=tuple(reads), writes=(*writes, *(states if soma.state_out else [])))
        self._banks.soma(queue, soma)

    def _access(
        self,
        queue: Queue,
        clock: Clock,
        *,
        reads: tuple[object, ...] = (),
        writes: tuple[object, ...] = (),
    ) -> None:
        for resources, write in ((reads, False), (writes, True)):
            for resource in resources:
                accesses = self._accesses[resource]
                if race := accesses.race(clock, write=write):
                    raise BankError(f"races on {_name(resource)} with {race}")
                accesses.note(INDEX[queue], clock, write=write)

    def _check_stored(self, store: Store, content: Content) -> None:
        tensor = self._program.tensors[store.tensor]
        region = (store.nt, store.nn, store.h, store.w, store.nc)
        if (content.nt, content.nn, content.h, content.w, content.nc) != region:
            raise BankError(f"stores a region {region}, the bank holds {content}")
        if content.format is not tensor.format:
            raise BankError(f"stores {content.format} to {tensor.name}, which is {tensor.format}")

    def _report(self, queue: Queue, instruction: Instruction, what: str) -> None:
        place = f"{queue}[{self._position[queue]}]"
        self._faults.append(f"{place} {disassemble(instruction)}: {what}")

    def _deadlock(self, running: list[Queue]) -> str:
        waits = ", ".join(
            f"{queue}[{self._position[queue]}] for semaphore {self._semaphore_at(queue)}" for queue in running
        )
        return f"deadlock: {waits}"

    def _semaphore_at(self, queue: Queue) -> int:
        instruction = self._program.streams[queue][self._position[queue]]
        assert isinstance(instruction, Wait)
        return instruction.semaphore

    def _left_over(self) -> list[str]:
        unread = [f"{_name(place)} is written, and never read" for place in sorted(self._banks.unread)]
        return unread + [
            f"semaphore {number} is signalled {len(semaphore.clocks)} times more than waited for"
            for number, semaphore in self._semaphores.items()
            if semaphore.clocks
        ]


def _refuse(fault: str) -> None:
    if fault:
        raise BankError(fault)


def _stream_faults(program: Program) -> list[str]:
    """Instructions that their queue cannot execute, and queues that do not end."""
    faults = []
    for queue, stream in program.streams.items():
        if not stream or not isinstance(stream[-1], Halt):
            faults.append(f"{queue} does not end with halt")
        for position, instruction in enumerate(stream):
            what = _misplaced(program, queue, instruction) or _empty(instruction)
            if what:
                faults.append(f"{queue}[{position}] {disassemble(instruction)}: {what}")
    for queue, stream in program.streams.items():
        if any(isinstance(instruction, Halt) for instruction in stream[:-1]):
            faults.append(f"{queue} goes on behind a halt")
    return faults


def _misplaced(program: Program, queue: Queue, instruction: Instruction) -> str:
    if instruction.layer >= len(program.layers):
        return f"there are {len(program.layers)} layers"
    match instruction:
        case Load() | Store():
            if queue not in _MEMORY_OF:
                return "only a DMA queue moves data"
            if instruction.tensor >= len(program.tensors):
                return f"there are {len(program.tensors)} tensors"
            tensor = program.tensors[instruction.tensor]
            memories = (0, 1) if tensor.mirrored else (tensor.memory,)
            if _MEMORY_OF[queue] not in memories:
                return f"{tensor.name} stands in memory {tensor.memory}"
        case LutProgram():
            return "" if queue is Queue.FE else "only the Forward Engine has LUTs"
        case ConvTile() | FcTile() | PoolSetup() | Soma():
            return "" if queue in ENGINE_BUFFERS else f"{queue} has no unit for it"
    return ""


def _empty(instruction: Instruction) -> str:
    return next((f"{name} is 0" for name in _SIZES_OF[type(instruction)] if getattr(instruction, name) == 0), "")


def _name(resource: object) -> str:
    assert isinstance(resource, tuple)
    return f"bank {resource[1]} of {resource[0]}"
