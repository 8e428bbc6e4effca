"""What a report adds up: parts are the whole, the critical path is the elapsed time, rates follow from the launches."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import replace
from functools import cache
from math import fsum, isclose
from typing import Any

import pytest

from compiler.h2learn.compile import compile_inference
from hwmodel.area import ENGINES, peak_tflops
from hwmodel.config import DmaChannels, load_config
from hwmodel.isa import LutProgram, Queue
from hwmodel.program import Phase, Program
from hwmodel.timing.instructions import instruction_work
from hwmodel.timing.tiles import DenseTiles
from runtime.timing.channels import Channel
from runtime.timing.energy import phase_energy
from runtime.timing.simulate import ChannelTiming, PhaseTiming, simulate
from spikec.models import load_model
from spikec.report.analysis import Analysis, analyse, launches
from spikec.report.critical_path import critical_path
from spikec.report.roofline import peak_operations
from spikec.report.tables import area_parts, energy_parts, phases_shown, quantity
from tests.hwmodel.training_programs import PROGRAMS

PRESET = load_config("h2learn")
NAMES = ["digits-conv", *(f"trained {number}" for number in range(len(PROGRAMS)))]


@cache
def program(name: str) -> Program:
    """An inference of the zoo, or a small training program."""
    if name == "digits-conv":
        return compile_inference(load_model("zoo:digits-conv").graph, PRESET).program
    made = PROGRAMS[int(name.split()[1])]()
    timing = replace(made.config.timing, dma_channels=DmaChannels.PER_ENGINE)
    return replace(made, config=replace(made.config, timing=timing))


@cache
def analysis(name: str) -> Analysis:
    return analyse(program(name))


@pytest.mark.parametrize("name", NAMES)
def test_layers_add_up_to_the_phase(name: str) -> None:
    config = program(name).config
    for phase in analysis(name).phases:
        timing = phase.timing
        whole = phase_energy(timing, config)
        assert isclose(fsum(fsum(layer.dynamic_j.values()) for layer in phase.layers), whole.dynamic_j, rel_tol=1e-9)
        assert phase.energy.total_j == whole.total_j
        moved = fsum(timing.bytes.values())
        assert isclose(fsum(fsum(layer.memory_bytes.values()) for layer in phase.layers), moved, rel_tol=1e-9)
        assert isclose(fsum(fsum(layer.buffer_bytes.values()) for layer in phase.layers), moved, rel_tol=1e-9)
        used = fsum(n for work in timing.work.values() for ways in (work.read, work.written) for n in ways.values())
        assert isclose(fsum(fsum(layer.on_chip_bytes.values()) for layer in phase.layers), used, rel_tol=1e-9)
        busy: dict[str, float] = defaultdict(float)
        for channel in timing.channels:
            busy[channel.channel.port or channel.channel.name] += channel.busy
        for resource, cycles in busy.items():
            of_layers = fsum(layer.busy_cycles.get(resource, 0.0) for layer in phase.layers)
            assert isclose(of_layers, cycles, rel_tol=1e-9, abs_tol=1e-6)
            assert cycles <= phase.elapsed_cycles * (1 + 1e-12)


@pytest.mark.parametrize("name", NAMES)
def test_channels_fill_the_elapsed_time(name: str) -> None:
    for phase in analysis(name).phases:
        for channel in phase.channels:
            whole = channel.busy + channel.blocked + channel.contended + channel.done
            assert isclose(whole, phase.elapsed_cycles, rel_tol=1e-9, abs_tol=1e-6)
            stalls = [(stall, n) for stall, n in phase.stall_cycles.items() if stall.channel == channel.name]
            for contended, cycles in ((False, channel.blocked), (True, channel.contended)):
                found = fsum(n for stall, n in stalls if stall.contended is contended)
                assert isclose(found, cycles, rel_tol=1e-9, abs_tol=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_the_critical_path_is_the_elapsed_time(name: str) -> None:
    for phase in analysis(name).phases:
        assert isclose(fsum(phase.critical_cycles.values()), phase.elapsed_cycles, rel_tol=1e-9)
        for layer in phase.layers:
            begins, ends = layer.span_cycles
            assert 0 <= begins <= ends <= phase.elapsed_cycles
            for resource, cycles in layer.critical_cycles.items():
                assert cycles <= layer.busy_cycles[resource] * (1 + 1e-9)


def made(name: str, port: str, times: list[tuple[float, float, float]], needs: list[tuple[Any, ...]]) -> ChannelTiming:
    """A channel of instructions that ask, start and end; the layer is the place in the channel."""
    kinds = [
        LutProgram(layer=i, w_bank=0, mode="conv", rows=1, groups=1, cols=1, taps=1, inputs=1, first_piece=0)  # type: ignore[arg-type]
        for i in range(len(times))
    ]
    channel = Channel(name, Queue.FE, port, list(kinds), list(range(len(times))), needs)
    asked, starts, ends = (list(column) for column in zip(*times, strict=True))
    return ChannelTiming(channel, asked, starts, ends)


def test_a_critical_path_by_hand() -> None:
    """dma0 loads 0-4; dma1 asks at 0, gets the same memory at 4, loads to 9; fe needs it, runs 9-12, then 12-14."""
    dma0 = made("dma0", "mem0", [(0, 0, 4)], [()])
    dma1 = made("dma1", "mem0", [(0, 4, 9)], [()])
    fe = made("fe", "", [(9, 9, 12), (12, 12, 14)], [(("dma0", 0), ("dma1", 0)), ()])
    timing = PhaseTiming(phase=Phase.RUN, elapsed_cycles=14, channels=(fe, dma0, dma1), work={}, bytes={})
    found = [(step.resource, step.layer, step.cycles) for step in critical_path(timing)]
    assert found == [("fe", 1, 2), ("fe", 0, 3), ("mem0", 0, 5), ("mem0", 0, 4)]


def test_an_idle_phase_has_no_critical_path() -> None:
    idle = PhaseTiming(phase=Phase.RUN, elapsed_cycles=0, channels=(), work={}, bytes={})
    assert list(critical_path(idle)) == []


@pytest.mark.parametrize("machines", [1, 2])
def test_rates_follow_from_the_launches(machines: int) -> None:
    small = program("trained 0")
    assert small.training is not None
    training = replace(small.training, batch_group=6, machines=machines)
    shared = replace(small, training=training)
    group = 6 // machines
    assert launches(shared) == {Phase.FORWARD: 1, Phase.OVERLAP: group - 1, Phase.BACKWARD: 1, Phase.UPDATE: 1}
    timings = {phase: simulate(shared, phase) for phase in shared.phases}
    cycles = {phase: timing.elapsed_cycles for phase, timing in timings.items()}
    total = cycles[Phase.FORWARD] + (group - 1) * cycles[Phase.OVERLAP]
    total += cycles[Phase.BACKWARD] + cycles[Phase.UPDATE]
    found = analyse(shared)
    assert isclose(found.samples_per_s, 6 * small.batch / (total / 0.8e9), rel_tol=1e-12)
    joules = {phase: phase_energy(timing, small.config).total_j for phase, timing in timings.items()}
    spent = joules[Phase.FORWARD] + (group - 1) * joules[Phase.OVERLAP] + joules[Phase.BACKWARD] + joules[Phase.UPDATE]
    assert isclose(found.joules_per_sample, machines * spent / (6 * small.batch), rel_tol=1e-12)
    assert found.main.phase is Phase.OVERLAP


def test_a_group_of_one_has_no_overlap() -> None:
    small = program("trained 0")
    assert small.training is not None
    found = analyse(replace(small, training=replace(small.training, batch_group=1, machines=1)))
    assert {phase.phase for phase in phases_shown(found)} == {Phase.FORWARD, Phase.BACKWARD, Phase.UPDATE}
    assert phases_shown(found)[0] is found.main


@pytest.mark.parametrize("name", NAMES)
def test_parts_of_energy_and_area_are_the_whole(name: str) -> None:
    found = analysis(name)
    by_part = energy_parts(found)
    assert isclose(fsum(n for row in by_part.values() for n in row.values()), found.joules_per_sample, rel_tol=1e-9)
    assert isclose(fsum(found.energy_by_engine().values()), found.joules_per_sample, rel_tol=1e-9)
    by_component = found.energy_by_component()
    assert isclose(fsum(by_component.values()), found.joules_per_sample, rel_tol=1e-9)
    for component, row in by_part.items():
        assert isclose(by_component[component], fsum(row.values()), rel_tol=1e-9)
    assert isclose(fsum(n for row in area_parts(found).values() for n in row.values()), found.area.total, rel_tol=1e-9)


def array_operations(of: Program, phase: Phase) -> dict[Queue, float]:
    """Instruction by instruction, without what transfers add on their way."""
    tiles = DenseTiles(of.config)
    return {
        engine: fsum(
            work.adds + work.multiplies
            for position, instruction in enumerate(of.phases[phase].get(engine, ()))
            for work in (instruction_work(instruction, of.config, engine, tiles, position),)
        )
        for engine in ENGINES
    }


@pytest.mark.parametrize("name", NAMES)
def test_nothing_is_above_its_roof(name: str) -> None:
    config = program(name).config
    rate = config.memory.bytes_per_cycle * config.clock_ghz * 1e9
    for phase in analysis(name).phases:
        operations = array_operations(program(name), phase.phase)
        assert {roof.engine for roof in phase.roofs} == {engine for engine, count in operations.items() if count}
        for roof in phase.roofs:
            assert isclose(roof.operations, operations[roof.engine], rel_tol=1e-9)
            assert 0 < roof.attained_ops_per_s <= roof.roof_ops_per_s * (1 + 1e-9)
            assert roof.roof_ops_per_s <= roof.peak_ops_per_s
            assert roof.memory_bytes <= rate * roof.seconds * (1 + 1e-9)


def test_peaks_are_those_of_table_3_6() -> None:
    cycles = sum(peak_operations(PRESET, engine) for engine in ENGINES)
    assert isclose(cycles * PRESET.clock_ghz / 1000, peak_tflops(PRESET), rel_tol=1e-12)


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0 J"), (1, "1 J"), (0.00464, "4.64 mJ"), (1.5e-9, "1.5 nJ"), (2.5e7, "25 MJ"), (1e-20, "1e-08 pJ")],
)
def test_quantities(value: float, text: str) -> None:
    assert quantity(value, "J") == text
