"""What a change would buy: the ratios of two simulations, fields that the stream does not depend on."""

from __future__ import annotations

from dataclasses import replace
from math import isclose

import pytest

from compiler.h2learn.compile import compile_inference
from compiler.h2learn.compile_training import compile_training
from compiler.losses import Loss
from hwmodel.config import DmaChannels, Synchronise, load_config
from hwmodel.program import Phase, Program
from hwmodel.timing.sampled_tiles import Density
from runtime.timing.energy import phase_energy
from runtime.timing.simulate import simulate
from spikec.models import load_model
from spikec.report.analysis import analyse, launches
from spikec.report.whatif import Masks, changed, changes, value_of, what_if
from tests.hwmodel.training_programs import PROGRAMS, digits_graph, training_config

PRESET = load_config("h2learn")


def masks(program: Program) -> Masks:
    return Masks({number: Density(inputs=0.2, outputs=0.3) for number in range(len(program.layers))})


def test_ratios_are_those_of_two_simulations() -> None:
    program = PROGRAMS[0]()
    known = masks(program)
    base = analyse(program, known.tiles(program.config), known.kept)
    rows = what_if(base, known)
    assert [row.time_ratio for row in rows] == sorted(row.time_ratio for row in rows)
    paths = [path for row in rows for path in row.changes]
    assert {"memory.bytes_per_cycle", "timing.encoding", "backward.skips", "backward.pipe"} <= set(paths)
    counts = launches(program)
    for row in rows:
        config = changed(program.config, row.changes)
        assert config is not None
        other = replace(program, config=config)
        timings = {
            phase: simulate(other, phase, tiles=known.tiles(config), kept=known.kept) for phase in program.phases
        }
        cycles = sum(counts[phase] * timing.elapsed_cycles for phase, timing in timings.items())
        joules = sum(counts[phase] * phase_energy(timing, config).total_j for phase, timing in timings.items())
        assert isclose(row.time_ratio, cycles / base.cycles, rel_tol=1e-12)
        assert isclose(row.energy_ratio, joules / base.energy_j, rel_tol=1e-12)
        assert all(value_of(program.config, path) == row.now[path] != value for path, value in row.changes.items())
        assert all(value_of(config, path) == value for path, value in row.changes.items())


def test_the_compiler_does_not_look_at_these_fields() -> None:
    """The streams stay valid: compiled with the change, they are the same."""
    graph, config = digits_graph(), training_config()
    program = compile_training(graph, config, loss=Loss.MSE, batch=2).program
    for values in changes(program, is_sparse=True):
        other = changed(config, values)
        assert other is not None, values
        again = compile_training(graph, other, loss=Loss.MSE, batch=2).program
        assert again.phases == program.phases, values


def test_the_compiler_of_inferences_does_not_look_at_them_either() -> None:
    graph = load_model("zoo:digits-conv").graph
    program = compile_inference(graph, PRESET).program
    candidates = list(changes(program, is_sparse=False))
    assert {"backward.pipe": 0} in candidates  # the encoding layer runs there
    for values in candidates:
        other = changed(PRESET, values)
        assert other is not None, values
        assert compile_inference(graph, other).program.phases == program.phases, values


def test_more_bandwidth_is_not_slower_and_skipping_less_is_not_faster() -> None:
    program = PROGRAMS[0]()
    timing = replace(program.config.timing, dma_channels=DmaChannels.ONE)
    program = replace(program, config=replace(program.config, timing=timing))
    known = masks(program)
    rows = what_if(analyse(program, known.tiles(program.config), known.kept), known)
    by_text = {row.text: row for row in rows}
    bandwidth = f"memory.bytes_per_cycle = {2 * program.config.memory.bytes_per_cycle:g}"
    assert by_text[bandwidth].speedup >= 1
    assert by_text["backward.skips = none"].speedup < 1


def test_unknown_zeros_are_not_asked_for() -> None:
    program = PROGRAMS[0]()
    paths = {path for values in changes(program, is_sparse=False) for path in values}
    assert paths.isdisjoint({"backward.skips", "backward.synchronise", "timing.m_write", "backward.run_ahead"})


def test_a_change_that_does_not_fit_is_left_out() -> None:
    assert changed(PRESET, {"backward.rows": 3}) is None
    assert changed(PRESET, {"backward.pipe": 0}) == replace(PRESET, backward=replace(PRESET.backward, pipe=0))


@pytest.mark.parametrize("synchronise", Synchronise)
def test_tiles_of_equal_engines_are_drawn_once(synchronise: Synchronise) -> None:
    known = Masks({0: Density(inputs=0.5, outputs=0.5)})
    faster = replace(PRESET, memory=replace(PRESET.memory, bytes_per_cycle=320.0))
    other = replace(PRESET, backward=replace(PRESET.backward, synchronise=synchronise))
    assert known.tiles(PRESET) is known.tiles(faster)
    assert (known.tiles(PRESET) is known.tiles(other)) is (synchronise is PRESET.backward.synchronise)


def test_phases_of_an_update_do_not_depend_on_masks() -> None:
    program = PROGRAMS[0]()
    known = masks(program)
    with_masks = simulate(program, Phase.UPDATE, tiles=known.tiles(program.config), kept=known.kept)
    assert with_masks.elapsed_cycles == simulate(program, Phase.UPDATE).elapsed_cycles
