"""Ways to put a fault into a phase of a training program: fields changed, instructions dropped, tensors moved."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import pytest

from hwmodel.checker import check
from hwmodel.errors import CompileError
from hwmodel.isa import Halt, Instruction, Queue, Signal, Wait, layout
from hwmodel.program import Phase, Program
from tests.hwmodel.mutations import Mutation, tensor, with_tensor
from tests.hwmodel.training_programs import digits_program, pooled_program, split_program, with_phase_stream

FORWARD, OVERLAP, BACKWARD, UPDATE = Phase.FORWARD, Phase.OVERLAP, Phase.BACKWARD, Phase.UPDATE
FE, BE, WUE, HOST = Queue.FE, Queue.BE, Queue.WUE, Queue.HOST
DMA0, DMA1, DMA2 = Queue.DMA0, Queue.DMA1, Queue.DMA2
Case = tuple[Callable[[], Program], Mutation, str]  # a program, a fault, and what the report says of it


def digits(mutate: Mutation, message: str) -> Case:
    return digits_program, mutate, message


def pooled(mutate: Mutation, message: str) -> Case:
    return pooled_program, mutate, message


def split(mutate: Mutation, message: str) -> Case:
    return split_program, mutate, message


def refusal(program: Program) -> str:
    """The faults that the checker reports."""
    with pytest.raises(CompileError) as fault:
        check(program)
    assert fault.value.loc.file == program.name
    return fault.value.message.removeprefix("the program is not valid: ")


@dataclass(frozen=True, slots=True, kw_only=True)
class Site:
    """One instruction of a program."""

    phase: Phase
    queue: Queue
    at: int

    def of(self, program: Program) -> Instruction:
        """The instruction."""
        return program.phases[self.phase][self.queue][self.at]

    def put(self, program: Program, *instructions: Instruction) -> Program:
        """The program with other instructions, or none, in its place."""
        stream = program.phases[self.phase][self.queue]
        return with_phase_stream(
            program, self.phase, self.queue, (*stream[: self.at], *instructions, *stream[self.at + 1 :])
        )

    def changed(self, program: Program, **values: object) -> Program:
        """The program with other fields in it."""
        return self.put(program, replace(self.of(program), **values))  # type: ignore[arg-type]

    def __str__(self) -> str:
        return f"{self.phase} {self.queue}[{self.at}]"


def sites(program: Program, *kinds: type[Instruction], phases: tuple[Phase, ...] = ()) -> Iterator[Site]:
    """All instructions of some classes, without the ends of queues; of all phases unless some are named."""
    for phase in phases or program.phases:
        for queue, stream in program.phases[phase].items():
            for at, instruction in enumerate(stream):
                if isinstance(instruction, kinds or Instruction) and not isinstance(instruction, Halt):
                    yield Site(phase=phase, queue=queue, at=at)


def first_sites(
    program: Program, *kinds: type[Instruction], phases: tuple[Phase, ...], key: Callable[[Instruction], object]
) -> list[Site]:
    """Of the instructions that a key does not tell apart, the first of a queue."""
    found: dict[object, Site] = {}
    for site in sites(program, *kinds, phases=phases):
        instruction = site.of(program)
        found.setdefault((site.phase, site.queue, type(instruction), key(instruction)), site)
    return list(found.values())


def find(program: Program, phase: Phase, queue: Queue, kind: type[Instruction], nth: int, **where: object) -> Site:
    """The nth instruction with these field values."""
    found = [
        at
        for at, instruction in enumerate(program.phases[phase][queue])
        if isinstance(instruction, kind) and all(getattr(instruction, name) == v for name, v in where.items())
    ]
    return Site(phase=phase, queue=queue, at=found[nth])


def change(
    phase: Phase, queue: Queue, kind: type[Instruction], values: dict[str, object], *, nth: int = 0, **where: object
) -> Mutation:
    """Set fields of the nth matching instruction."""
    return lambda program: find(program, phase, queue, kind, nth, **where).changed(program, **values)


def drop(phase: Phase, queue: Queue, kind: type[Instruction], *, nth: int = 0, **where: object) -> Mutation:
    """Leave out the nth matching instruction."""
    return lambda program: find(program, phase, queue, kind, nth, **where).put(program)


def repeat(phase: Phase, queue: Queue, kind: type[Instruction], *, nth: int = 0, **where: object) -> Mutation:
    """Execute the nth matching instruction twice."""

    def mutate(program: Program) -> Program:
        site = find(program, phase, queue, kind, nth, **where)
        return site.put(program, site.of(program), site.of(program))

    return mutate


def drop_all(phase: Phase, queue: Queue, kind: type[Instruction], **where: object) -> Mutation:
    """Leave out every matching instruction."""

    def mutate(program: Program) -> Program:
        kept = tuple(
            instruction
            for instruction in program.phases[phase][queue]
            if not isinstance(instruction, kind) or any(getattr(instruction, name) != v for name, v in where.items())
        )
        return with_phase_stream(program, phase, queue, kept)

    return mutate


def to_queue(phase: Phase, source: Queue, kind: type[Instruction], target: Queue) -> Mutation:
    """Move an instruction to the front of another queue."""

    def mutate(program: Program) -> Program:
        site = find(program, phase, source, kind, 0)
        stream = program.phases[phase].get(target, (Halt(layer=0),))
        return with_phase_stream(site.put(program), phase, target, (site.of(program), *stream))

    return mutate


def without_queue(phase: Phase, queue: Queue) -> Mutation:
    """A phase whose queue does nothing."""
    return lambda program: with_phase_stream(program, phase, queue, (Halt(layer=0),))


def before(phase: Phase, queue: Queue, *instructions: Instruction) -> Mutation:
    """Instructions at the front of a queue."""

    def mutate(program: Program) -> Program:
        stream = program.phases[phase].get(queue, (Halt(layer=0),))
        return with_phase_stream(program, phase, queue, (*instructions, *stream))

    return mutate


def other_semaphore(phase: Phase, queue: Queue, kind: type[Signal] | type[Wait], number: int) -> Mutation:
    """The first signal, or wait, of a queue on another semaphore."""
    return change(phase, queue, kind, {"semaphore": number})


def move(name: str, onto: str) -> Mutation:
    """Give a tensor, and what shows it, the address of another."""

    def mutate(program: Program) -> Program:
        address = program.tensors[tensor(program, onto)].address
        for item in program.tensors:
            if name in (item.name, item.view_of):
                program = with_tensor(program, item.name, address=address)
        return program

    return mutate


def retable_all(name: str, **values: object) -> Mutation:
    """Change a tensor and what shows it."""

    def mutate(program: Program) -> Program:
        for item in program.tensors:
            if name in (item.name, item.view_of):
                program = with_tensor(program, item.name, **values)
        return program

    return mutate


def retrain(**values: object) -> Mutation:
    """Change the first parameter's entry in the training table."""

    def mutate(program: Program) -> Program:
        training = program.training
        assert training is not None
        first, *others = training.parameters
        changed = replace(first, **values)  # type: ignore[arg-type]
        return _with_training(program, parameters=(changed, *others))

    return mutate


def remachine(machines: int) -> Mutation:
    """Change the number of machines that share a batch."""
    return lambda program: _with_training(program, machines=machines)


def regroup(batch_group: int) -> Mutation:
    """Change the number of sub-batches between updates."""
    return lambda program: _with_training(program, batch_group=batch_group)


def _with_training(program: Program, **values: object) -> Program:
    assert program.training is not None
    return replace(program, training=replace(program.training, **values))  # type: ignore[arg-type]


def numbers(instruction: Instruction) -> Iterator[tuple[str, int]]:
    """The numeric fields of an instruction, each with one more and with 0 where that is another value."""
    for item in layout(type(instruction)):
        if item.enum is None and not item.is_bool:
            value = getattr(instruction, item.name)
            largest = (1 << item.width - item.signed) - 1
            yield from ((item.name, v) for v in dict.fromkeys((min(value + 1, largest), 0)) if v != value)
