"""The schedules of training: source regions against trial, and that every gradient is computed exactly once."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from compiler.h2learn.compile_training import _side_by_side
from compiler.h2learn.gradient_schedule import Consumer, GradientSchedule, Origin, _Choice
from compiler.h2learn.schedule_dataflow import Chunk, bytes_of_bits
from compiler.h2learn.synchronise import Action
from compiler.h2learn.training_plan import BackwardPlan
from compiler.h2learn.update_schedule import Shape, UpdateSchedule, schedule_update
from hwmodel.config import H2LearnConfig
from hwmodel.isa import Buffer, HostLoss, Load, Queue
from tests.compiler.h2learn.training_plans import NETWORKS, Stages, configs, stages_of
from tests.hwmodel.training_programs import GRAPHS, made_if_trainable, training_config
from tests.strategies import RandomNetwork

CHECKS = settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))


def planned(network: RandomNetwork, config: H2LearnConfig, batch: int) -> Stages:
    return made_if_trainable(lambda: stages_of(network.graph, config, batch))


def taken(kernel: int, stride: int, padding: int, start: int, size: int) -> list[int]:
    """Rows of a convolution's output whose windows meet rows start to start + size of its input, by trial."""
    return [
        row
        for row in range(-50, 50)
        if any(start <= row * stride - padding + tap < start + size for tap in range(kernel))
    ]


@given(
    kernel=st.integers(1, 7),
    stride=st.integers(1, 4),
    padding=st.integers(0, 6),
    start=st.integers(0, 20),
    size=st.integers(1, 8),
)
def test_source_regions_hold_just_the_rows_that_are_taken(
    kernel: int, stride: int, padding: int, start: int, size: int
) -> None:
    consumer = Consumer(origin=Origin.CONV, kernel=(kernel, 1), stride=(stride, 1), padding=(padding, 0))
    first, count = consumer.source_range(0, start, size)
    rows = taken(kernel, stride, padding, start, size)
    if rows:
        assert list(range(first, first + count)) == list(range(rows[0], rows[-1] + 1))
    else:
        assert count == 1  # a row that no output takes anything from; a region is never empty


@pytest.mark.parametrize("axis", [0, 1])
def test_rows_and_columns_have_their_own_windows(axis: int) -> None:
    """5 x 3 with stride 2 x 1 and padding 2 x 0: rows -1 to 3 of outputs, columns -2 to 4."""
    consumer = Consumer(origin=Origin.CONV, kernel=(5, 3), stride=(2, 1), padding=(2, 0))
    assert consumer.source_range(axis, 0, 5) == ((-1, 5), (-2, 7))[axis]


@CHECKS
@given(NETWORKS, st.sampled_from(configs()), st.integers(1, 5))
def test_every_gradient_is_computed_once(network: RandomNetwork, config: H2LearnConfig, batch: int) -> None:
    stages = planned(network, config, batch)
    tensors = stages.plan.table.tensors
    for step in stages.plan.backward:
        layer, schedule = stages.plan.layers[step.number].layer, step.schedule
        channels = layer.output_type.size("C")
        inner = np.zeros(tensors[step.tensors.gradient].shape, int)
        size = (layer.output_type.size("H"), layer.output_type.size("W")) if layer.output_type.has("H") else (1, 1)
        outer = np.zeros(size, int)
        for tile in schedule.tiles:
            rows, columns = tile.rows, tile.columns
            outer[
                rows.out_start : rows.out_start + rows.out_size,
                columns.out_start : columns.out_start + columns.out_size,
            ] += 1
            for block in schedule.columns(channels):
                for times in schedule.times:
                    for samples in schedule.samples:
                        inner[
                            times.start : times.start + times.size,
                            samples.start : samples.start + samples.size,
                            rows.start : rows.start + rows.size,
                            columns.start : columns.start + columns.size,
                            block.first : block.first + block.size,
                        ] += 1
        assert (inner == 1).all()
        assert (outer == 1).all()
        assert [times.start for times in schedule.times] == sorted((c.start for c in schedule.times), reverse=True)


@CHECKS
@given(NETWORKS, st.sampled_from(configs()), st.integers(1, 5))
def test_the_need_of_spikes_is_what_is_loaded(network: RandomNetwork, config: H2LearnConfig, batch: int) -> None:
    stages = planned(network, config, batch)
    for step in stages.plan.backward:
        assert _spikes_needed(stages, step) == _spikes_loaded(stages, step)


@pytest.mark.parametrize("name", sorted(GRAPHS))
def test_spikes_of_a_first_neuron_are_counted_once(name: str) -> None:
    """Networks with a neuron in front of a pool, of hard and of soft reset."""
    stages = stages_of(GRAPHS[name](), training_config(), batch=2)
    assert any(step.kept.first_spikes for step in stages.plan.backward)
    for step in stages.plan.backward:
        assert _spikes_needed(stages, step) == _spikes_loaded(stages, step)


def _spikes_needed(stages: Stages, step: BackwardPlan) -> int:
    """Bytes of BE_OUT that the schedule reckons with."""
    schedule = step.schedule
    choice = _Choice(
        layer=stages.plan.layers[step.number].layer,
        consumer=schedule.consumer,
        kept=step.kept,
        tiles=schedule.tiles,
        cols=schedule.cols,
        rows=schedule.rows,
    )
    samples = max(chunk.size for chunk in schedule.samples)
    return choice._bytes(samples * max(chunk.size for chunk in schedule.times), samples)[Buffer.BE_OUT]


def _spikes_loaded(stages: Stages, step: BackwardPlan) -> int:
    """Bytes of BE_OUT that the largest block fills, part by part."""
    parts: dict[int, int] = {}
    most = 0
    for action in stages.backward:
        load = action.instruction
        if isinstance(load, Load) and (load.layer, load.buffer) == (step.number, Buffer.BE_OUT):
            if load.part in parts:  # the next block
                parts = {}
            parts[load.part] = load.nt * load.nn * load.h * load.w * load.nc
            most = max(most, bytes_of_bits(parts.values()))
    return most


@CHECKS
@given(NETWORKS, st.sampled_from(configs()), st.integers(1, 3))
def test_every_product_of_a_gradient_is_summed_once(network: RandomNetwork, config: H2LearnConfig, batch: int) -> None:
    """Each channel takes all channels of gradients of its group, and no other."""
    for step in planned(network, config, batch).plan.backward:
        schedule = step.schedule
        consumer = schedule.consumer
        assert bool(schedule.row_groups()) == (consumer.origin in (Origin.CONV, Origin.FC))
        if schedule.row_groups():
            _check_products(schedule)


def _check_products(schedule: GradientSchedule) -> None:
    consumer = schedule.consumer
    channels = 6 * consumer.groups
    pairs = np.zeros((channels, consumer.outputs), int)
    for block in schedule.columns(channels):
        for rows in schedule.row_groups():
            first = block.first_source + rows.first
            pairs[block.first : block.first + block.size, first : first + rows.size] += 1
            assert rows.size <= schedule.rows
        assert block.size <= schedule.cols
    group = np.kron(np.eye(consumer.groups, dtype=int), np.ones((6, consumer.outputs // consumer.groups), int))
    np.testing.assert_array_equal(pairs, group)


@CHECKS
@given(NETWORKS, st.sampled_from(configs()), st.integers(1, 5))
def test_tiles_in_front_of_a_linear_layer_are_runs_of_its_inputs(
    network: RandomNetwork, config: H2LearnConfig, batch: int
) -> None:
    stages = planned(network, config, batch)
    for step in stages.plan.backward:
        if step.schedule.consumer.origin is not Origin.FC:
            continue
        layer = stages.plan.layers[step.number].layer
        width = layer.output_type.size("W") if layer.output_type.has("W") else 1
        for tile in step.schedule.tiles:
            rows = range(tile.rows.out_start, tile.rows.out_start + tile.rows.out_size)
            columns = range(tile.columns.out_start, tile.columns.out_start + tile.columns.out_size)
            positions = [row * width + column for row in rows for column in columns]
            assert positions == list(range(positions[0], positions[0] + len(positions)))


@CHECKS
@given(NETWORKS, st.sampled_from(configs()), st.integers(1, 5))
def test_every_weight_gradient_is_summed_over_every_place_once(
    network: RandomNetwork, config: H2LearnConfig, batch: int
) -> None:
    stages = planned(network, config, batch)
    for step in stages.plan.backward:
        if step.update is not None:
            _check_update(step.update, stages.graph.timesteps, batch)


shapes = st.builds(
    Shape,
    engine=st.sampled_from([Queue.WUE, Queue.BE]),
    kernel=st.tuples(st.integers(1, 5), st.integers(1, 5)),
    stride=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    padding=st.just((0, 0)),
    groups=st.integers(1, 3),
    inputs=st.integers(1, 40),
    outputs=st.integers(1, 40),
    rows=st.integers(1, 12),
    columns=st.integers(1, 12),
    is_conv=st.just(True),
    held=st.booleans(),
)


@settings(max_examples=60, deadline=None)
@given(shapes, st.sampled_from(configs()), st.integers(1, 12), st.integers(1, 5))
def test_an_update_of_any_shape_covers_it(shape: Shape, config: H2LearnConfig, timesteps: int, batch: int) -> None:
    schedule = schedule_update(shape, config, timesteps, batch)
    if isinstance(schedule, UpdateSchedule):
        _check_update(schedule, timesteps, batch)


def _check_update(schedule: UpdateSchedule, timesteps: int, batch: int) -> None:
    shape = schedule.shape
    pairs = np.zeros((shape.groups * shape.outputs, shape.inputs), int)
    for outputs in schedule.outputs:
        assert outputs.start // shape.outputs == (outputs.start + outputs.size - 1) // shape.outputs  # of one group
        for inputs in schedule.inputs:
            pairs[outputs.start : outputs.start + outputs.size, inputs.start : inputs.start + inputs.size] += 1
    assert (pairs == 1).all()
    totals = (shape.rows, shape.columns, batch, timesteps)
    axes = (schedule.tile_rows, schedule.tile_columns, schedule.samples, schedule.times)
    for total, chunks in zip(totals, axes, strict=True):
        assert _elements(chunks) == list(range(total))
    assert schedule.slice_inputs >= 1


def _elements(chunks: tuple[Chunk, ...]) -> list[int]:
    return [i for chunk in chunks for i in range(chunk.start, chunk.start + chunk.size)]


@given(st.integers(0, 12), st.integers(0, 30), st.integers(1, 3))
def test_two_lists_side_by_side_keep_their_orders(left: int, right: int, size: int) -> None:
    def group(queue: Queue, number: int) -> tuple[Action, ...]:
        tags = range(number * size, (number + 1) * size)
        return tuple(Action(queue=queue, instruction=HostLoss(layer=0, output=tag, gradient=0)) for tag in tags)

    mixed = list(_side_by_side([group(Queue.BE, i) for i in range(left)], [group(Queue.WUE, i) for i in range(right)]))
    for queue, count in ((Queue.BE, left), (Queue.WUE, right)):
        tags = [_tag(action) for action in mixed if action.queue is queue]
        assert tags == list(range(count * size))
    for index in range(1, left + 1):  # in proportion, so that neither waits for the other at the end
        end = max(i for i, action in enumerate(mixed) if action.queue is Queue.BE and _tag(action) < index * size)
        following = [action for action in mixed[:end] if action.queue is Queue.WUE]
        assert len(following) == right * (index - 1) // left * size


def _tag(action: Action) -> int:
    assert isinstance(action.instruction, HostLoss)
    return action.instruction.output
