"""The checker's proof that no order of the queues matters, against a second definition and against execution."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from compiler.h2learn.compile import compile_inference
from hwmodel.checker import check
from hwmodel.errors import CompileError
from hwmodel.isa import Instruction, Wait, layout
from hwmodel.program import Format, Program
from runtime.engines import golden
from runtime.machine import Machine
from runtime.memory import Values
from tests.hwmodel.happens_before import Event, racing_events, synchronisations
from tests.hwmodel.instructions import field_values
from tests.hwmodel.programs import deep_program, linear_program, small_config, with_stream
from tests.strategies import RandomNetwork, networks

PROGRAMS = [linear_program, deep_program]


class ShuffledMachine(Machine):
    """Advances the queues in random order, a few instructions at a time, each queue with a speed of its own."""

    def __init__(self, program: Program, seed: int) -> None:
        config = program.config
        super().__init__(program, golden(config.forward.rows, config.backward.rows))
        self._rng = np.random.default_rng(seed)

    def _execute(self) -> None:
        streams = self._program.streams
        speed = {queue: self._rng.pareto(0.5) for queue in streams}
        position = dict.fromkeys(streams, 0)
        semaphores: dict[int, int] = {}
        while running := [queue for queue in streams if position[queue] < len(streams[queue])]:
            weights = np.array([speed[queue] for queue in running]) + 1e-3
            queue = running[self._rng.choice(len(running), p=weights / weights.sum())]
            end = position[queue] + int(self._rng.integers(1, 10))
            position[queue] = self._advance(queue, streams[queue][:end], position[queue], semaphores)


def inputs_of(program: Program) -> Values:
    source = program.tensors[program.input_index]
    rng = np.random.default_rng(1)
    if source.format is Format.S1:
        return rng.integers(0, 2, source.shape).astype(np.uint8)
    return (rng.integers(0, 17, source.shape) / 16).astype(np.float16)


def without(program: Program, *events: Event) -> Program:
    for queue in program.streams:
        gone = {at for name, at in events if name is queue}
        kept = tuple(i for at, i in enumerate(program.streams[queue]) if at not in gone)
        program = with_stream(program, queue, kept)
    return program


def is_valid(program: Program) -> bool:
    try:
        check(program)
    except CompileError:
        return False
    return True


@pytest.mark.parametrize("make", PROGRAMS)
def test_compiled_programs_have_no_race(make: Callable[[], Program]) -> None:
    assert racing_events(make()) == []


@pytest.mark.parametrize("make", PROGRAMS)
def test_every_dropped_wait_is_reported(make: Callable[[], Program]) -> None:
    program = make()
    reasons = ("races on", "nothing was written to", "what was not written", "needs", "accumulates", "the LUTs hold")
    reasons += ("which nothing has read", "more than waited for")
    for signal, wait in synchronisations(program):
        with pytest.raises(CompileError) as fault:
            check(without(program, wait))
        assert any(reason in fault.value.message for reason in reasons), (signal, wait, fault.value.message)


@pytest.mark.parametrize("make", PROGRAMS)
def test_every_dropped_signal_is_a_deadlock(make: Callable[[], Program]) -> None:
    program = make()
    for signal, wait in synchronisations(program):
        with pytest.raises(CompileError) as fault:
            check(without(program, signal))
        semaphore = program.streams[wait[0]][wait[1]]
        assert isinstance(semaphore, Wait)
        assert f"for semaphore {semaphore.semaphore}" in fault.value.message


def agrees_on_races(program: Program) -> None:
    """Without some signals and their waits, the checker refuses a program exactly if there is a race."""
    assert is_valid(program) == (not racing_events(program))


def test_every_dropped_pair_races_or_is_redundant() -> None:
    program = linear_program()
    for pair in synchronisations(program):
        agrees_on_races(without(program, *pair))


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_dropped_pairs_race_exactly_where_accesses_are_unordered(data: st.DataObject) -> None:
    pairs = synchronisations(deep_program())
    dropped = data.draw(st.lists(st.sampled_from(pairs), min_size=1, max_size=3, unique=True))
    agrees_on_races(without(deep_program(), *(event for pair in dropped for event in pair)))


def test_a_race_names_both_accesses() -> None:
    pair = synchronisations(linear_program())[-1]
    with pytest.raises(CompileError) as fault:
        check(without(linear_program(), *pair))
    assert fault.value.message.splitlines()[0].endswith("races on bank 0 of s_out with a read of dma0[15]")


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 2**32))
def test_any_order_of_the_queues_gives_the_same_output(seed: int) -> None:
    program = deep_program()
    want = Machine(program, golden(8, 4)).run(inputs_of(program))
    np.testing.assert_array_equal(ShuffledMachine(program, seed).run(inputs_of(program)), want)


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(network=networks(max_size=9, max_channels=8, max_timesteps=6), seed=st.integers(0, 2**32))
def test_any_order_gives_the_same_output_of_any_network(network: RandomNetwork, seed: int) -> None:
    program = compile_inference(network.graph, small_config(), batch=2).program
    assert racing_events(program) == []
    want, got = (
        outcome(machine, program) for machine in (Machine(program, golden(8, 4)), ShuffledMachine(program, seed))
    )
    assert got == want


def outcome(machine: Machine, program: Program) -> bytes | None:
    """The output's bits; None where a value left FP16."""
    try:
        return machine.run(inputs_of(program)).tobytes()
    except CompileError:
        return None


@st.composite
def wild_programs(draw: st.DrawFn) -> Program:
    """A valid program with one or two fields of its instructions set to anything that they can hold."""
    program = draw(st.sampled_from(PROGRAMS))()
    for _ in range(draw(st.integers(1, 2))):
        queue = draw(st.sampled_from(list(program.streams)))
        stream = program.streams[queue]
        at = draw(st.integers(0, len(stream) - 1))
        # A load may stand anywhere, and no instruction depends on its layer but for messages.
        items = [item for item in layout(type(stream[at])) if item.name not in ("y0", "x0", "layer")]
        if items:
            item = draw(st.sampled_from(items))
            near = getattr(stream[at], item.name)
            values = field_values(item)
            if item.enum is None and not item.is_bool:
                values |= st.integers(max(0, near - 2), near + 2).filter(
                    lambda value, item=item: value >> item.width == 0
                )
            changed: Instruction = replace(stream[at], **{item.name: draw(values)})
            program = with_stream(program, queue, (*stream[:at], changed, *stream[at + 1 :]))
    return program


@settings(max_examples=300, deadline=None)
@given(wild_programs(), st.integers(0, 2**32))
def test_what_the_checker_takes_runs_the_same_in_any_order(program: Program, seed: int) -> None:
    if is_valid(program):
        want = outcome(Machine(program, golden(8, 4)), program)
        assert outcome(ShuffledMachine(program, seed), program) == want
