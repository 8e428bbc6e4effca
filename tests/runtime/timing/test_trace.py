"""Traces: well formed, nothing overlaps, durations are the simulation's; files appear whole or not at all."""

from __future__ import annotations

import json
import os
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import replace
from itertools import pairwise
from math import isclose
from pathlib import Path
from typing import Any

import pytest

from hwmodel.config import DmaChannels, UpdateMemory
from hwmodel.errors import CompileError
from hwmodel.program import Phase, Program
from runtime.timing import trace
from runtime.timing.simulate import PhaseTiming, simulate
from runtime.timing.trace import Activity, save_trace, slices, utilisation, written_beside
from tests.hwmodel.training_programs import PROGRAMS

ALL = [(make, phase) for make in PROGRAMS for phase in make().phases]
US_PER_CYCLE = 1 / 800  # at 0.8 GHz
PS = 1e-6  # in us: times are rounded to whole picoseconds


def in_channels(program: Program, channels: DmaChannels) -> Program:
    """With transfers in one queue a memory, or one an engine, which then wait for the memory."""
    timing = replace(program.config.timing, dma_channels=channels, update_memory=UpdateMemory.SHARED)
    return replace(program, config=replace(program.config, timing=timing))


def phases(program: Program) -> list[PhaseTiming]:
    return [simulate(program, phase) for phase in program.phases]


def events(program: Program, folder: Path) -> list[dict[str, Any]]:
    path = folder / "trace.json"
    save_trace(path, phases(program), program)
    found = json.loads(path.read_text())
    assert found["otherData"] == {"program": program.name, "config": program.config.name, "clock_ghz": 0.8}
    (only,) = os.listdir(folder)
    assert only == "trace.json"
    return list(found["traceEvents"])


@pytest.mark.parametrize("channels", DmaChannels)
@pytest.mark.parametrize("make", PROGRAMS)
def test_events_are_well_formed_and_do_not_overlap(make: Any, channels: DmaChannels, tmp_path: Path) -> None:
    program = in_channels(make(), channels)
    by_track: dict[tuple[int, int], list[dict[str, Any]]] = defaultdict(list)
    named: dict[tuple[int, int], str] = {}
    for event in events(program, tmp_path):
        assert isinstance(event["pid"], int)
        assert isinstance(event["name"], str)
        assert event["name"]
        match event["ph"]:
            case "M":
                assert event["name"] in ("process_name", "thread_name")
                named[event["pid"], event["tid"]] = event["args"]["name"]
            case "C":
                assert 0 <= event["args"]["busy"] <= 100
            case "X":
                assert event["ts"] >= 0
                assert event["dur"] >= 0
                assert event["args"]["layer"] in {layer.name for layer in program.layers}
                by_track[event["pid"], event["tid"]].append(event)
            case other:
                raise AssertionError(other)
    assert set(by_track) <= set(named)
    for track in by_track.values():
        assert track[0]["ts"] == 0
        for before, after in pairwise(track):  # without a gap: what does not run waits
            assert isclose(before["ts"] + before["dur"], after["ts"], abs_tol=PS / 2)


@pytest.mark.parametrize("channels", DmaChannels)
@pytest.mark.parametrize("make", PROGRAMS)
def test_durations_are_those_of_the_simulation(make: Any, channels: DmaChannels, tmp_path: Path) -> None:
    program = in_channels(make(), channels)
    sums: dict[tuple[int, int, str], float] = defaultdict(float)
    counts: dict[tuple[int, int, str], int] = defaultdict(int)
    for event in events(program, tmp_path):
        if event["ph"] == "X":
            sums[event["pid"], event["tid"], event["cat"]] += event["dur"]
            counts[event["pid"], event["tid"], event["cat"]] += 1
    for process, phase in enumerate(phases(program), 1):
        for track, channel in enumerate(phase.channels, 1):
            wanted = {
                Activity.RUNS: channel.busy,
                Activity.BLOCKED: sum(channel.blocked_by.values()),
                Activity.CONTENDED: channel.contended,
            }
            for activity, cycles in wanted.items():
                place = (process, track, str(activity))
                assert isclose(sums[place], cycles * US_PER_CYCLE, abs_tol=PS * (counts[place] + 1))
            assert counts[process, track, "runs"] == len(channel.channel.instructions)


def test_separate_queues_wait_for_their_memory() -> None:
    """So that the tests above see contention at all."""
    program = in_channels(PROGRAMS[0](), DmaChannels.PER_ENGINE)
    assert any(channel.contended > 0 for phase in phases(program) for channel in phase.channels)


@pytest.mark.parametrize(("make", "phase"), ALL)
def test_waits_are_for_the_channels_that_the_simulation_names(make: Any, phase: Phase) -> None:
    timing = simulate(in_channels(make(), DmaChannels.PER_ENGINE), phase)
    for channel in timing.channels:
        found: dict[str, float] = defaultdict(float)
        for piece in slices(channel, timing):
            if piece.activity is Activity.BLOCKED:
                found[piece.cause] += piece.cycles
        assert found == pytest.approx(dict(channel.blocked_by))


@pytest.mark.parametrize(("make", "phase"), ALL)
def test_utilisation_times_elapsed_is_the_time_of_transfers(make: Any, phase: Phase) -> None:
    timing = simulate(in_channels(make(), DmaChannels.PER_ENGINE), phase)
    for port in {channel.channel.port for channel in timing.channels} - {""}:
        busy = sum(channel.busy for channel in timing.channels if channel.channel.port == port)
        for bins in (1, 7, 500):
            shares = [share for _, share in utilisation(timing, port, bins)]
            assert len(shares) == bins + 1
            assert all(0 <= share <= 1 for share in shares)
            assert isclose(sum(shares) / bins * timing.elapsed_cycles, busy, rel_tol=1e-9)


def refused(path: Path, program: Program) -> str:
    with pytest.raises(CompileError) as caught:
        save_trace(path, phases(program), program)
    return str(caught.value)


def test_a_path_that_cannot_be_written_leaves_nothing(tmp_path: Path) -> None:
    program = PROGRAMS[0]()
    assert "No such file or directory" in refused(tmp_path / "absent" / "trace.json", program)
    (tmp_path / "folder.json").mkdir()
    assert "is a folder, not a file" in refused(tmp_path / "folder.json", program)
    assert "null byte" in refused(tmp_path / "a\0b.json", program)
    assert os.listdir(tmp_path) == ["folder.json"]


def test_a_full_disk_leaves_what_stood_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = PROGRAMS[0]()
    path = tmp_path / "trace.json"
    path.write_text("before")
    whole = trace.trace_events

    def cut(timings: Any, of: Program) -> Iterator[Mapping[str, Any]]:
        for number, event in enumerate(whole(timings, of)):
            if number == 2000:
                raise OSError(28, "No space left on device")
            yield event

    monkeypatch.setattr(trace, "trace_events", cut)
    assert refused(path, program) == f"{path}: error: cannot write the file: No space left on device"
    assert os.listdir(tmp_path) == ["trace.json"]
    assert path.read_text() == "before"


def test_files_appear_together_or_not_at_all(tmp_path: Path) -> None:
    first, second = tmp_path / "a.txt", tmp_path / "b.txt"
    with written_beside(first, second) as files:
        for file in files:
            file.write("new")
        assert not first.exists()
    assert (first.read_text(), second.read_text()) == ("new", "new")
    with pytest.raises(ZeroDivisionError), written_beside(first) as files:
        files[0].write(str(1 // 0))
    with pytest.raises(CompileError, match="cannot write"), written_beside(first, tmp_path / "absent" / "b.txt"):
        raise AssertionError("the block must not run")
    assert first.read_text() == "new"
    assert sorted(os.listdir(tmp_path)) == ["a.txt", "b.txt"]


def test_nothing_to_write_is_no_fault() -> None:
    with written_beside() as files:
        assert files == ()
