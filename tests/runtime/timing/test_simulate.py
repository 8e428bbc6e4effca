"""Time: simulated phases against a relaxation without events, against closed bounds, and bytes that add up."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Mapping
from dataclasses import replace
from itertools import pairwise
from math import isclose, prod

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from compiler.h2learn.compile import compile_inference
from compiler.h2learn.compile_training import compile_training
from compiler.losses import Loss
from hwmodel.checker.streams import MEMORY_OF
from hwmodel.config import DmaChannels, EncodingPath, MembraneWrite, UpdateMemory, load_config
from hwmodel.errors import CompileError
from hwmodel.isa import Halt, Instruction, Queue, Signal, Store, Transfer, Wait
from hwmodel.program import Format, Phase, Program, Role
from hwmodel.timing import program_timing
from hwmodel.timing.instructions import instruction_work, kept_rim, transfer_bytes
from hwmodel.timing.tiles import DenseTiles
from runtime.timing.energy import phase_energy
from runtime.timing.simulate import KeptByLayer, PhaseTiming, simulate
from spikec.models import load_model
from tests.hwmodel.training_programs import (
    PROGRAMS,
    made_if_trainable,
    split_program,
    training_config,
    with_phase_stream,
)
from tests.strategies import RandomNetwork, networks

PRESET = load_config("h2learn")
IN_ORDER = replace(PRESET.timing, encoding=EncodingPath.BACKWARD)
ALL = [(make, phase) for make in PROGRAMS for phase in make().phases]


def in_order(program: Program) -> Program:
    """One channel a queue, as the streams say."""
    return replace(program, config=replace(program.config, timing=IN_ORDER))


def duration(program: Program, queue: Queue, instruction: Instruction) -> float:
    config = program.config
    if isinstance(instruction, Transfer):
        tensor = program.tensors[instruction.tensor]
        rim = kept_rim(instruction, tensor, program.layers, config)
        return transfer_bytes(instruction, tensor, config, rim=rim) / config.memory.bytes_per_cycle
    return instruction_work(instruction, config, queue, DenseTiles(config)).cycles


def relaxed(program: Program, phase: Phase) -> dict[Queue, float]:
    """When each queue ends, by running queues as far as they go: no events, no ports, semaphores with times."""
    streams = program.phases[phase]
    at, now = dict.fromkeys(streams, 0), dict.fromkeys(streams, 0.0)
    signals: dict[int, list[float]] = defaultdict(list)
    taken: Counter[int] = Counter()
    moved = True
    while moved:
        moved = False
        for queue, stream in streams.items():
            while at[queue] < len(stream):
                instruction = stream[at[queue]]
                if isinstance(instruction, Wait):
                    count = taken[instruction.semaphore]
                    if count >= len(signals[instruction.semaphore]):
                        break
                    taken[instruction.semaphore] += 1
                    now[queue] = max(now[queue], signals[instruction.semaphore][count])
                elif isinstance(instruction, Signal):
                    signals[instruction.semaphore].append(now[queue])
                elif not isinstance(instruction, Halt):
                    now[queue] += duration(program, queue, instruction)
                at[queue] += 1
                moved = True
    assert all(at[queue] == len(stream) for queue, stream in streams.items())
    return now


@pytest.mark.parametrize(("make", "phase"), ALL)
def test_events_equal_a_relaxation_without_events(make: Callable[[], Program], phase: Phase) -> None:
    program = in_order(make())
    ends = relaxed(program, phase)
    timing = simulate(program, phase)
    for channel in timing.channels:
        assert isclose(channel.ends[-1], ends[channel.channel.queue], rel_tol=1e-9, abs_tol=1e-6)
    assert isclose(timing.elapsed_cycles, max(ends.values()), rel_tol=1e-9)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much])
@given(
    network=networks(trainable=True, max_size=8, max_channels=8, max_timesteps=5),
    channels=st.sampled_from(DmaChannels),
    memory=st.sampled_from(UpdateMemory),
    encoding=st.sampled_from(EncodingPath),
)
def test_random_training_programs_keep_the_laws(
    network: RandomNetwork, channels: DmaChannels, memory: UpdateMemory, encoding: EncodingPath
) -> None:
    timing = replace(PRESET.timing, dma_channels=channels, update_memory=memory, encoding=encoding)
    config = replace(training_config(), timing=timing)
    program = made_if_trainable(lambda: compile_training(network.graph, config, loss=Loss.MSE, batch=2).program)
    for phase in program.phases:
        check_laws(program, simulate(program, phase))


def check_laws(program: Program, timing: PhaseTiming) -> None:
    """Nothing overlaps within a channel or a memory, nothing is lost, nothing is faster than its memory."""
    rate = program.config.memory.bytes_per_cycle
    by_port: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for channel in timing.channels:
        spans = list(zip(channel.starts, channel.ends, strict=True))
        assert len(spans) == len(channel.channel.instructions)
        for (_, end), (start, _) in pairwise(spans):
            assert start >= end
        if channel.channel.port:
            by_port[channel.channel.port] += spans
        waited = sum(channel.blocked_by.values()) + channel.contended
        assert isclose(channel.busy + waited, channel.ends[-1], rel_tol=1e-9, abs_tol=1e-6)
    for port, spans in by_port.items():
        ordered = sorted(spans)
        for (_, end), (start, _) in pairwise(ordered):
            assert start >= end
        assert timing.elapsed_cycles >= timing.moved(port) / rate * (1 - 1e-12)
    for queue in Queue:
        one_array = queue is not Queue.BE or program.config.timing.encoding is EncodingPath.BACKWARD
        assert timing.elapsed_cycles >= timing.busy(queue) * (1 - 1e-12) or not one_array


def region(program: Program, transfer: Transfer) -> tuple[slice, ...]:
    """The elements of a tensor that a transfer touches, halo left out."""
    shape = program.tensors[transfer.tensor].shape
    starts = (transfer.t0, transfer.n0, transfer.y0, transfer.x0, transfer.c0)
    sizes = (transfer.nt, transfer.nn, transfer.h, transfer.w, transfer.nc)
    return tuple(
        slice(max(start, 0), min(start + size, extent))
        for start, size, extent in zip(starts, sizes, shape, strict=True)
    )


@pytest.mark.parametrize(("make", "phase"), ALL)
def test_bytes_are_conserved(make: Callable[[], Program], phase: Phase) -> None:
    """Each element is stored once at most, what is loaded was stored or is given, and all bytes are accounted for."""
    program = make()
    stored = {i: np.zeros(t.shape, np.int32) for i, t in enumerate(program.tensors)}
    total = 0.0
    carried = {Role.STATE, Role.WEIGHT, Role.NEURON, Role.WEIGHT_GRADIENT, Role.MOMENTUM}
    for queue, stream in program.phases[phase].items():
        for instruction in stream:
            if isinstance(instruction, Store):
                stored[instruction.tensor][region(program, instruction)] += 1
            if isinstance(instruction, Transfer):
                total += duration(program, queue, instruction) * program.config.memory.bytes_per_cycle
    for index, counts in stored.items():
        if program.tensors[index].role not in carried:
            dropped = {0, 1} if program.tensors[index].name.endswith("winners") else {1}  # a pool leaves a last row out
            assert set(np.unique(counts)) in ({0}, {1}, dropped), program.tensors[index].name
    timing = simulate(program, phase)
    assert isclose(sum(timing.bytes.values()), total, rel_tol=1e-9)
    memories = {f"mem{memory}" for memory in MEMORY_OF.values()}
    assert isclose(sum(timing.moved(memory) for memory in memories), total, rel_tol=1e-9)


def test_compressed_membranes_move_their_part() -> None:
    program = PROGRAMS[0]()
    sizes: dict[float, Mapping[object, float]] = {}
    for part in (0.25, 1.0):
        kept = KeptByLayer(dict.fromkeys(range(len(program.layers)), part))
        sizes[part] = simulate(program, Phase.FORWARD, kept=kept).bytes
    packed = sum(
        2 * prod((i.nt, i.nn, i.h, i.w, i.nc))
        for stream in program.phases[Phase.FORWARD].values()
        for i in stream
        if isinstance(i, Store) and program.tensors[i.tensor].format is Format.MCOMP
    )
    assert packed > 0
    assert sum(sizes[1.0].values()) - sum(sizes[0.25].values()) == 0.75 * packed
    dense = replace(program, config=replace(program.config, timing=replace(PRESET.timing, m_write=MembraneWrite.DENSE)))
    quarter = KeptByLayer(dict.fromkeys(range(len(program.layers)), 0.25))
    assert simulate(dense, Phase.FORWARD, kept=quarter).bytes == sizes[1.0]


def test_half_the_bandwidth_takes_twice_the_time_of_transfers() -> None:
    program = split_program()
    memory = program.config.memory
    slow = replace(
        program, config=replace(program.config, memory=replace(memory, bytes_per_cycle=memory.bytes_per_cycle / 2))
    )
    for queue in (Queue.DMA0, Queue.DMA1, Queue.DMA2):
        fast_busy, slow_busy = (simulate(one, Phase.OVERLAP).busy(queue) for one in (program, slow))
        assert isclose(slow_busy, 2 * fast_busy, rel_tol=1e-9)


@pytest.mark.parametrize("make", [PROGRAMS[0], split_program])
def test_an_encoding_layer_apart_does_not_delay_the_backward_pass(make: Callable[[], Program]) -> None:
    """Only its own weight gradients, which are last, remain of it in the time from one sub-batch to the next."""
    program = make()
    times: dict[EncodingPath, PhaseTiming] = {}
    for path in EncodingPath:
        timing = replace(program.config.timing, encoding=path)
        times[path] = simulate(replace(program, config=replace(program.config, timing=timing)), Phase.OVERLAP)
    apart = times[EncodingPath.APART]
    assert apart.elapsed_cycles < times[EncodingPath.BACKWARD].elapsed_cycles
    gradients = next(channel for channel in apart.channels if channel.channel.name == "be")
    alone = simulate(program, Phase.BACKWARD)
    backward = next(channel for channel in alone.channels if channel.channel.name == "be")
    assert isclose(gradients.ends[-1], backward.ends[-1], rel_tol=1e-9)


def test_waiting_in_vain_is_refused() -> None:
    program = split_program()
    stream = program.phases[Phase.FORWARD][Queue.FE]
    broken = with_phase_stream(program, Phase.FORWARD, Queue.FE, (Wait(layer=0, semaphore=99), *stream))
    with pytest.raises(CompileError, match="fe waits for semaphore 99 in vain"):
        simulate(broken, Phase.FORWARD)


def test_channels_that_wait_for_each_other_are_refused() -> None:
    program = split_program()
    streams = program.phases[Phase.FORWARD]
    broken = program
    for queue in streams:
        broken = with_phase_stream(broken, Phase.FORWARD, queue, ())
    for queue, wait, signal in ((Queue.FE, 90, 91), (Queue.DMA0, 91, 90)):
        work = next(i for i in streams[queue] if not isinstance(i, Wait | Signal))
        stream = (Wait(layer=0, semaphore=wait), work, Signal(layer=0, semaphore=signal))
        broken = with_phase_stream(broken, Phase.FORWARD, queue, stream)
    with pytest.raises(CompileError, match="wait for each other"):
        simulate(broken, Phase.FORWARD)


def test_a_semaphore_of_two_queues_is_refused() -> None:
    program = split_program()
    stream = program.phases[Phase.FORWARD][Queue.FE]
    number = next(i.semaphore for i in program.phases[Phase.FORWARD][Queue.DMA0] if isinstance(i, Signal))
    broken = with_phase_stream(program, Phase.FORWARD, Queue.FE, (Signal(layer=0, semaphore=number), *stream))
    with pytest.raises(CompileError, match="its order is open"):
        simulate(broken, Phase.FORWARD)


@pytest.mark.parametrize(("make", "phase"), ALL)
def test_energy_of_the_layers_adds_up_to_the_whole(make: Callable[[], Program], phase: Phase) -> None:
    program = make()
    config = program.config
    timing = simulate(program, phase)
    whole = phase_energy(timing, config)
    parts = [phase_energy(timing, config, layer).dynamic_j for layer in range(len(program.layers))]
    assert isclose(whole.dynamic_j, sum(parts), rel_tol=1e-9, abs_tol=1e-18)
    leakage_w = 2.4  # of the preset; these small arrays leak less
    most = leakage_w * timing.elapsed_cycles / (config.clock_ghz * 1e9)
    assert 0 < whole.leakage_j < most or timing.elapsed_cycles == whole.leakage_j == 0


def test_published_latencies_of_single_samples() -> None:
    """Table 3.7: 115 and 121 us; the closed sum of layers and the events agree within 1 %."""
    for name, published_us in (("loihi", 115.0), ("fpga", 121.0)):
        program = compile_inference(load_model(f"zoo:{name}").graph, PRESET, batch=1).program
        found_us = simulate(program, Phase.RUN).elapsed_cycles / PRESET.clock_ghz / 1000
        assert abs(found_us / published_us - 1) < 0.1
        assert abs(found_us / program_timing(program).latency_us - 1) < 0.01
