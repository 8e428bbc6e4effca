"""Ways to put a fault into a program: fields changed, instructions dropped or moved, tensors put elsewhere."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from hwmodel.isa import Halt, Instruction, Queue, Signal, Store, Wait
from hwmodel.program import Program
from tests.hwmodel.programs import with_stream

DMA, FE, BE = Queue.DMA0, Queue.FE, Queue.BE
Mutation = Callable[[Program], Program]


def positions(program: Program, queue: Queue, kind: type[Instruction], **values: object) -> list[int]:
    """Where instructions with these field values stand in a queue."""
    return [
        at
        for at, instruction in enumerate(program.streams[queue])
        if isinstance(instruction, kind) and all(getattr(instruction, name) == v for name, v in values.items())
    ]


def put(program: Program, queue: Queue, at: int, *instructions: Instruction) -> Program:
    """The program with other instructions, or none, in the place of one."""
    stream = program.streams[queue]
    return with_stream(program, queue, (*stream[:at], *instructions, *stream[at + 1 :]))


def tensor(program: Program, name: str) -> int:
    return next(index for index, tensor in enumerate(program.tensors) if tensor.name == name)


def with_tensor(program: Program, name: str, **values: object) -> Program:
    index = tensor(program, name)
    changed = replace(program.tensors[index], **values)  # type: ignore[arg-type]
    return replace(program, tensors=(*program.tensors[:index], changed, *program.tensors[index + 1 :]))


def change(
    queue: Queue, kind: type[Instruction], values: dict[str, object], *, nth: int = 0, **where: object
) -> Mutation:
    """Set fields of the nth matching instruction."""

    def mutate(program: Program) -> Program:
        at = positions(program, queue, kind, **where)[nth]
        return put(program, queue, at, replace(program.streams[queue][at], **values))  # type: ignore[arg-type]

    return mutate


def both(one: Mutation, other: Mutation) -> Mutation:
    """Two changes that are needed to get past the checks of one."""
    return lambda program: other(one(program))


def drop(queue: Queue, kind: type[Instruction], *, nth: int = 0, **where: object) -> Mutation:
    """Leave out the nth matching instruction."""
    return lambda program: put(program, queue, positions(program, queue, kind, **where)[nth])


def drop_all(queue: Queue, kind: type[Instruction], **where: object) -> Mutation:
    """Leave out every matching instruction."""

    def mutate(program: Program) -> Program:
        gone = set(positions(program, queue, kind, **where))
        kept = tuple(instruction for at, instruction in enumerate(program.streams[queue]) if at not in gone)
        return with_stream(program, queue, kept)

    return mutate


def move(queue: Queue, kind: type[Instruction], before: type[Instruction], *, nth: int = 0) -> Mutation:
    """Move the nth instruction of a class before the last one of another class that precedes it."""

    def mutate(program: Program) -> Program:
        stream = list(program.streams[queue])
        at = positions(program, queue, kind)[nth]
        target = max(i for i in positions(program, queue, before) if i < at)
        stream.insert(target, stream.pop(at))
        return with_stream(program, queue, tuple(stream))

    return mutate


def place(name: str, onto: str) -> Mutation:
    """Give a tensor the address of another."""
    return lambda program: with_tensor(program, name, address=program.tensors[tensor(program, onto)].address)


def retable(name: str, **values: object) -> Mutation:
    return lambda program: with_tensor(program, name, **values)


def to_queue(source: Queue, kind: type[Instruction], target: Queue) -> Mutation:
    """Move an instruction to the front of another queue."""

    def mutate(program: Program) -> Program:
        at = positions(program, source, kind)[0]
        moved = program.streams[source][at]
        stream = program.streams.get(target, (Halt(layer=0),))
        return with_stream(put(program, source, at), target, (moved, *stream))

    return mutate


def cross_semaphores(program: Program) -> Program:
    """Each queue first waits for what the other signals later."""
    for queue in (DMA, FE):
        first = positions(program, queue, Signal)[0]
        signal = program.streams[queue][first]
        last_wait = positions(program, queue, Wait)[0]
        wait = program.streams[queue][last_wait]
        program = put(program, queue, max(first, last_wait))
        program = put(program, queue, min(first, last_wait))
        program = with_stream(program, queue, (wait, signal, *program.streams[queue]))
    return program


def third_user(program: Program) -> Program:
    """A second queue signals the semaphore of another pair."""
    wait = program.streams[BE][0]
    assert isinstance(wait, Wait)
    return with_stream(program, Queue.DMA1, (Signal(layer=0, semaphore=wait.semaphore), Halt(layer=0)))


def scattered_stores(program: Program) -> Program:
    """Stores whose edges all differ cut a tensor into far more cells than there are stores."""
    index = tensor(program, "1.lif3")
    big = with_tensor(program, "1.lif3", shape=(60, 60, 60, 60, 60), address=1 << 28)
    at = positions(program, DMA, Store, tensor=index)[0]
    store = program.streams[DMA][at]
    assert isinstance(store, Store)
    wild = [replace(store, t0=i, n0=i, y0=i, x0=i, c0=i, nt=1, nn=1, h=1, w=1, nc=1) for i in range(50)]
    return put(big, DMA, at, *wild)
