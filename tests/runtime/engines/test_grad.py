"""Grad unit: exact against torch's autograd of the same network, and by hand."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from runtime.engines import GradNeuron, GradPlan, KeptStage, PoolKind, Reset, fast, golden
from tests.runtime.engines.fp16_values import Values, assert_same_bits, f16
from tests.runtime.engines.grad_plans import NEURONS, PLAIN, SPIKING, chunk, halves, kept_stage
from tests.runtime.engines.lif_autograd import channels_last, currents_to, lif, pooled, spread, table

GOLDEN, FAST = golden(), fast()


@pytest.mark.parametrize(("neuron", "pool2"), [*((n, None) for n in NEURONS), *((n, PoolKind.MAX) for n in SPIKING)])
@pytest.mark.parametrize("pool1", [None, PoolKind.AVG, PoolKind.MAX])
def test_golden_is_the_gradient_of_torch(neuron: GradNeuron, pool1: PoolKind | None, pool2: PoolKind | None) -> None:
    """Exact: membranes are halves below 2, so each of the four steps adds two bits to a gradient of three."""
    rng = np.random.default_rng(3)
    params = table(5, 3)
    currents = currents_to(rng.integers(-3, 5, (4, 2, 3, 4, 4)) / 2, neuron, params)
    first = None if pool1 is None else halves(pool1, 8)
    inputs = torch.tensor(currents if first is None else spread(currents, first, rng), requires_grad=True)
    outputs, kept = lif(pooled(inputs, first), neuron, torch.tensor(params))
    second = None if pool2 is None else halves(pool2)
    outputs = pooled(outputs, second)
    given_back = torch.tensor(rng.integers(-2, 3, tuple(outputs.shape)), dtype=torch.float64)
    outputs.backward(given_back)
    assert inputs.grad is not None
    plan = GradPlan(stage1=neuron, pool1=first, pool2=second, stage2=None)
    x = channels_last(inputs).astype(np.float16)
    result = GOLDEN.grad(
        channels_last(given_back).astype(np.float16),
        plan,
        params[None].astype(np.float16),
        (kept,),
        (None,),
        GOLDEN.pool_winners(x, None, first) if first is not None and pool1 is PoolKind.MAX else None,
        x.shape[2],
        x.shape[3],
    )
    assert result.finite
    np.testing.assert_array_equal(result.gradient, channels_last(inputs.grad))
    np.testing.assert_array_equal(result.mask, result.gradient != 0)


@pytest.mark.parametrize("second", [neuron for neuron in NEURONS if neuron.reset is not Reset.HARD])
@pytest.mark.parametrize("kind", PoolKind)
def test_golden_walks_through_two_neurons(second: GradNeuron, kind: PoolKind) -> None:
    """Exact: without a hard reset a step adds one bit, and an average of four adds two."""
    rng = np.random.default_rng(4)
    first, params = replace(PLAIN, detach=True), np.stack([table(5, 3), table(6, 3)])
    inputs = torch.tensor(currents_to(rng.integers(-3, 5, (3, 2, 3, 4, 4)) / 2, first, params[0]), requires_grad=True)
    hidden, kept1 = lif(inputs, first, torch.tensor(params[0]))
    outputs, kept2 = lif(pooled(hidden, halves(kind)), second, torch.tensor(params[1]))
    given_back = torch.tensor(rng.integers(-2, 3, tuple(outputs.shape)), dtype=torch.float64)
    outputs.backward(given_back)
    assert inputs.grad is not None
    plan = GradPlan(stage1=first, pool1=None, pool2=halves(kind), stage2=second)
    psum = channels_last(given_back).astype(np.float16)
    halved = params.astype(np.float16)
    result = GOLDEN.grad(psum, plan, halved, (kept1, kept2), (None, None), None, 4, 4)
    np.testing.assert_array_equal(result.gradient, channels_last(inputs.grad))


@pytest.mark.parametrize("neuron", NEURONS)
def test_steps_may_come_in_two_calls(neuron: GradNeuron) -> None:
    """The gradient of the membrane potential goes from a later chunk of steps to an earlier one."""
    psum, params = f16(0, (5, 2, 3, 3, 4), Values.NORMAL), f16(1, (1, 9, 4), Values.NORMAL)
    kept = kept_stage(2, psum.shape, Values.NORMAL, neuron)
    plan = GradPlan(stage1=neuron, pool1=None, pool2=None, stage2=None)
    for engines in (GOLDEN, FAST):
        whole = engines.grad(psum, plan, params, (kept,), (None,), None, 3, 3)
        late = engines.grad(psum[3:], plan, params, (chunk(kept, slice(3, 5)),), (None,), None, 3, 3)
        early = engines.grad(psum[:3], plan, params, (chunk(kept, slice(0, 3)),), late.carry, None, 3, 3)
        assert_same_bits(np.concatenate([early.gradient, late.gradient]), whole.gradient)
        assert_same_bits(early.carry[0], whole.carry[0])


def test_the_first_maximum_wins_even_among_zeros_of_two_signs() -> None:
    x = np.array([-0.0, 0.0, -1, 0.0], np.float16).reshape(1, 1, 2, 2, 1)
    for engines in (GOLDEN, FAST):
        assert engines.pool_winners(x, None, halves(PoolKind.MAX, 2)).ravel().tolist() == [1, 0, 0, 0]


@pytest.mark.parametrize(
    ("spiking", "chosen"), [([0, 0, 0, 0], 0), ([0, 0, 1, 1], 2), ([0, 1, 0, 1], 1), ([1, 1, 1, 1], 0)]
)
def test_a_maximum_of_spikes_goes_to_the_first_that_spikes(spiking: list[int], chosen: int) -> None:
    kept = KeptStage(spikes=np.array(spiking, np.uint8).reshape(1, 1, 2, 2, 1), mask=None, membrane=None)
    plan = GradPlan(stage1=None, pool1=None, pool2=halves(PoolKind.MAX, 2), stage2=None)
    for engines in (GOLDEN, FAST):
        psum = np.full((1, 1, 1, 1, 1), 3, np.float16)
        result = engines.grad(psum, plan, np.empty((0, 9, 1), np.float16), (kept,), (), None, 2, 2)
        assert result.gradient.ravel().tolist() == [3.0 * (k == chosen) for k in range(4)]
        assert result.mask.ravel().tolist() == [int(k == chosen) for k in range(4)]


def test_what_the_mask_drops_need_not_be_finite() -> None:
    plan = GradPlan(stage1=replace(PLAIN, detach=True), pool1=None, pool2=None, stage2=None)
    params = np.ones((1, 9, 2), np.float16)
    psum = np.array([np.inf, 1], np.float16).reshape(1, 1, 1, 1, 2)
    for mask, finite in (([0, 1], True), ([1, 1], False)):
        shape = (1, 1, 1, 1, 2)
        kept = KeptStage(spikes=np.zeros(shape, np.uint8), mask=np.array(mask, np.uint8).reshape(shape), membrane=None)
        for engines in (GOLDEN, FAST):
            result = engines.grad(psum, plan, params, (kept,), (None,), None, 1, 1)
            assert result.finite is finite
            if finite:
                assert result.gradient.ravel().tolist() == [0, 1]


def test_what_the_mask_drops_behind_a_pool_need_not_be_finite() -> None:
    """The winner's neuron is masked out; without a neuron in front the same value is the result."""
    psum, shape = np.full((1, 1, 1, 1, 1), np.inf, np.float16), (1, 1, 2, 2, 1)
    kept = KeptStage(spikes=np.zeros(shape, np.uint8), mask=np.zeros(shape, np.uint8), membrane=None)
    pool, params = halves(PoolKind.MAX, 2), np.ones((1, 9, 1), np.float16)
    through = GradPlan(stage1=replace(PLAIN, detach=True), pool1=None, pool2=pool, stage2=None)
    alone = GradPlan(stage1=None, pool1=None, pool2=pool, stage2=None)
    for engines in (GOLDEN, FAST):
        assert engines.grad(psum, through, params, (kept,), (None,), None, 2, 2).finite
        assert not engines.grad(psum, alone, params[:0], (kept,), (), None, 2, 2).finite


def test_windows_that_overlap_are_refused() -> None:
    pool = replace(halves(PoolKind.AVG), stride_h=1)
    with pytest.raises(AssertionError, match="overlap"):
        GradPlan(stage1=PLAIN, pool1=pool, pool2=None, stage2=None)
