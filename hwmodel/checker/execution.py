"""Executes a program abstractly: queues, semaphores and accesses, without values."""

from __future__ import annotations

from collections import defaultdict, deque
from dataclasses import dataclass, field

import numpy as np

from hwmodel.assembler import disassemble
from hwmodel.checker.banks import BankError, BankRules, Content, Place, name_of, part_of
from hwmodel.checker.clocks import INDEX, Accesses, Clock, zero_clock
from hwmodel.checker.memory import MemoryState, table_faults
from hwmodel.checker.parameters import parameter_faults
from hwmodel.checker.places import training_places
from hwmodel.checker.streams import MEMORY_OF, stream_faults
from hwmodel.checker.training_banks import TrainingRules
from hwmodel.errors import CompileError, Loc
from hwmodel.isa import (
    ENGINE_BUFFERS,
    GRADIENT_BUFFERS,
    AddGradient,
    ConvTile,
    FcTile,
    Grad,
    GradConvTile,
    GradFcTile,
    Halt,
    HostLoss,
    HostUpdate,
    Instruction,
    Load,
    LutProgram,
    OuterTile,
    Part,
    PoolSetup,
    Queue,
    SgdStep,
    Signal,
    Soma,
    Store,
    UpdateFcTile,
    UpdateTile,
    Wait,
)
from hwmodel.program import Format, Phase, Program

MOST_FAULTS = 5
Resource = Place | tuple[str, int]

_LUT: Resource = ("lut", 0)
_TILES = (GradConvTile, GradFcTile, UpdateTile, UpdateFcTile, OuterTile)


def check(program: Program) -> None:
    """Prove that a program stays inside its memories and buffers, uses only what was written, and ends.

    A training program is launched as for a batch group of two: FORWARD, OVERLAP, BACKWARD, UPDATE, FORWARD. A longer
    group repeats OVERLAP, which finds in the other memory what the launch before left there, as it does here.

    Queues are executed in turn; semaphores hand the signaller's vector clock on in order, so every conflicting
    access is known to be ordered, or is reported, whatever the speed of the queues.

    Raises: CompileError with the first faults: place, instruction and what it lacks.
    """
    tables = table_faults(program) or parameter_faults(program)
    faults = tables or stream_faults(program) or _executed(program)
    if faults:
        raise CompileError(
            "the program is not valid: " + "\n  ".join(faults[:MOST_FAULTS]),
            Loc(program.name),
            hint="a file that was not changed by hand and fails here shows a fault of the compiler",
        )


def _executed(program: Program) -> list[str]:
    """The faults of all launches, one after the other."""
    memory = MemoryState(program)
    if program.training is None:
        return list(memory.faults) or _Execution(program, Phase.RUN, memory).run()
    faults = list(memory.faults)
    for phase, swapped in _LAUNCHES:
        memory.launch(phase, swapped=swapped)
        found = faults or _Execution(program, phase, memory).run()
        if found:
            return [f"{phase}: {fault}" for fault in found]
    return []


_LAUNCHES = (
    (Phase.FORWARD, False),
    (Phase.OVERLAP, True),
    (Phase.BACKWARD, False),
    (Phase.UPDATE, False),
    (Phase.FORWARD, False),
)


@dataclass(slots=True)
class _Semaphore:
    clocks: deque[Clock] = field(default_factory=deque)
    signaller: Queue | None = None
    waiter: Queue | None = None


class _Execution:
    def __init__(self, program: Program, phase: Phase, memory: MemoryState) -> None:
        streams = program.phases[phase]
        self._program = program
        self._phase = phase
        self._streams = streams
        self._memory = memory
        self._faults: list[str] = []
        self._banks = BankRules(program)
        self._training = TrainingRules(self._banks, program)
        self._sums: dict[Place, tuple[Place, ...]] = {}  # parts of partial sums, until a unit takes them
        self._accesses: dict[tuple[object, int], Accesses] = defaultdict(Accesses)
        self._semaphores: dict[int, _Semaphore] = defaultdict(_Semaphore)
        self._clocks = {queue: zero_clock() for queue in streams}
        self._position = dict.fromkeys(streams, 0)

    def run(self) -> list[str]:
        """Execute all queues; the faults found."""
        running = [queue for queue, stream in self._streams.items() if stream]
        while running and not self._faults:
            progress = [self._advance(queue) for queue in running]
            running = [q for q in running if self._position[q] < len(self._streams[q])]
            if not any(progress):
                self._faults.append(self._deadlock(running))
        has_forward = self._phase in (Phase.RUN, Phase.FORWARD, Phase.OVERLAP)
        if not self._faults and has_forward and (name := self._memory.unwritten_output()):
            self._faults.append(f"output {name} is not written completely")
        return self._faults or self._left_over() or self._memory.missed_parameters(self._phase)

    def _advance(self, queue: Queue) -> bool:
        """Run one queue until it waits or ends; whether it moved."""
        stream = self._streams[queue]
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
                _refuse(self._memory.load(instruction, MEMORY_OF[queue], INDEX[queue], clock))
                place = part_of(instruction.buffer, instruction.bank, instruction.part)
                self._access(queue, clock, writes=(place,))
                self._banks.load(instruction)
                self._training.loaded(instruction)
                self._sums.pop(place, None)
                _refuse(self._memory.halo(instruction))
            case Store():
                place = part_of(instruction.buffer, instruction.bank, instruction.part)
                masks = self._packing(instruction)
                self._access(queue, clock, reads=(place, *masks))
                self._check_stored(instruction, self._banks.need(place), masks)
                self._training.stored(instruction)
                _refuse(self._memory.store(instruction, MEMORY_OF[queue], INDEX[queue], clock))
            case LutProgram():
                weight_bank = (ENGINE_BUFFERS[queue].weights, instruction.w_bank)
                self._access(queue, clock, reads=(weight_bank,), writes=(_LUT,))
                self._banks.lut_program(instruction)
            case ConvTile() | FcTile():
                banks = ENGINE_BUFFERS[queue]
                weights: Resource = _LUT if queue is Queue.FE else (banks.weights, instruction.w_bank)
                source, psum = (banks.source, instruction.src_bank), (banks.psum, instruction.dst_bank)
                self._access(queue, clock, reads=(source, weights), writes=(psum,))
                self._add_up((psum,), accumulate=instruction.accumulate)
                if isinstance(instruction, ConvTile):
                    self._banks.conv_tile(queue, instruction)
                else:
                    self._banks.fc_tile(queue, instruction)
            case PoolSetup():
                self._banks.pool_setup(queue, instruction)
            case Soma():
                self._soma(queue, instruction, clock)
            case HostLoss() | HostUpdate():
                self._host(queue, instruction, clock)
            case _:
                reads, writes = training_places(queue, instruction)
                self._access(queue, clock, reads=reads, writes=writes)
                if isinstance(instruction, _TILES):
                    self._add_up(writes, accumulate=instruction.accumulate)
                else:
                    self._take_sums(queue, instruction)
                self._apply_training(queue, instruction)

    def _add_up(self, places: tuple[Place, ...], *, accumulate: bool) -> None:
        """Partial sums begin, or go on with the same parts: a bias in all grid iterations of a sum or in none."""
        is_filled = places[0] in self._banks.contents  # else the tile reports that
        if accumulate and is_filled and self._sums.get(places[0]) != places:
            raise BankError(f"accumulates onto {name_of(places[0])}, which holds no such partial sums")
        self._sums[places[0]] = places

    def _take_sums(self, queue: Queue, instruction: Instruction) -> None:
        """Sums that a unit takes are complete."""
        match instruction:
            case Grad():
                self._sums.pop((ENGINE_BUFFERS[queue].psum, instruction.bank), None)
            case AddGradient():
                self._sums.pop((GRADIENT_BUFFERS[queue].psum, instruction.psum_bank), None)

    def _apply_training(self, queue: Queue, instruction: Instruction) -> None:
        match instruction:
            case GradConvTile():
                self._training.grad_conv_tile(instruction)
            case GradFcTile():
                self._training.grad_fc_tile(instruction)
            case Grad():
                self._training.grad(instruction)
            case UpdateTile():
                self._training.update_tile(instruction)
            case UpdateFcTile():
                self._training.update_fc_tile(instruction)
            case OuterTile():
                self._training.outer_tile(instruction)
            case AddGradient():
                self._training.add_gradient(queue, instruction)
            case SgdStep():
                self._training.sgd_step(instruction)

    def _host(self, queue: Queue, instruction: HostLoss | HostUpdate, clock: Clock) -> None:
        """The host reads and writes whole tensors; weights in both memories."""
        tensors = self._program.tensors
        reads: tuple[int, ...] = (instruction.gradient,)
        writes: tuple[int, ...] = (instruction.gradient,)
        if isinstance(instruction, HostLoss):
            reads = (instruction.output,)
        else:
            writes = (instruction.weight, instruction.gradient)
        for indices, write in ((reads, False), (writes, True)):
            for index in indices:
                for memory in (0, 1) if tensors[index].mirrored else (tensors[index].memory,):
                    _refuse(self._memory.whole(index, memory, INDEX[queue], clock, write=write))

    def _packing(self, store: Store) -> tuple[Place, ...]:
        """The mask that packs what a store moves."""
        if self._program.tensors[store.tensor].format is not Format.MCOMP:
            return ()
        for buffers in ENGINE_BUFFERS.values():
            if buffers.psum is store.buffer:
                return (part_of(buffers.mask, store.bank, store.part),)
        raise BankError(f"packs what stands in {store.buffer}, which has no mask")

    def _soma(self, queue: Queue, soma: Soma, clock: Clock) -> None:
        banks = ENGINE_BUFFERS[queue]
        states: list[Place] = [(banks.state, stage) for stage in range(soma.present1 + soma.present2)]
        reads: list[Place] = states if soma.state_in else []
        if soma.present1 or soma.present2:
            reads = [*reads, (banks.neuron, soma.neuron_bank)]
        writes: list[Place] = [(banks.psum, soma.psum_bank), (banks.out, soma.out_bank)]
        if soma.keep:
            parts = (Part.FIRST, Part.SECOND)
            writes += [part_of(banks.psum, soma.psum_bank, part) for part in parts]
            writes += [part_of(banks.mask, soma.out_bank, part) for part in (*parts, Part.WINNERS)]
            writes.append(part_of(banks.out, soma.out_bank, Part.FIRST))
        self._access(queue, clock, reads=tuple(reads), writes=(*writes, *(states if soma.state_out else [])))
        self._sums.pop((banks.psum, soma.psum_bank), None)
        self._banks.soma(queue, soma)

    def _access(
        self,
        queue: Queue,
        clock: Clock,
        *,
        reads: tuple[Resource, ...] = (),
        writes: tuple[Resource, ...] = (),
    ) -> None:
        """Refuse an access that is not ordered; parts share their bank's space, so that it is the bank that counts."""
        for resources, write in ((reads, False), (writes, True)):
            for resource in resources:
                accesses = self._accesses[resource[0], resource[1] % 2]
                if race := accesses.race(clock, write=write):
                    raise BankError(f"races on {name_of(resource)} with {race}")
                accesses.note(INDEX[queue], clock, write=write)

    def _check_stored(self, store: Store, content: Content, masks: tuple[Place, ...]) -> None:
        tensor = self._program.tensors[store.tensor]
        region = (store.nt, store.nn, store.h, store.w, store.nc)
        for held in (content, *(self._beside(mask) for mask in masks)):
            if (held.nt, held.nn, held.h, held.w, held.nc) != region:
                raise BankError(f"stores a region {region}, the bank holds {held}")
        packed = tensor.format is Format.MCOMP and content.format is Format.FP16
        if content.format is not tensor.format and not packed:
            raise BankError(f"stores {content.format} to {tensor.name}, which is {tensor.format}")

    def _beside(self, mask: Place) -> Content:
        """A mask that packs; it must be stored itself too, or nothing could unpack."""
        waits = mask in self._banks.unread
        content = self._banks.need(mask)
        if waits:
            self._banks.unread.add(mask)
        return content

    def _report(self, queue: Queue, instruction: Instruction, what: str) -> None:
        place = f"{queue}[{self._position[queue]}]"
        self._faults.append(f"{place} {disassemble(instruction)}: {what}")

    def _deadlock(self, running: list[Queue]) -> str:
        waits = ", ".join(
            f"{queue}[{self._position[queue]}] for semaphore {self._semaphore_at(queue)}" for queue in running
        )
        return f"deadlock: {waits}"

    def _semaphore_at(self, queue: Queue) -> int:
        instruction = self._streams[queue][self._position[queue]]
        assert isinstance(instruction, Wait)
        return instruction.semaphore

    def _left_over(self) -> list[str]:
        unread = [f"{name_of(place)} is written, and never read" for place in sorted(self._banks.unread)]
        return unread + [
            f"semaphore {number} is signalled {len(semaphore.clocks)} times more than waited for"
            for number, semaphore in self._semaphores.items()
            if semaphore.clocks
        ]


def _refuse(fault: str) -> None:
    if fault:
        raise BankError(fault)
