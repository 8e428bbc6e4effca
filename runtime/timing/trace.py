"""A simulated phase as a Trace Event file: a track for each channel, what it runs and what it waits for."""

from __future__ import annotations

import contextlib
import json
import math
import os
import uuid
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TextIO

from hwmodel.errors import CompileError, Loc
from hwmodel.isa import OPCODES, Instruction, Transfer, mnemonic
from hwmodel.program import Program
from runtime.timing.simulate import ChannelTiming, PhaseTiming

PS_PER_US = 1_000_000
BINS = 500  # samples of a memory's utilisation in a phase
_CHUNK = 1024  # events that are written at once


class Activity(StrEnum):
    """What a channel does in a slice of time."""

    RUNS = "runs"
    BLOCKED = "blocked"  # by an instruction of another channel
    CONTENDED = "contended"  # a transfer, by the memory that serves another channel


@dataclass(frozen=True, slots=True, kw_only=True)
class Slice:
    """A piece of a channel's time, up to and with one instruction. Units: cycles.

    `cause` is the channel waited for, or the memory; "" while the instruction runs.
    """

    number: int  # of the instruction in its channel
    instruction: Instruction
    activity: Activity
    cause: str
    starts: float
    ends: float

    @property
    def cycles(self) -> float:
        """Its length."""
        return self.ends - self.starts


def slices(channel: ChannelTiming, phase: PhaseTiming) -> Iterator[Slice]:
    """The time of a channel from 0 to its last end, without a gap; instructions in the array's shadow take none."""
    by_name = {timing.channel.name: timing for timing in phase.channels}
    free = 0.0
    for number, instruction in enumerate(channel.channel.instructions):
        asked, starts, ends = channel.asked[number], channel.starts[number], channel.ends[number]
        parts = (
            (Activity.BLOCKED, free, asked, _blocker(channel, number, by_name) if asked > free else ""),
            (Activity.CONTENDED, asked, starts, channel.channel.port),
        )
        for activity, begin, end, cause in parts:
            if end > begin:
                yield Slice(
                    number=number, instruction=instruction, activity=activity, cause=cause, starts=begin, ends=end
                )
        yield Slice(
            number=number, instruction=instruction, activity=Activity.RUNS, cause="", starts=starts, ends=ends
        )  # fmt: skip
        free = ends


def save_trace(path: Path, phases: Sequence[PhaseTiming], program: Program) -> None:
    """Write a trace beside its final place, then rename.

    Raises: CompileError if the file cannot be written; nothing is left behind.
    """
    with written_beside(path) as (file,):
        write_trace(file, phases, program)


def write_trace(file: TextIO, phases: Sequence[PhaseTiming], program: Program) -> None:
    """A Trace Event object, event by event: a process for each phase, complete events in us, counters of memories.

    Source: Trace Event Format, JSON object form, which ui.perfetto.dev and chrome://tracing open.
    """
    other = {"program": program.name, "config": program.config.name, "clock_ghz": program.config.clock_ghz}
    file.write(f'{{"displayTimeUnit": "ns", "otherData": {json.dumps(other)}, "traceEvents": [\n')
    lines: list[str] = []
    separator = ""
    for event in trace_events(phases, program):
        lines.append(json.dumps(event))
        if len(lines) == _CHUNK:
            file.write(separator + ",\n".join(lines))
            separator, lines = ",\n", []
    file.write((separator if lines else "") + ",\n".join(lines) + "\n]}\n")


Value = str | int | float
Event = dict[str, Value | dict[str, Value]]


def trace_events(phases: Sequence[PhaseTiming], program: Program) -> Iterator[Event]:
    """The events of each phase, which all begin at 0; times are whole picoseconds, so that neighbours meet exactly."""
    for process, phase in enumerate(phases, 1):
        yield _name("process_name", process, 0, f"{program.name}: {phase.phase}")
        for track, channel in enumerate(phase.channels, 1):
            port = channel.channel.port
            yield _name(
                "thread_name", process, track, f"{channel.channel.name} ({port})" if port else channel.channel.name
            )
            for piece in slices(channel, phase):
                yield _complete(piece, process, track, program)
        for port in sorted({channel.channel.port for channel in phase.channels} - {""}):
            for start, share in utilisation(phase, port):
                at = _us(start, program)
                yield {"ph": "C", "name": f"{port} busy, %", "pid": process, "ts": at, "args": {"busy": 100 * share}}


def utilisation(phase: PhaseTiming, port: str, bins: int = BINS) -> Iterator[tuple[float, float]]:
    """The share of each of equal pieces of a phase's time in which a memory transfers, with the piece's begin.

    Their mean times the elapsed cycles is the time that the memory is busy. Units: cycles.
    """
    width = phase.elapsed_cycles / bins
    if width == 0:
        return
    busy = [0.0] * bins
    for channel in phase.channels:
        if channel.channel.port == port:
            for begin, end in zip(channel.starts, channel.ends, strict=True):
                first, last = min(int(begin / width), bins - 1), min(math.ceil(end / width), bins)
                for place in range(first, max(last, first + 1)):
                    high = end if place == bins - 1 else min(end, (place + 1) * width)
                    busy[place] += max(high - max(begin, place * width), 0.0)
    for place, cycles in enumerate(busy):
        yield place * width, min(cycles / width, 1.0)
    yield phase.elapsed_cycles, 0.0


@contextlib.contextmanager
def written_beside(*paths: Path) -> Iterator[tuple[TextIO, ...]]:
    """Text files that take their final names together, when the block ends well.

    Raises: CompileError where one cannot be written; then none is left, and what stood there before still does.
    """
    partials = [path.parent / f".{uuid.uuid4().hex}.part" for path in paths]
    place = paths[0] if paths else Path()
    try:
        with contextlib.ExitStack() as stack:
            yield tuple(stack.enter_context(_opened(*pair)) for pair in zip(paths, partials, strict=True))
        for place, partial in zip(paths, partials, strict=True):
            os.replace(partial, place)
    except OSError as fault:
        raise CompileError(f"cannot write the file: {fault.strerror}", Loc(str(place))) from fault
    finally:
        _remove(partials)


def _opened(path: Path, partial: Path) -> TextIO:
    if "\0" in str(path):
        raise CompileError("is no path: it has a null byte", Loc(str(path)))
    if path.is_dir():
        raise CompileError("is a folder, not a file", Loc(str(path)), hint="name a file inside it")
    try:
        return partial.open("w", encoding="utf-8")
    except OSError as fault:
        raise CompileError(f"cannot write the file: {fault.strerror}", Loc(str(path))) from fault


def _remove(paths: Iterable[Path]) -> None:
    """What was not renamed, or never made."""
    for path in paths:
        with contextlib.suppress(OSError, ValueError):
            path.unlink()


def _blocker(channel: ChannelTiming, number: int, by_name: dict[str, ChannelTiming]) -> str:
    """The channel whose instruction ends last of those needed; the first of equals, as the simulation counts."""
    return max(channel.channel.needs[number], key=lambda place: by_name[place[0]].ends[place[1]])[0]


def _name(what: str, process: int, track: int, text: str) -> Event:
    return {"ph": "M", "name": what, "pid": process, "tid": track, "args": {"name": text}}


def _complete(piece: Slice, process: int, track: int, program: Program) -> Event:
    instruction = piece.instruction
    layer = program.layers[instruction.layer].name
    arguments: dict[str, Value] = {"layer": layer, "cycles": piece.cycles}
    match piece.activity:
        case Activity.RUNS:
            name = _MNEMONICS[type(instruction)]
            if isinstance(instruction, Transfer):
                arguments["buffer"] = str(instruction.buffer)
                arguments["tensor"] = program.tensors[instruction.tensor].name
        case Activity.BLOCKED | Activity.CONTENDED:
            name = f"waits for {piece.cause}"
            arguments["for"] = _MNEMONICS[type(instruction)]
    begin, end = _ps(piece.starts, program), _ps(piece.ends, program)
    return {
        "ph": "X", "name": name, "cat": str(piece.activity), "pid": process, "tid": track, "ts": begin / PS_PER_US,
        "dur": (end - begin) / PS_PER_US, "args": arguments,
    }  # fmt: skip


def _ps(cycles: float, program: Program) -> int:
    return round(cycles / program.config.clock_ghz * 1000)


def _us(cycles: float, program: Program) -> float:
    return _ps(cycles, program) / PS_PER_US


_MNEMONICS = {kind: mnemonic(kind) for kind in OPCODES.values()}
