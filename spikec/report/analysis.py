"""Adds up a simulated program: time, stalls, bytes and energy by phase, layer and resource."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from hwmodel.area import ChipArea, chip_area
from hwmodel.config import H2LearnConfig
from hwmodel.energy import Energy
from hwmodel.program import Phase, Program
from hwmodel.timing.tiles import TileSource
from runtime.timing.energy import phase_energy
from runtime.timing.recorded_tiles import Recorded
from runtime.timing.simulate import ChannelTiming, Kept, PhaseTiming, simulate
from runtime.timing.step import launches
from runtime.timing.trace import Activity, Slice, slices
from spikec.report.critical_path import critical_path
from spikec.report.roofline import Roof, rooflines

Totals = dict[str, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Stall:
    """A channel that waits.

    cause: the channel that it waits for, or, where `contended`, the memory that serves another channel.
    """

    channel: str
    cause: str
    contended: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class ChannelReport:
    """A channel's time: busy + blocked + contended + done = elapsed of the phase. Units: cycles."""

    name: str
    memory: str  # "" for an engine
    instructions: int
    busy: float
    blocked: float
    contended: float
    done: float  # behind its last instruction


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerReport:
    """A layer in a phase.

    span_cycles: from the begin of its first instruction to the end of its last one; layers overlap.
    critical_cycles: its part of the critical path, by resource; over all layers they add up to the elapsed time.
    busy_cycles: of engines and memories, which overlap. bytes: through external memories, and through buffers on chip
    as the engines read and write them. dynamic_j: by component, without leakage, which belongs to no layer.
    """

    name: str
    span_cycles: tuple[float, float]
    critical_cycles: Mapping[str, float]
    busy_cycles: Mapping[str, float]
    stall_cycles: Mapping[Stall, float]
    memory_bytes: Mapping[str, float]
    buffer_bytes: Mapping[str, float]  # between memory and buffer
    on_chip_bytes: Mapping[str, float]  # between buffer and engine
    dynamic_j: Mapping[str, float]

    @property
    def elapsed_cycles(self) -> float:
        """The length of its span."""
        return self.span_cycles[1] - self.span_cycles[0]

    @property
    def bound_by(self) -> str:
        """The engine or memory that is busy longest for it, "" where none is."""
        return _ranked(self.busy_cycles)[0][0]

    @property
    def margin(self) -> float:
        """Its cycles over those of the next one; infinite where there is no other."""
        (_, first), (_, second) = _ranked(self.busy_cycles)
        return first / second if second else math.inf


@dataclass(frozen=True, slots=True, kw_only=True)
class PhaseReport:
    """A phase, and how often a batch group (an inference: a sub-batch) launches it."""

    timing: PhaseTiming
    launches: int
    channels: tuple[ChannelReport, ...]
    layers: tuple[LayerReport, ...]
    energy: Energy
    roofs: tuple[Roof, ...]

    @property
    def phase(self) -> Phase:
        """Its name."""
        return self.timing.phase

    @property
    def elapsed_cycles(self) -> float:
        """Of one launch."""
        return self.timing.elapsed_cycles

    @property
    def critical_cycles(self) -> Totals:
        """The critical path by resource."""
        return summed(layer.critical_cycles for layer in self.layers)

    @property
    def stall_cycles(self) -> dict[Stall, float]:
        """All waits."""
        found: dict[Stall, float] = defaultdict(float)
        for layer in self.layers:
            for stall, cycles in layer.stall_cycles.items():
                found[stall] += cycles
        return dict(found)


@dataclass(frozen=True, slots=True, kw_only=True)
class Analysis:
    """A program: its phases, and what a sample costs.

    Training: FORWARD of the first sub-batch of a group, OVERLAP for each other one, BACKWARD of the last one, one
    UPDATE. Of several machines each runs its share of the group, all at the same time; their exchange of gradients is
    not timed.
    Source: figure 3.9.
    """

    program: Program
    phases: tuple[PhaseReport, ...]
    samples: int  # of all machines, between two updates
    area: ChipArea

    @property
    def config(self) -> H2LearnConfig:
        """What it ran on."""
        return self.program.config

    @property
    def main(self) -> PhaseReport:
        """The steady state: OVERLAP where there is one, else the phase that runs."""
        return max(self.phases, key=lambda phase: (phase.phase is Phase.OVERLAP and phase.launches > 0, phase.launches))

    @property
    def machines(self) -> int:
        """Chips that share a batch."""
        return self.program.training.machines if self.program.training is not None else 1

    @property
    def cycles(self) -> float:
        """From one update to the next, or of a sub-batch's inference."""
        return math.fsum(phase.elapsed_cycles * phase.launches for phase in self.phases)

    @property
    def seconds(self) -> float:
        """The same in s."""
        return self.cycles / (self.config.clock_ghz * 1e9)

    @property
    def cycles_per_sample(self) -> float:
        """Cycles of a machine for each of its samples."""
        return self.cycles * self.machines / self.samples

    @property
    def samples_per_s(self) -> float:
        """Of all machines."""
        return self.samples / self.seconds

    @property
    def energy_j(self) -> float:
        """On chip, of all machines; external memory is not counted."""
        return self.machines * math.fsum(phase.energy.total_j * phase.launches for phase in self.phases)

    @property
    def joules_per_sample(self) -> float:
        """Dynamic energy and leakage."""
        return self.energy_j / self.samples

    def energy_by_component(self) -> Totals:
        """Energy of a sample by component, J."""
        parts = (scaled(phase.energy.by_component(), phase.launches) for phase in self.phases)
        return scaled(summed(parts), self.machines / self.samples)

    def energy_by_engine(self) -> Totals:
        """Energy of a sample by engine, J."""
        parts = (
            scaled({str(engine): joules for engine, joules in phase.energy.by_engine().items()}, phase.launches)
            for phase in self.phases
        )
        return scaled(summed(parts), self.machines / self.samples)


def analyse(
    program: Program,
    tiles: TileSource | None = None,
    kept: Kept | None = None,
    *,
    recorded: Recorded | None = None,
) -> Analysis:
    """Simulate every phase of a program and add it up; phases that were recorded take their own masks."""
    counts = launches(program)
    timings = []
    for phase in program.phases:
        if recorded is not None and recorded.of(phase):
            timings.append(simulate(program, phase, tiles=recorded.tiles(phase), kept=recorded.kept(phase)))
        else:
            timings.append(simulate(program, phase, tiles=tiles, kept=kept))
    training = program.training
    return Analysis(
        program=program,
        phases=tuple(phase_report(program, timing, counts[timing.phase]) for timing in timings),
        samples=program.batch * (training.batch_group if training is not None else 1),
        area=chip_area(program.config),
    )


def phase_report(program: Program, timing: PhaseTiming, count: int) -> PhaseReport:
    """One phase, layer by layer."""
    return PhaseReport(
        timing=timing,
        launches=count,
        channels=tuple(_channel(channel, timing) for channel in timing.channels),
        layers=_layers(program, timing),
        energy=phase_energy(timing, program.config),
        roofs=rooflines(timing, program.config),
    )


def summed(parts: Iterable[Mapping[str, float]]) -> Totals:
    """Sums by name."""
    found: Totals = defaultdict(float)
    for part in parts:
        for name, value in part.items():
            found[name] += value
    return dict(found)


def scaled(values: Mapping[str, float], factor: float) -> Totals:
    """Every value, so many times."""
    return {name: value * factor for name, value in values.items()}


def _channel(channel: ChannelTiming, timing: PhaseTiming) -> ChannelReport:
    blocked = sum(channel.blocked_by.values())
    return ChannelReport(
        name=channel.channel.name,
        memory=channel.channel.port,
        instructions=len(channel.channel.instructions),
        busy=channel.busy,
        blocked=blocked,
        contended=channel.contended,
        done=timing.elapsed_cycles - (channel.ends[-1] if channel.ends else 0.0),
    )


@dataclass(slots=True)
class _LayerTime:
    """What is found of a layer, slice by slice."""

    begins: float = math.inf
    ends: float = 0.0
    critical: Totals = field(default_factory=dict)
    busy: Totals = field(default_factory=dict)
    stalls: dict[Stall, float] = field(default_factory=dict)

    def add(self, piece: Slice, channel: ChannelTiming) -> None:
        """A slice of a channel."""
        if piece.activity is Activity.RUNS:
            self.begins, self.ends = min(self.begins, piece.starts), max(self.ends, piece.ends)
            if piece.cycles:
                _add(self.busy, channel.channel.port or channel.channel.name, piece.cycles)
            return
        contended = piece.activity is Activity.CONTENDED
        stall = Stall(channel=channel.channel.name, cause=piece.cause, contended=contended)
        self.stalls[stall] = self.stalls.get(stall, 0.0) + piece.cycles


def _layers(program: Program, timing: PhaseTiming) -> tuple[LayerReport, ...]:
    times = [_LayerTime() for _ in program.layers]
    for step in critical_path(timing):
        _add(times[step.layer].critical, step.resource, step.cycles)
    for channel in timing.channels:
        for piece in slices(channel, timing):
            times[piece.instruction.layer].add(piece, channel)
    return tuple(
        LayerReport(
            name=layer.name,
            span_cycles=(min(time.begins, time.ends), time.ends),
            critical_cycles=time.critical,
            busy_cycles=time.busy,
            stall_cycles=time.stalls,
            memory_bytes=summed({way.memory: n} for way, n in timing.bytes.items() if way.layer == number),
            buffer_bytes=summed({way.buffer: n} for way, n in timing.bytes.items() if way.layer == number),
            on_chip_bytes=_on_chip(timing, number),
            dynamic_j=_dynamic(timing, program.config, number),
        )
        for number, (layer, time) in enumerate(zip(program.layers, times, strict=True))
    )


def _on_chip(timing: PhaseTiming, layer: int) -> Totals:
    own = [work for (_, number), work in timing.work.items() if number == layer]
    by_buffer = (ways for work in own for ways in (work.read, work.written))
    return summed({str(buffer): count for buffer, count in ways.items()} for ways in by_buffer)


def _dynamic(timing: PhaseTiming, config: H2LearnConfig, layer: int) -> Totals:
    return {
        name: joules for name, joules in phase_energy(timing, config, layer).by_component().items() if name != "leakage"
    }


def _add(totals: Totals, name: str, value: float) -> None:
    totals[name] = totals.get(name, 0.0) + value


def _ranked(cycles: Mapping[str, float]) -> Sequence[tuple[str, float]]:
    """The two largest; none where there are fewer."""
    return [*sorted(cycles.items(), key=lambda item: -item[1]), ("", 0.0), ("", 0.0)][:2]
