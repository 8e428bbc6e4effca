"""Turns one ordered list of instructions into queues that run side by side, with semaphores between them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field

from hwmodel.errors import CompileError, Loc
from hwmodel.isa import Halt, Instruction, Queue, Signal, Wait

Resource = tuple[object, int]  # a buffer and its bank, or a memory


@dataclass(frozen=True, slots=True, kw_only=True)
class Action:
    """An instruction in program order, with what it reads and writes on chip."""

    queue: Queue
    instruction: Instruction
    reads: tuple[Resource, ...] = ()
    writes: tuple[Resource, ...] = ()


@dataclass(slots=True)
class _Access:
    """The last accesses of a resource: (queue, position in the queue's actions)."""

    write: tuple[Queue, int] | None = None
    reads: dict[Queue, int] = field(default_factory=dict)


def synchronise(actions: Iterable[Action], loc: Loc) -> dict[Queue, tuple[Instruction, ...]]:
    """Streams per queue; every pair of conflicting accesses in different queues is ordered.

    One semaphore serves an ordered pair of queues: what one queue waits for in another grows along both, so
    the k-th signal meets the k-th wait. A dependency that an earlier wait of the same pair covers adds none.
    Needs: program order is a correct sequential execution. Ensures: no race; no deadlock (every wait is for
    an action that stands earlier in program order).
    Raises: CompileError if the configuration has fewer semaphores than pairs of queues.
    """
    ordered = list(actions)
    waits, signals = _dependencies(ordered)
    semaphores: dict[tuple[Queue, Queue], int] = {}
    for pair in sorted({(source, target) for source, target, _ in signals}, key=str):
        semaphores[pair] = len(semaphores)
    if len(semaphores) > 1 << 12:
        raise CompileError("more pairs of queues than semaphores", loc)
    streams: dict[Queue, list[Instruction]] = defaultdict(list)
    position: dict[Queue, int] = defaultdict(int)
    for index, action in enumerate(ordered):
        queue, stream = action.queue, streams[action.queue]
        layer = action.instruction.layer
        stream.extend(Wait(layer=layer, semaphore=semaphores[source, queue]) for source in waits.get(index, ()))
        stream.append(action.instruction)
        stream.extend(
            Signal(layer=layer, semaphore=number)
            for (source, target), number in semaphores.items()
            if source is queue and (source, target, position[queue]) in signals
        )
        position[queue] += 1
    return {queue: (*stream, Halt(layer=0)) for queue, stream in streams.items()}


def _dependencies(
    ordered: list[Action],
) -> tuple[dict[int, list[Queue]], set[tuple[Queue, Queue, int]]]:
    """Which actions wait for which queues, and after which position each queue signals another."""
    resources: dict[Resource, _Access] = defaultdict(_Access)
    covered: dict[tuple[Queue, Queue], int] = {}
    position: dict[Queue, int] = defaultdict(int)
    waits: dict[int, list[Queue]] = {}
    signals: set[tuple[Queue, Queue, int]] = set()
    for index, action in enumerate(ordered):
        queue = action.queue
        needed: dict[Queue, int] = {}
        for resource in (*action.reads, *action.writes):
            access = resources[resource]
            before = [access.write] if access.write else []
            if resource in action.writes:
                before += list(access.reads.items())
            for other, at in before:
                if other is not queue:
                    needed[other] = max(needed.get(other, -1), at)
        for other, at in needed.items():
            if at > covered.get((other, queue), -1):
                covered[other, queue] = at
                waits.setdefault(index, []).append(other)
                signals.add((other, queue, at))
        for resource in action.reads:
            resources[resource].reads[queue] = position[queue]
        for resource in action.writes:
            resources[resource] = _Access(write=(queue, position[queue]))
        position[queue] += 1
    return waits, signals
