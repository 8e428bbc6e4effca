"""The checker's proof that no order of the queues matters, against a second definition and against execution."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from compiler.h2learn.compile import compile_inference
from hwmodel.checker import check
from hwmodel.checker.clocks import INDEX, Accesses, Clock, zero_clock
from hwmodel.checker.memory import MemoryState
from hwmodel.errors import CompileError
from hwmodel.isa import Buffer, Load, Queue, Store, Wait, layout
from hwmodel.program import Format, Program, Streams
from runtime.engines import golden
from runtime.machine import Machine
from runtime.memory import Values
from tests.hwmodel.happens_before import Event, racing_events, synchronisations
from tests.hwmodel.instructions import field_values
from tests.hwmodel.programs import deep_program, linear_program, small_config, with_stream
from tests.strategies import RandomNetwork, networks

DMA0, DMA1 = Queue.DMA0, Queue.DMA1
PROGRAMS = [linear_program, deep_program]


class ShuffledMachine(Machine):
    """Advances the queues in random order, a few instructions at a time, each queue with a speed of its own."""

    def __init__(self, program: Program, seed: int) -> None:
        config = program.config
        super().__init__(program, golden(config.forward.rows, config.backward.rows))
        self._rng = np.random.default_rng(seed)

    def _execute(self, streams: Streams) -> None:
        speed = {queue: self._rng.pareto(0.5) + 1e-3 for queue in streams}
        position = dict.fromkeys(streams, 0)
        semaphores: dict[int, int] = {}
        ready = list(streams)
        while ready:
            weights = np.array([speed[queue] for queue in ready])
            queue = ready[self._rng.choice(len(ready), p=weights / weights.sum())]
            start = position[queue]
            end = start + int(self._rng.integers(1, 10))
            position[queue] = self._advance(queue, streams[queue][:end], start, semaphores)
            if position[queue] == start:
                ready.remove(queue)
            else:
                ready = [other for other in streams if position[other] < len(streams[other])]
        assert all(position[queue] == len(streams[queue]) for queue in streams), "the queues wait for each other"


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


LINEAR_RACES = {"s_in write dma0", "w write dma0", "neuron write dma0", "s_out write fe"}
DEEP_RACES = {
    *("s_in write dma0", "w write dma0", "psum write dma0", "neuron write dma0", "state write dma0"),
    *("s_in read fe", "w read fe", "psum write fe", "state write fe", "s_out write fe", "s_out read dma0"),
    *("be_in write dma0", "be_neuron write dma0", "be_state write dma0"),
    *("be_in read be", "be_w read be", "be_state read be", "be_state write be", "be_out write be"),
}


@pytest.mark.parametrize(("make", "races"), [(linear_program, LINEAR_RACES), (deep_program, DEEP_RACES)])
@pytest.mark.parametrize("step", [1, -1], ids=["forward", "backward"])
def test_every_dropped_wait_is_reported(make: Callable[[], Program], races: set[str], step: int) -> None:
    """Whichever queue the checker looks at first; among them are races on every buffer, from both sides."""
    program = make()
    program = replace(program, streams=dict(list(program.streams.items())[::step]))
    unordered = ("races on", "nothing was written to", "what was not written", "which nothing has read")
    reasons = (*unordered, "needs", "accumulates", "stores a region", "the LUTs hold", "more than waited for")
    found: set[str] = set()
    for signal, wait in synchronisations(program):
        with pytest.raises(CompileError) as fault:
            check(without(program, wait))
        assert any(reason in fault.value.message for reason in reasons), (signal, wait, fault.value.message)
        raced = re.findall(r"races on bank \d of (\w+) with a (read|write) of (\w+)", fault.value.message)
        found.update(" ".join(access) for access in raced)
    assert found >= races


@pytest.mark.parametrize("make", PROGRAMS)
def test_every_dropped_signal_is_a_deadlock(make: Callable[[], Program]) -> None:
    program = make()
    for signal, wait in synchronisations(program)[::4]:
        with pytest.raises(CompileError) as fault:
            check(without(program, signal))
        semaphore = program.streams[wait[0]][wait[1]]
        assert isinstance(semaphore, Wait)
        assert f"for semaphore {semaphore.semaphore}" in fault.value.message


def agrees_on_races(program: Program) -> None:
    """Without some signals and their waits, the checker refuses a program exactly if there is a race."""
    assert is_valid(program) == (not racing_events(program))


@pytest.mark.parametrize("make", PROGRAMS)
def test_a_dropped_pair_races_exactly_where_accesses_are_unordered(make: Callable[[], Program]) -> None:
    program = make()
    for pair in synchronisations(program):
        agrees_on_races(without(program, *pair))


@settings(max_examples=20, deadline=None)
@given(st.data())
def test_dropped_pairs_race_exactly_where_accesses_are_unordered(data: st.DataObject) -> None:
    pairs = synchronisations(deep_program())
    dropped = data.draw(st.lists(st.sampled_from(pairs), min_size=2, max_size=5, unique=True))
    agrees_on_races(without(deep_program(), *(event for pair in dropped for event in pair)))


def test_a_race_names_both_accesses() -> None:
    pair = synchronisations(linear_program())[0]
    with pytest.raises(CompileError) as fault:
        check(without(linear_program(), *pair))
    first = fault.value.message.splitlines()[0]
    assert first.startswith("the program is not valid: fe[0] lut_program layer=0 ")
    assert first.endswith(": races on bank 0 of w with a write of dma0[1]")


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
        items = [item for item in layout(type(stream[at])) if item.name != "layer"]  # which only messages name
        if items:
            item = draw(st.sampled_from(items))
            changed = replace(stream[at], **{item.name: draw(field_values(item))})  # type: ignore[arg-type]
            program = with_stream(program, queue, (*stream[:at], changed, *stream[at + 1 :]))
    return program


@settings(max_examples=300, deadline=None)
@given(wild_programs(), st.integers(0, 2**32))
def test_what_the_checker_takes_runs_the_same_in_any_order(program: Program, seed: int) -> None:
    if is_valid(program):
        want = outcome(Machine(program, golden(8, 4)), program)
        assert outcome(ShuffledMachine(program, seed), program) == want


REGION = {"n0": 0, "nn": 2, "y0": 0, "h": 1, "x0": 0, "w": 1, "c0": 0, "nc": 6}


def load(*, t0: int, nt: int) -> Load:
    """All of the first layer's spikes over some steps."""
    return Load(layer=0, buffer=Buffer.S_IN, bank=0, tensor=1, t0=t0, nt=nt, flat=False, **REGION)


def store(*, t0: int, nt: int) -> Store:
    """The same region to memory."""
    return Store(layer=0, buffer=Buffer.S_OUT, bank=0, tensor=1, t0=t0, nt=nt, flat=False, **REGION)


@dataclass(slots=True)
class Queues:
    """Two DMA queues on Mem 0, each with what it knows of the other."""

    memory: MemoryState
    clocks: dict[Queue, Clock]

    def access(self, queue: Queue, move: Load | Store) -> str:
        self.clocks[queue][INDEX[queue]] += 1
        if isinstance(move, Load):
            return self.memory.load(move, 0, INDEX[queue], self.clocks[queue])
        return self.memory.store(move, 0, INDEX[queue], self.clocks[queue])

    def synchronise(self) -> None:
        both = np.maximum(*self.clocks.values())
        self.clocks = {queue: both.copy() for queue in self.clocks}


@pytest.fixture
def queues() -> Queues:
    stores = tuple(store(t0=t, nt=1) for t in range(3))
    program = with_stream(linear_program(), DMA0, stores)
    return Queues(MemoryState(program), {DMA0: zero_clock(), DMA1: zero_clock()})


def test_a_read_of_a_fresh_write_is_a_race_in_memory(queues: Queues) -> None:
    assert queues.access(DMA1, load(t0=0, nt=1)) == "reads what was not written"
    assert queues.access(DMA0, store(t0=0, nt=1)) == ""
    assert queues.access(DMA1, load(t0=0, nt=1)) == "races with a write of dma0[0]"
    queues.synchronise()
    assert queues.access(DMA1, load(t0=0, nt=1)) == ""
    assert queues.access(DMA1, load(t0=0, nt=2)) == "reads what was not written"


def test_a_write_after_a_read_or_a_write_is_a_race_in_memory(queues: Queues) -> None:
    assert queues.access(DMA0, store(t0=0, nt=1)) == ""
    assert queues.access(DMA1, store(t0=0, nt=1)) == "races with a write of dma0[0]"
    assert queues.access(DMA1, store(t0=1, nt=1)) == ""  # other bytes
    queues.synchronise()
    assert queues.access(DMA0, load(t0=0, nt=2)) == ""
    assert queues.access(DMA1, store(t0=1, nt=1)) == "races with a read of dma0[1]"
    assert queues.access(DMA0, store(t0=1, nt=1)) == ""  # its own read
    queues.synchronise()
    assert queues.access(DMA1, store(t0=1, nt=1)) == ""


def test_a_write_over_another_tensor_is_a_race_in_memory() -> None:
    program = linear_program()
    spikes, output = program.tensors[1], program.tensors[program.output_index]
    shared = tuple(replace(t, address=spikes.address) if t is output else t for t in program.tensors)
    onto = replace(store(t0=0, nt=3), tensor=program.output_index, nc=2)
    streams = {DMA0: (store(t0=0, nt=3), onto)}
    queues = Queues(
        MemoryState(replace(program, tensors=shared, streams=streams)), {DMA0: zero_clock(), DMA1: zero_clock()}
    )
    assert queues.access(DMA0, store(t0=0, nt=3)) == ""
    assert queues.access(DMA1, onto) == f"overwrites {spikes.name} in a race with dma0[0]"
    queues.synchronise()
    assert queues.access(DMA1, onto) == ""
    assert queues.access(DMA1, load(t0=0, nt=3)) == "reads what was not written"


def test_a_bank_races_until_the_clocks_meet() -> None:
    accesses, one, other = Accesses(), zero_clock(), zero_clock()
    one[INDEX[Queue.FE]] = 4
    accesses.note(INDEX[Queue.FE], one, write=False)
    assert accesses.race(other, write=False) == ""
    assert accesses.race(other, write=True) == "a read of fe[3]"
    accesses.note(INDEX[Queue.FE], one, write=True)
    assert accesses.race(other, write=False) == "a write of fe[3]"
    assert accesses.race(np.maximum(one, other), write=True) == ""
