"""No order of the queues matters in training: the checker against a second definition, and against execution."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from compiler.h2learn.compile_training import compile_training
from compiler.h2learn.emit_sgd import Descent
from compiler.ir import Encoding
from compiler.losses import Loss
from hwmodel.checker import check
from hwmodel.errors import CompileError
from hwmodel.isa import Queue, Signal, Wait, layout
from hwmodel.program import Phase, Program
from runtime.machine import Machine
from tests.hwmodel.instructions import field_values
from tests.hwmodel.training_happens_before import conflicts, meetings, racing, unordered
from tests.hwmodel.training_mutations import BACKWARD, OVERLAP, UPDATE, Site, sites
from tests.hwmodel.training_programs import (
    PROGRAMS,
    digits_program,
    made_if_trainable,
    pooled_program,
    split_program,
    training_config,
)
from tests.hwmodel.training_runs import ShuffledMachine, engines_of, trained
from tests.strategies import RandomNetwork, networks

NETWORKS = networks(
    trainable=True, encodings=list(Encoding), late_encode=True, max_size=7, max_channels=5, max_timesteps=4
)


def is_valid(program: Program) -> bool:
    try:
        check(program)
    except CompileError:
        return False
    return True


@pytest.mark.parametrize("make", PROGRAMS)
def test_compiled_programs_have_no_race(make: Callable[[], Program]) -> None:
    for streams in make().phases.values():
        assert racing(make(), streams) == []


@pytest.mark.parametrize(("make", "phase"), [
    (digits_program, OVERLAP), (pooled_program, BACKWARD), (split_program, OVERLAP), (digits_program, UPDATE),
])  # fmt: skip
def test_a_dropped_pair_races_exactly_where_accesses_are_unordered(make: Callable[[], Program], phase: Phase) -> None:
    program = make()
    streams = program.phases[phase]
    pairs, raced = conflicts(program, streams), 0
    found = meetings(streams)
    for pair in found[:: 1 + len(found) // 40]:
        changed = _without(program, phase, pair)
        is_raced = bool(unordered(changed.phases[phase], pairs))
        assert is_valid(changed) != is_raced, pair
        raced += is_raced
    assert raced > len(found[:: 1 + len(found) // 40]) / 3


def _without(program: Program, phase: Phase, pair: tuple[tuple[Queue, int], ...]) -> Program:
    for queue, at in sorted(pair, key=lambda place: -place[1]):
        program = Site(phase=phase, queue=queue, at=at).put(program)
    return program


@settings(max_examples=25, deadline=None)
@given(st.data())
def test_what_the_second_definition_finds_is_refused(data: st.DataObject) -> None:
    """With some signals and their waits left out, and with banks and regions changed."""
    program = data.draw(st.sampled_from(PROGRAMS))()
    phase = data.draw(st.sampled_from([OVERLAP, BACKWARD]))
    found = meetings(program.phases[phase])
    dropped = data.draw(st.lists(st.sampled_from(found), max_size=2, unique=True))
    places = [place for pair in dropped for place in pair]
    changed = _mutated(data, program, phase)
    changed = _without(changed, phase, tuple(places))
    if racing(changed, changed.phases[phase]):
        assert not is_valid(changed)


def _mutated(data: st.DataObject, program: Program, phase: Phase) -> Program:
    """One field of one instruction set to anything that it can hold."""
    work = [site for site in sites(program, phases=(phase,)) if not isinstance(site.of(program), Signal | Wait)]
    site = data.draw(st.sampled_from(work))
    items = [item for item in layout(type(site.of(program))) if item.name not in ("layer", "tensor", "output")]
    item = data.draw(st.sampled_from(items))
    return site.changed(program, **{item.name: data.draw(field_values(item))})


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("make", PROGRAMS)
def test_any_order_of_the_queues_gives_the_same_memory(make: Callable[[], Program], seed: int) -> None:
    program = make()
    want = trained(Machine(program, engines_of(program)), program)
    assert isinstance(want, dict)
    assert trained(ShuffledMachine(program, seed), program) == want


def _agrees_in_any_order(network: RandomNetwork, seed: int, master: bool) -> None:
    descent = Descent(momentum=0.5, master_weights=master)
    config = training_config()
    program = made_if_trainable(
        lambda: compile_training(network.graph, config, loss=Loss.MSE, descent=descent, batch=2, show=lambda _: None)
    ).program
    for streams in program.phases.values():
        assert racing(program, streams) == []
    want = trained(Machine(program, engines_of(program)), program)
    assert trained(ShuffledMachine(program, seed), program) == want


@settings(max_examples=4, deadline=None, suppress_health_check=list(HealthCheck))
@given(network=NETWORKS, seed=st.integers(0, 2**32), master=st.booleans())
def test_any_order_gives_the_same_memory_of_any_network(network: RandomNetwork, seed: int, master: bool) -> None:
    _agrees_in_any_order(network, seed, master)


@pytest.mark.slow
@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(network=NETWORKS, seed=st.integers(0, 2**32), master=st.booleans())
def test_any_order_gives_the_same_memory_of_many_networks(network: RandomNetwork, seed: int, master: bool) -> None:
    _agrees_in_any_order(network, seed, master)


def _runs_the_same_if_taken(data: st.DataObject, seed: int) -> None:
    program = data.draw(st.sampled_from(PROGRAMS))()
    for _ in range(data.draw(st.integers(1, 2))):
        program = _mutated(data, program, data.draw(st.sampled_from(list(Phase)[1:])))
    if is_valid(program):
        want = trained(Machine(program, engines_of(program)), program)
        assert trained(ShuffledMachine(program, seed), program) == want


@settings(max_examples=35, deadline=None)
@given(data=st.data(), seed=st.integers(0, 2**32))
def test_what_the_checker_takes_runs_the_same_in_any_order(data: st.DataObject, seed: int) -> None:
    _runs_the_same_if_taken(data, seed)


@pytest.mark.slow
@settings(max_examples=2000, deadline=None)
@given(data=st.data(), seed=st.integers(0, 2**32))
def test_whatever_the_checker_takes_runs_the_same_in_any_order(data: st.DataObject, seed: int) -> None:
    _runs_the_same_if_taken(data, seed)
