"""Turns the queues of a phase into channels: instructions that take time, each with what it must wait for."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field

from hwmodel.checker.streams import MEMORY_OF
from hwmodel.config import DmaChannels, EncodingPath, H2LearnConfig, UpdateMemory
from hwmodel.errors import CompileError, Loc
from hwmodel.isa import (
    GRADIENT_BUFFERS,
    Buffer,
    Grad,
    GradConvTile,
    GradFcTile,
    Halt,
    Instruction,
    Queue,
    Signal,
    Store,
    Transfer,
    Wait,
)
from hwmodel.program import Program, Role, Streams

Place = tuple[str, int]  # a channel and the number of an instruction in it

ENCODING = "be.encoding"
_GRADIENTS = (Grad, GradConvTile, GradFcTile)
_UPDATE_BUFFERS = {
    *(GRADIENT_BUFFERS[Queue.WUE].source, GRADIENT_BUFFERS[Queue.WUE].gradient, GRADIENT_BUFFERS[Queue.WUE].psum),
    *(GRADIENT_BUFFERS[Queue.WUE].stream, Buffer.WU_WEIGHT, Buffer.WU_MOMENTUM),
}


@dataclass(slots=True)
class Channel:
    """Instructions that run one after the other.

    `port` names the memory that a transfer occupies, "" for an engine; `positions` are places in the queue's stream.
    """

    name: str
    queue: Queue
    port: str
    instructions: list[Instruction] = field(default_factory=list)
    positions: list[int] = field(default_factory=list)
    needs: list[tuple[Place, ...]] = field(default_factory=list)


def channels_of(program: Program, streams: Streams) -> tuple[Channel, ...]:
    """The channels of a phase.

    Each queue is one channel, except: with `encoding = apart` the encoding layer's passes leave the Backward Engine's,
    with banks of their own, so that the backward pass does not wait for them; with `dma_channels = per_engine` (or a
    separate memory of the Weight Update Engine) each engine has its own transfers, which then wait for each other
    where they touch the same tensor.
    Raises: CompileError for a semaphore with two signalling or two waiting queues, whose order is not fixed.
    """
    channels: dict[str, Channel] = {}
    places: dict[tuple[Queue, int], Place] = {}  # of every instruction of a stream that takes time
    waits: dict[Place, list[int]] = defaultdict(list)
    signals: dict[int, list[Place | None]] = defaultdict(list)
    owners: dict[tuple[type, int], Queue] = {}
    for queue in sorted(streams, key=list(Queue).index):  # a file may keep them in another order
        stream = streams[queue]
        last: Place | None = None
        pending: list[int] = []
        for position, instruction in enumerate(stream):
            match instruction:
                case Wait():
                    _claim(owners, queue, instruction, program)
                    pending.append(instruction.semaphore)
                case Signal():
                    _claim(owners, queue, instruction, program)
                    signals[instruction.semaphore].append(last)
                case Halt():
                    pass
                case _:
                    channel = _channel(channels, program, queue, instruction)
                    last = (channel.name, len(channel.instructions))
                    channel.instructions.append(instruction)
                    channel.positions.append(position)
                    places[queue, position] = last
                    waits[last] = pending
                    pending = []
    return _ordered(channels, places, waits, signals, program)


def _claim(owners: dict[tuple[type, int], Queue], queue: Queue, instruction: Wait | Signal, program: Program) -> None:
    """One queue signals a semaphore, and one waits for it."""
    owner = owners.setdefault((type(instruction), instruction.semaphore), queue)
    if owner is not queue:
        raise CompileError(
            f"semaphore {instruction.semaphore} is shared by {owner} and {queue}, its order is open", Loc(program.name)
        )


def _channel(channels: dict[str, Channel], program: Program, queue: Queue, instruction: Instruction) -> Channel:
    """The channel of an instruction, made on first use."""
    config = program.config
    name, port = str(queue), ""
    if isinstance(instruction, Transfer):
        port = f"mem{MEMORY_OF[queue]}"
        if instruction.buffer in _UPDATE_BUFFERS and queue is Queue.DMA1:
            name += ".update" if _is_split(config) else ""
            port = "mem_update" if config.timing.update_memory is UpdateMemory.SEPARATE else port
        elif instruction.buffer.startswith("be_") and queue is Queue.DMA0 and _is_split(config):
            name += ".encoding"
    elif queue is Queue.BE and _is_encoding(program, instruction):
        name = ENCODING
    return channels.setdefault(name, Channel(name, queue, port))


def _is_split(config: H2LearnConfig) -> bool:
    timing = config.timing
    return timing.dma_channels is DmaChannels.PER_ENGINE or timing.update_memory is UpdateMemory.SEPARATE


def _is_encoding(program: Program, instruction: Instruction) -> bool:
    """The dense passes of a layer that takes real values: its sums, its neurons, its weight gradients."""
    if program.config.timing.encoding is not EncodingPath.APART or program.training is None:
        return False
    return program.layers[instruction.layer].engine is Queue.BE and not isinstance(instruction, _GRADIENTS)


def _goes_backward(program: Program, queue: Queue, channel: str, instruction: Instruction) -> bool:
    """Gradients, which share nothing but banks with the encoding layer's passes and the forward pass beside them."""
    if queue is Queue.BE:
        return channel != ENCODING
    if queue not in (Queue.DMA1, Queue.DMA2) or not isinstance(instruction, Transfer):
        return False
    # what the weight gradients of the encoding layer take and leave belongs to its passes
    if instruction.buffer is Buffer.BE_IN:
        return program.tensors[instruction.tensor].role is not Role.INPUT
    return instruction.buffer is not Buffer.BE_GRAD and (instruction.buffer, instruction.part) != (Buffer.BE_M, 0)


def _ordered(
    channels: Mapping[str, Channel],
    places: Mapping[tuple[Queue, int], Place],
    waits: Mapping[Place, list[int]],
    signals: Mapping[int, list[Place | None]],
    program: Program,
) -> tuple[Channel, ...]:
    """The channels with their needs: the k-th wait of a semaphore is for what stands before its k-th signal."""
    taken: dict[int, int] = defaultdict(int)
    tensors = _TensorOrder(program)
    for (queue, _), place in places.items():
        channel, number = channels[place[0]], place[1]
        needed: set[Place] = set()
        for semaphore in waits[place]:
            count = taken[semaphore]
            taken[semaphore] += 1
            if count >= len(signals[semaphore]):
                raise CompileError(f"{queue} waits for semaphore {semaphore} in vain", Loc(program.name))
            signal = signals[semaphore][count]
            if signal is not None:
                needed.add(signal)
        instruction = channel.instructions[number]
        if isinstance(instruction, Transfer):
            needed |= tensors.before(instruction, place)
        if ENCODING in channels and _goes_backward(program, queue, channel.name, instruction):
            needed = {other for other in needed if other[0] != ENCODING and channels[other[0]].queue is not Queue.DMA0}
        channel.needs.append(tuple(needed))
    return tuple(channels.values())


class _TensorOrder:
    """What transfers of different channels of one queue must wait for, since the queue no longer orders them."""

    def __init__(self, program: Program) -> None:
        names = {tensor.name: index for index, tensor in enumerate(program.tensors)}
        self._base = [names[t.view_of] if t.view_of else i for i, t in enumerate(program.tensors)]
        self._stores: dict[int, Place] = {}
        self._loads: dict[int, dict[str, Place]] = defaultdict(dict)

    def before(self, transfer: Transfer, place: Place) -> set[Place]:
        """Places in other channels, in program order before this transfer, that touch the same tensor."""
        tensor = self._base[transfer.tensor]
        found: set[Place] = set()
        if tensor in self._stores:
            found.add(self._stores[tensor])
        if isinstance(transfer, Store):
            found |= set(self._loads.pop(tensor, {}).values())
            self._stores[tensor] = place
        else:
            self._loads[tensor][place[0]] = place
        queue = place[0].split(".")[0]
        return {other for other in found if other[0] != place[0] and other[0].split(".")[0] == queue}
