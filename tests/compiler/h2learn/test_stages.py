"""The compiler's stages one by one: tiles, partitions, addresses, semaphores."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from compiler.h2learn.allocate_memory import ALIGNMENT_BYTES, Request, allocate_memory
from compiler.h2learn.constants import neuron_values, weight_values
from compiler.h2learn.isolate_pools import isolate_pools
from compiler.h2learn.layers import split_layers
from compiler.h2learn.partition_luts import partition
from compiler.h2learn.quantise import quantise
from compiler.h2learn.schedule_dataflow import Schedule, schedule_dataflow
from compiler.h2learn.synchronise import Action, synchronise
from compiler.h2learn.tile_feature_maps import tile_feature_maps
from compiler.passes import FoldBatchNorm, HoistEncode, MeanLast, run_passes
from hwmodel.config import load_config
from hwmodel.errors import CompileError, Loc
from hwmodel.isa import Halt, LutMode, LutProgram, Queue, Signal, Wait
from tests.strategies import RandomNetwork, networks

CONFIG = load_config("h2learn")
LOC = Loc("test")
CHECKS = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])


@CHECKS
@given(networks(dyadic=False), st.sampled_from([(8, 8), (4, 8), (3, 5), (1, 1)]))
def test_tiles_cover_every_output_once(network: RandomNetwork, tile: tuple[int, int]) -> None:
    graph, _ = run_passes(network.graph, (HoistEncode(), MeanLast(), FoldBatchNorm()))
    for whole in split_layers(graph).layers:
        for layer in isolate_pools(graph, whole, tile):
            kind = layer.output_type
            shape = (kind.size("H"), kind.size("W")) if kind.has("H") else (1, 1)
            seen = np.zeros(shape, int)
            for part in tile_feature_maps(layer, *tile):
                rows, columns = part.rows, part.columns
                seen[
                    rows.out_start : rows.out_start + rows.out_size,
                    columns.out_start : columns.out_start + columns.out_size,
                ] += 1
            assert (seen == 1).all()


@CHECKS
@given(networks(dyadic=False), st.integers(1, 64))
def test_row_blocks_hold_every_weight_once(network: RandomNetwork, rows: int) -> None:
    graph, _ = run_passes(network.graph, (HoistEncode(), MeanLast(), FoldBatchNorm()))
    for layer in split_layers(graph).layers:
        if layer.synapse is None:
            continue
        for engine in (Queue.FE, Queue.BE):
            split = partition(layer, engine, CONFIG, rows=rows)
            if layer.source_type.has("H"):
                per_group = quantise(graph, layer).weights
                assert per_group is not None
                wanted = per_group.shape[1] * (split.pieces if engine is Queue.FE else 1)
                assert sum(block.rows for block in split.blocks) == wanted
            else:
                assert sum(block.channels for block in split.blocks) == layer.source_type.size("C")


@CHECKS
@given(networks(dyadic=False), st.data())
def test_constants_stand_by_position_input_and_output(network: RandomNetwork, data: st.DataObject) -> None:
    graph, _ = run_passes(network.graph, (HoistEncode(), MeanLast(), FoldBatchNorm()))
    for layer in split_layers(graph).layers:
        constants = quantise(graph, layer)
        if constants.weights is not None:
            out, channels, height, width = constants.weights.shape
            stored = weight_values(constants)
            assert stored.shape == (height * width, channels, out)
            o, c, y, x = (data.draw(st.integers(0, size - 1)) for size in constants.weights.shape)
            assert stored[y * width + x, c, o] == constants.weights[o, c, y, x]
        if constants.stages:
            table = neuron_values(constants)
            for stage, own in enumerate(constants.stages):
                np.testing.assert_array_equal(table[stage], own.table)


@CHECKS
@given(networks(dyadic=False), st.integers(1, 6))
def test_chunks_cover_time_and_samples(network: RandomNetwork, batch: int) -> None:
    graph, _ = run_passes(network.graph, (HoistEncode(), MeanLast(), FoldBatchNorm()))
    for whole in split_layers(graph).layers:
        for layer in isolate_pools(graph, whole, (8, 8)):
            plan = schedule_dataflow(layer, quantise(graph, layer), CONFIG, graph.timesteps, batch)
            assert isinstance(plan, Schedule)
            assert [i for c in plan.times for i in range(c.start, c.start + c.size)] == list(range(graph.timesteps))
            assert [i for c in plan.samples for i in range(c.start, c.start + c.size)] == list(range(batch))


@given(
    st.lists(st.tuples(st.integers(1, 500), st.integers(0, 6), st.integers(0, 3)), max_size=12),
    st.lists(st.integers(1, 300), max_size=4),
)
def test_tensors_that_meet_never_share_bytes(lives: list[tuple[int, int, int]], sizes: list[int]) -> None:
    constants = [Request(name=f"c{i}", size_bytes=size, first=-1, last=9) for i, size in enumerate(sizes)]
    others = [
        Request(name=f"a{i}", size_bytes=size, first=first, last=first + length)
        for i, (size, first, length) in enumerate(lives)
    ]
    addresses = allocate_memory(constants, others, 1 << 20, LOC)
    requests = constants + others
    for i, left in enumerate(requests):
        assert addresses[left.name] % ALIGNMENT_BYTES == 0
        for right in requests[:i]:
            apart = (
                addresses[left.name] + left.size_bytes <= addresses[right.name]
                or addresses[right.name] + right.size_bytes <= addresses[left.name]
            )
            meet = left.first <= right.last and right.first <= left.last
            assert apart or not (meet or left in constants or right in constants)


def test_memory_is_reused_and_its_capacity_respected() -> None:
    requests = [Request(name=f"a{i}", size_bytes=640, first=i, last=i + 1) for i in range(10)]
    addresses = allocate_memory([], requests, 1280, LOC)
    assert set(addresses.values()) == {0, 640}
    with pytest.raises(CompileError, match="needs 1280 bytes of one external memory, which has 1279"):
        allocate_memory([], requests, 1279, LOC)


@dataclass(frozen=True, slots=True)
class _Step:
    """An action on numbered cells: each written cell becomes a function of all cells read and its number."""

    number: int
    queue: Queue
    reads: tuple[int, ...]
    writes: tuple[int, ...]


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_any_interleaving_computes_what_program_order_does(data: st.DataObject) -> None:
    queues = [Queue.FE, Queue.BE, Queue.DMA0]
    cells = st.lists(st.integers(0, 3), max_size=2, unique=True).map(tuple)
    steps = [
        _Step(number, data.draw(st.sampled_from(queues)), data.draw(cells), data.draw(cells))
        for number in range(data.draw(st.integers(0, 14)))
    ]
    actions = [
        Action(
            queue=step.queue,
            instruction=LutProgram(
                layer=step.number,
                w_bank=0,
                mode=LutMode.CONV,
                rows=1,
                groups=0,
                cols=1,
                taps=9,
                inputs=1,
                first_piece=0,
            ),
            reads=tuple(("cell", cell) for cell in step.reads),
            writes=tuple(("cell", cell) for cell in step.writes),
        )
        for step in steps
    ]
    want: dict[int, int] = {}
    for step in steps:
        _apply(step, want)
    got: dict[int, int] = {}
    streams = synchronise(actions, LOC)
    position = dict.fromkeys(streams, 0)
    semaphores: dict[int, int] = {}
    while any(not isinstance(streams[q][position[q]], Halt) for q in streams):
        ready = [q for q in streams if _can_go(streams[q][position[q]], semaphores)]
        assert ready, "deadlock"
        queue = data.draw(st.sampled_from(ready))
        instruction = streams[queue][position[queue]]
        position[queue] += 1
        if isinstance(instruction, Wait):
            semaphores[instruction.semaphore] -= 1
        elif isinstance(instruction, Signal):
            semaphores[instruction.semaphore] = semaphores.get(instruction.semaphore, 0) + 1
        else:
            _apply(steps[instruction.layer], got)
    assert got == want
    assert not any(semaphores.values())


def _apply(step: _Step, cells: dict[int, int]) -> None:
    value = hash((step.number, tuple(cells.get(cell, 0) for cell in step.reads)))
    for cell in step.writes:
        cells[cell] = hash((value, cells.get(cell, 0)))


def _can_go(instruction: object, semaphores: dict[int, int]) -> bool:
    if isinstance(instruction, Wait):
        return semaphores.get(instruction.semaphore, 0) > 0
    return not isinstance(instruction, Halt)
