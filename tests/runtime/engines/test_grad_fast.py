"""Grad unit: fast equals golden, and the winners are those of the Soma."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runtime.engines import (
    F16,
    U8,
    Compare,
    GradNeuron,
    GradPlan,
    KeptStage,
    Neuron,
    Param,
    Pool,
    PoolKind,
    Reset,
    SomaPlan,
    fast,
    golden,
)
from tests.runtime.engines.fp16_values import Values, f16, kinds, seeds, spikes
from tests.runtime.engines.grad_plans import NEURONS, assert_same_result, kept_stage, windows

GOLDEN, FAST = golden(), fast()


VARIANTS = [
    (True, NEURONS[0], None, None, None),
    (True, NEURONS[1], PoolKind.AVG, None, None),
    (True, NEURONS[2], PoolKind.MAX, PoolKind.MAX, None),
    (True, NEURONS[5], PoolKind.MAX, None, None),
    (False, NEURONS[3], None, PoolKind.AVG, NEURONS[0]),
    (True, NEURONS[0], None, PoolKind.MAX, NEURONS[4]),
    (True, None, None, PoolKind.MAX, None),
    (True, None, None, PoolKind.MAX, NEURONS[5]),
    (True, None, None, PoolKind.AVG, NEURONS[2]),
]


@st.composite
def plans(draw: st.DrawFn, size: tuple[int, int]) -> GradPlan:
    """One of the variants that have a kernel each, over windows of any size."""

    def pool(kind: PoolKind | None, h: int, w: int) -> Pool | None:
        if kind is None:
            return None
        kernel = draw(st.integers(1, min(3, h))), draw(st.integers(1, min(3, w)))
        return windows(kind, kernel, (h, w), draw(st.booleans()), include_pad)

    include_pad, stage1, kind1, kind2, stage2 = draw(st.sampled_from(VARIANTS))
    pool1 = pool(kind1, *size)
    front = size if pool1 is None else (pool1.out_h, pool1.out_w)
    return GradPlan(stage1=stage1, pool1=pool1, pool2=pool(kind2, *front), stage2=stage2)


def stage_shapes(plan: GradPlan, shape: tuple[int, ...]) -> list[tuple[int, ...]]:
    """Of the source, of stage1 and of the output."""
    sizes = [shape]
    for pool in (plan.pool1, plan.pool2):
        height, width = sizes[-1][2:4] if pool is None else (pool.out_h, pool.out_w)
        sizes.append((*shape[:2], height, width, shape[-1]))
    return sizes


@settings(max_examples=60, deadline=None)
@given(
    size=st.tuples(st.integers(1, 6), st.integers(1, 6)),
    steps=st.integers(1, 10),
    samples=st.integers(1, 5),
    kind=kinds,
    seed=seeds,
    data=st.data(),
)
def test_fast_equals_golden(
    size: tuple[int, int], steps: int, samples: int, kind: Values, seed: int, data: st.DataObject
) -> None:
    plan = data.draw(plans(size))
    channels = 5 if plan.pool1 is None else 16  # each is a kernel of its own
    source, middle, out = stage_shapes(plan, (steps, samples, *size, channels))
    over_spikes = plan.pool2 is not None and plan.pool2.kind is PoolKind.MAX
    kept: list[KeptStage] = []
    if plan.keeps_source:
        kept.append(KeptStage(spikes=spikes(seed, source), mask=None, membrane=None))
    if plan.stage1 is not None:
        kept.append(kept_stage(seed, middle, kind, plan.stage1, over_spikes))
    if plan.stage2 is not None:
        kept.append(kept_stage(seed + 3, out, kind, plan.stage2))
    winners: U8 | None = None
    if plan.pool1 is not None and plan.pool1.kind is PoolKind.MAX:
        winners = GOLDEN.pool_winners(f16(seed, source, kind), None, plan.pool1)
    params = f16(seed + 4, (len(plan.neurons), 9, channels), Values.NORMAL)
    params[:, Param.DECAY] = np.clip(params[:, Param.DECAY], -1, 1)
    carried = [] if plan.stage1 is None else [middle]
    carried += [] if plan.stage2 is None else [out]
    carry: tuple[F16 | None, ...] = tuple(f16(seed + 5, shape[1:], kind) if seed % 2 else None for shape in carried)
    psum = f16(seed + 6, out, kind)
    arguments = (psum, plan, params, tuple(kept), carry, winners, *size)
    assert_same_result(FAST.grad(*arguments), GOLDEN.grad(*arguments))


@pytest.mark.parametrize("neuron", NEURONS)
@pytest.mark.parametrize("kind", [Values.NORMAL, Values.SUBNORMAL])
def test_every_neuron_in_both_engines(neuron: GradNeuron, kind: Values) -> None:
    psum, params = f16(0, (4, 2, 3, 3, 16), kind), f16(1, (1, 9, 16), Values.NORMAL)
    plan = GradPlan(stage1=neuron, pool1=None, pool2=None, stage2=None)
    arguments = (psum, plan, params, (kept_stage(2, psum.shape, kind, neuron),), (None,), None, 3, 3)
    want = GOLDEN.grad(*arguments)
    assert want.finite
    assert_same_result(FAST.grad(*arguments), want)


@settings(max_examples=40, deadline=None)
@given(
    size=st.tuples(st.integers(1, 7), st.integers(1, 7)),
    kernel=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    channels=st.sampled_from([5, 16]),
    has_bias=st.booleans(),
    ties=st.booleans(),
    kind=kinds,
    seed=seeds,
)
def test_fast_winners_equal_golden(
    size: tuple[int, int], kernel: tuple[int, int], channels: int, has_bias: bool, ties: bool, kind: Values, seed: int
) -> None:
    pool = windows(PoolKind.MAX, (min(kernel[0], size[0]), min(kernel[1], size[1])), size, bool(seed % 2), True)
    x = f16(seed, (3, 2, *size, channels), kind)
    if ties:
        x = np.sign(x).astype(np.float16)
    bias = f16(seed + 1, (channels,), kind) if has_bias else None
    got = FAST.pool_winners(x, bias, pool)
    np.testing.assert_array_equal(got, GOLDEN.pool_winners(x, bias, pool))
    assert int(got.sum()) == 6 * pool.out_h * pool.out_w * channels


@settings(max_examples=20, deadline=None)
@given(size=st.tuples(st.integers(2, 7), st.integers(2, 7)), ceil=st.booleans(), seed=seeds)
def test_winners_are_what_the_soma_takes(size: tuple[int, int], ceil: bool, seed: int) -> None:
    pool = windows(PoolKind.MAX, (2, 2), size, ceil, True)
    x, params = f16(seed, (1, 2, *size, 5), Values.NORMAL), np.zeros((1, 9, 5), np.float16)
    params[0, Param.PRE_BIAS] = f16(seed + 1, (5,), Values.NORMAL)
    integrate = Neuron(
        reset=Reset.NONE, compare=Compare.GE, fire=False, has_pre_bias=True, has_scale=False, has_bias=False
    )
    maxima = GOLDEN.soma(x, SomaPlan(stage1=integrate, pool1=pool), params, (None,), False).membrane
    assert maxima is not None
    winners = GOLDEN.pool_winners(x, params[0, Param.PRE_BIAS], pool)
    taken = np.where(winners, x + params[0, Param.PRE_BIAS], np.float16(0))
    for oy, ox in np.ndindex(pool.out_h, pool.out_w):
        window = taken[:, :, 2 * oy : 2 * oy + 2, 2 * ox : 2 * ox + 2]
        np.testing.assert_array_equal(window.sum(axis=(2, 3)), maxima[:, :, oy, ox])
