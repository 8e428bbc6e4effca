"""When: executes the channels of a phase in time, with three memories that serve one transfer at a time."""

from __future__ import annotations

import heapq
from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

from hwmodel.config import H2LearnConfig
from hwmodel.errors import CompileError, Loc
from hwmodel.isa import GradConvTile, Instruction, Queue, Store, Transfer
from hwmodel.program import Format, Phase, Program
from hwmodel.timing.instructions import instruction_work, kept_rim, streamed_work, transfer_bytes
from hwmodel.timing.tiles import DenseTiles, TileSource
from hwmodel.work import Work
from runtime.timing.channels import Channel, Place, channels_of


class Kept(Protocol):
    """The part of the compressed membrane potentials that a transfer moves."""

    def density(self, queue: Queue, position: int, layer: int) -> float:
        """Between 0 and 1, for the transfer at this place in the queue's stream."""
        ...


@dataclass(frozen=True, slots=True)
class KeptByLayer:
    """The same part in all transfers of a layer; everything in layers of which nothing is known."""

    parts: Mapping[int, float] = field(default_factory=dict)

    def density(self, queue: Queue, position: int, layer: int) -> float:
        """The layer's part."""
        return self.parts.get(layer, 1.0)


@dataclass(slots=True)
class ChannelTiming:
    """One channel in time; all lists run over its instructions, times in cycles.

    An instruction asks at `asked` (its channel is free and what it needs is done) and runs from `starts` to `ends`;
    between them it waits for its memory. `blocked_by` sums the time before asking, by the channel waited for.
    """

    channel: Channel
    asked: list[float] = field(default_factory=list)
    starts: list[float] = field(default_factory=list)
    ends: list[float] = field(default_factory=list)
    blocked_by: dict[str, float] = field(default_factory=lambda: defaultdict(float))

    @property
    def busy(self) -> float:
        """Cycles that instructions run."""
        return sum(self.ends) - sum(self.starts)

    @property
    def contended(self) -> float:
        """Cycles that transfers wait for a memory that serves another channel."""
        return sum(self.starts) - sum(self.asked)


@dataclass(frozen=True, slots=True, kw_only=True)
class Moved:
    """Bytes between a memory and a buffer, for one layer."""

    memory: str
    layer: int
    buffer: str
    stored: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class PhaseTiming:
    """One launch of a phase.

    Units: cycles of the configuration's clock, bytes. `work` is by engine and layer, `bytes` by way and layer.
    """

    phase: Phase
    elapsed_cycles: float
    channels: tuple[ChannelTiming, ...]
    work: Mapping[tuple[Queue, int], Work]
    bytes: Mapping[Moved, float]

    def busy(self, queue: Queue) -> float:
        """Cycles that an engine, or the transfers of a queue, are busy."""
        return sum(timing.busy for timing in self.channels if timing.channel.queue is queue)

    def moved(self, memory: str) -> float:
        """Bytes in and out of one memory."""
        return sum(count for way, count in self.bytes.items() if way.memory == memory)


def simulate(
    program: Program, phase: Phase, *, tiles: TileSource | None = None, kept: Kept | None = None
) -> PhaseTiming:
    """Time of one launch: each channel in order, each instruction when what it needs is done.

    A transfer takes bytes / bandwidth of its memory and has it for itself; memories serve in the order of asking.
    `tiles` says how long gradient tiles take (dense unless given), `kept` how much of the membranes moves.
    Raises: CompileError where channels wait for each other.
    """
    channels = channels_of(program, program.phases[phase])
    costs = _Costs(program, tiles or DenseTiles(program.config), kept or KeptByLayer())
    timings = {channel.name: ChannelTiming(channel) for channel in channels}
    durations = {channel.name: costs.durations(channel) for channel in channels}
    _run(timings, durations)
    stuck = [name for name, timing in timings.items() if len(timing.ends) < len(timing.channel.instructions)]
    if stuck:
        raise CompileError(f"{phase}: {', '.join(stuck)} wait for each other", Loc(program.name))
    return PhaseTiming(
        phase=phase,
        elapsed_cycles=max((timing.ends[-1] for timing in timings.values() if timing.ends), default=0.0),
        channels=tuple(timings.values()),
        work=costs.work(),
        bytes=dict(costs.bytes),
    )


def _run(timings: Mapping[str, ChannelTiming], durations: Mapping[str, list[float]]) -> None:
    """The events in the order of time; of two at the same time the channel that was made first goes first."""
    order = {name: index for index, name in enumerate(timings)}
    waiting: dict[Place, list[str]] = defaultdict(list)
    port_free: dict[str, float] = defaultdict(float)
    ready: list[tuple[float, int, str]] = []
    for name in timings:
        _advance(name, timings, waiting, ready, order)
    while ready:
        asked, _, name = heapq.heappop(ready)
        timing = timings[name]
        number = len(timing.starts)
        port = timing.channel.port
        start = max(asked, port_free[port]) if port else asked
        end = start + durations[name][number]
        if port:
            port_free[port] = end
        timing.asked.append(asked)
        timing.starts.append(start)
        timing.ends.append(end)
        for other in waiting.pop((name, number), ()):
            _advance(other, timings, waiting, ready, order)
        _advance(name, timings, waiting, ready, order)


def _advance(
    name: str,
    timings: Mapping[str, ChannelTiming],
    waiting: dict[Place, list[str]],
    ready: list[tuple[float, int, str]],
    order: Mapping[str, int],
) -> None:
    """Queue a channel's next instruction when all it needs has run, else note what it waits for."""
    timing = timings[name]
    number = len(timing.starts)
    if number == len(timing.channel.instructions):
        return
    free = timing.ends[-1] if timing.ends else 0.0
    asked, blocker = free, ""
    for place in timing.channel.needs[number]:
        ends = timings[place[0]].ends
        if len(ends) <= place[1]:
            waiting[place].append(name)
            return
        if ends[place[1]] > asked:
            asked, blocker = ends[place[1]], place[0]
    if blocker:
        timing.blocked_by[blocker] += asked - free
    heapq.heappush(ready, (asked, order[name], name))


class _Costs:
    """Durations of instructions, and what they add up to."""

    def __init__(self, program: Program, tiles: TileSource, kept: Kept) -> None:
        self._program = program
        self._config: H2LearnConfig = program.config
        self._tiles = tiles
        self._kept = kept
        self._known: dict[Instruction, Work] = {}
        self._counts: Counter[tuple[Queue, Instruction]] = Counter()
        self._found: dict[tuple[Queue, int], Work] = {}
        self.bytes: dict[Moved, float] = defaultdict(float)

    def durations(self, channel: Channel) -> list[float]:
        """Cycles of each instruction of a channel."""
        rate = self._config.memory.bytes_per_cycle
        cycles: list[float] = []
        for instruction, position in zip(channel.instructions, channel.positions, strict=True):
            if isinstance(instruction, Transfer):
                cycles.append(self._moved(channel, instruction, position) / rate)
            else:
                cycles.append(self._engine(channel.queue, instruction, position))
        return cycles

    def _moved(self, channel: Channel, transfer: Transfer, position: int) -> float:
        tensor = self._program.tensors[transfer.tensor]
        density = self._kept.density(channel.queue, position, transfer.layer) if tensor.format is Format.MCOMP else 1.0
        rim = kept_rim(transfer, tensor, self._program.layers, self._config)
        moved = transfer_bytes(transfer, tensor, self._config, window_density=density, rim=rim)
        stored = isinstance(transfer, Store)
        way = Moved(memory=channel.port, layer=transfer.layer, buffer=str(transfer.buffer), stored=stored)
        self.bytes[way] += moved
        if isinstance(transfer, Store):
            engine = Queue.BE if transfer.buffer.startswith("be_") else Queue.WUE
            self._add(engine, transfer.layer, streamed_work(transfer, moved))
        return moved

    def _engine(self, queue: Queue, instruction: Instruction, position: int) -> float:
        if isinstance(instruction, GradConvTile):
            work = instruction_work(instruction, self._config, queue, self._tiles, position)
            self._add(queue, instruction.layer, work)
            return work.cycles
        found = self._known.get(instruction)
        if found is None:
            found = self._known[instruction] = instruction_work(instruction, self._config, queue, self._tiles)
        self._counts[queue, instruction] += 1
        return found.cycles

    def _add(self, queue: Queue, layer: int, work: Work) -> None:
        known = self._found.get((queue, layer))
        self._found[queue, layer] = work if known is None else known + work

    def work(self) -> dict[tuple[Queue, int], Work]:
        """Everything that the engines did, by engine and layer."""
        for (queue, instruction), count in self._counts.items():
            self._add(queue, instruction.layer, self._known[instruction].times(count))
        self._counts.clear()
        return self._found
