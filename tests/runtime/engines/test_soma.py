"""Soma unit: against an independent torch loop, torch's pooling geometry, and fast against golden."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from runtime.engines import (
    F16,
    Compare,
    Neuron,
    Param,
    Pool,
    PoolKind,
    Reset,
    SomaPlan,
    SomaResult,
    compress,
    decompress,
    fast,
    golden,
)
from tests.runtime.engines.fp16_values import Values, assert_same_bits, f16, kinds, seeds, spikes

GOLDEN, FAST = golden(), fast()
PLAIN = Neuron(reset=Reset.HARD, compare=Compare.GE, fire=True, has_pre_bias=False, has_scale=False, has_bias=False)


def neurons(fire: st.SearchStrategy[bool]) -> st.SearchStrategy[Neuron]:
    flag = st.booleans()
    return st.builds(
        Neuron,
        reset=st.sampled_from(Reset),
        compare=st.sampled_from(Compare),
        fire=fire,
        has_pre_bias=flag,
        has_scale=flag,
        has_bias=flag,
    )


@st.composite
def pools(
    draw: st.DrawFn, height: int, width: int, kind: PoolKind | None = None, ceil_mode: bool | None = None
) -> Pool:
    """A pool as PyTorch would run it over a whole h x w map."""
    kernel_h, kernel_w = draw(st.integers(1, min(3, height))), draw(st.integers(1, min(3, width)))
    stride_h, stride_w = draw(st.integers(1, 3)), draw(st.integers(1, 3))
    pad_h, pad_w = draw(st.integers(0, kernel_h // 2)), draw(st.integers(0, kernel_w // 2))
    round_up = draw(st.booleans()) if ceil_mode is None else ceil_mode

    def out(size: int, kernel: int, stride: int, pad: int) -> int:
        span = size + 2 * pad - kernel
        count = (-(-span // stride) if round_up else span // stride) + 1
        return count - 1 if (count - 1) * stride >= size + pad else count

    return Pool(
        kind=draw(st.sampled_from(PoolKind)) if kind is None else kind,
        kernel_h=kernel_h,
        kernel_w=kernel_w,
        stride_h=stride_h,
        stride_w=stride_w,
        out_h=out(height, kernel_h, stride_h, pad_h),
        out_w=out(width, kernel_w, stride_w, pad_w),
        top=-pad_h,
        left=-pad_w,
        limit_h=height + pad_h,
        limit_w=width + pad_w,
        include_pad=draw(st.booleans()),
    )


@st.composite
def plans(draw: st.DrawFn, height: int, width: int) -> SomaPlan:
    """Every form of plan over an h x w region."""
    pool1 = draw(st.none() | pools(height, width))
    stage1 = draw(neurons(st.booleans()))
    h, w = (height, width) if pool1 is None else (pool1.out_h, pool1.out_w)
    if not stage1.fire or draw(st.booleans()):
        return SomaPlan(stage1=stage1, pool1=pool1)
    stage2 = draw(st.none() | neurons(st.booleans()))
    pool2 = draw(pools(h, w, PoolKind.MAX if stage2 is None else None))
    return SomaPlan(stage1=stage1, pool1=pool1, pool2=pool2, stage2=stage2)


def assert_same_result(got: SomaResult, want: SomaResult) -> None:
    assert got.finite == want.finite
    assert (got.spikes is None, got.membrane is None) == (want.spikes is None, want.membrane is None)
    assert (len(got.state), len(got.probes)) == (len(want.state), len(want.probes))
    if not want.finite:
        return
    if got.spikes is not None and want.spikes is not None:
        np.testing.assert_array_equal(got.spikes, want.spikes)
        assert got.spikes.dtype == want.spikes.dtype == np.uint8
    if got.membrane is not None and want.membrane is not None:
        assert_same_bits(got.membrane, want.membrane)
    for a, b in zip(got.state, want.state, strict=True):
        assert_same_bits(a, b)
    for p, q in zip(got.probes, want.probes, strict=True):
        assert_same_bits(p.membrane, q.membrane)
        np.testing.assert_array_equal(p.mask, q.mask)
        assert (p.spikes is None) == (q.spikes is None)
        if p.spikes is not None and q.spikes is not None:
            np.testing.assert_array_equal(p.spikes, q.spikes)


def check_plan(x: np.ndarray, plan: SomaPlan, kind: Values, seed: int, probe: bool) -> None:
    channels = x.shape[-1]
    params = f16(seed + 1, (len(plan.neurons), 9, channels), Values.NORMAL)
    params[:, Param.THRESHOLD] = f16(seed + 2, (channels,), kind)
    fresh: tuple[F16 | None, ...] = (None,) * len(plan.neurons)
    first = GOLDEN.soma(x, plan, params, fresh, probe)
    assert_same_result(FAST.soma(x, plan, params, fresh, probe), first)
    if first.finite:
        again = GOLDEN.soma(x, plan, params, first.state, probe)
        assert_same_result(FAST.soma(x, plan, params, first.state, probe), again)


@settings(max_examples=30, deadline=None)
@given(size=st.tuples(st.integers(1, 6), st.integers(1, 6)), kind=kinds, seed=seeds, data=st.data())
def test_fast_equals_golden(size: tuple[int, int], kind: Values, seed: int, data: st.DataObject) -> None:
    plan = data.draw(plans(*size))
    channels, steps = data.draw(st.sampled_from([1, 3, 10, 16, 48])), data.draw(st.integers(1, 4))
    x = f16(seed, (steps, 2, *size, channels), kind)
    check_plan(x, plan, kind, seed, data.draw(st.booleans()))


@settings(max_examples=12, deadline=None)
@given(size=st.tuples(st.integers(1, 6), st.integers(1, 6)), seed=seeds, data=st.data())
def test_spikes_from_memory(size: tuple[int, int], seed: int, data: st.DataObject) -> None:
    stage2 = data.draw(st.none() | neurons(st.booleans()))
    pool = data.draw(pools(*size, kind=PoolKind.MAX if stage2 is None else None))
    x = spikes(seed, (3, 2, *size, 10))
    forms = [SomaPlan(stage1=None, pool2=pool, stage2=stage2)]
    if stage2 is not None:
        forms.append(SomaPlan(stage1=stage2, pool1=pool))
    for plan in forms:
        check_plan(x, plan, Values.NORMAL, seed, probe=True)


@settings(max_examples=40, deadline=None)
@given(size=st.tuples(st.integers(1, 9), st.integers(1, 9)), ceil_mode=st.booleans(), seed=seeds, data=st.data())
def test_pooling_geometry_is_that_of_torch(
    size: tuple[int, int], ceil_mode: bool, seed: int, data: st.DataObject
) -> None:
    """Sums of integers are exact, so only the multiplication by the FP16 reciprocal rounds."""
    pool = data.draw(pools(*size, ceil_mode=ceil_mode))
    integrate = replace(PLAIN, fire=False)
    x = np.random.default_rng(seed).integers(-9, 10, (1, 2, *size, 3)).astype(np.float16)
    params = np.zeros((1, 9, 3), np.float16)
    params[0, Param.DECAY] = 1
    maps = torch.tensor(x[0].transpose(0, 3, 1, 2).astype(np.float64))
    shape = dict(  # noqa: C408
        kernel_size=(pool.kernel_h, pool.kernel_w),
        stride=(pool.stride_h, pool.stride_w),
        padding=(-pool.top, -pool.left),
        ceil_mode=ceil_mode,
    )
    functional = torch.nn.functional
    if pool.kind is PoolKind.MAX:
        want = functional.max_pool2d(maps, **shape)
    else:
        ones = torch.ones_like(maps)
        mean = functional.avg_pool2d(ones, **shape, count_include_pad=pool.include_pad)
        valid = functional.avg_pool2d(ones, **shape, divisor_override=1)
        reciprocal = (mean / valid).numpy().astype(np.float16)
        total = functional.avg_pool2d(maps, **shape, divisor_override=1).numpy().astype(np.float16)
        want = torch.tensor(total * reciprocal)
    got = GOLDEN.soma(x, SomaPlan(stage1=integrate, pool1=pool), params, (None,), False).membrane
    assert got is not None
    np.testing.assert_array_equal(got[0], want.numpy().transpose(0, 2, 3, 1))


@pytest.mark.parametrize("reset", Reset)
@pytest.mark.parametrize("compare", Compare)
def test_golden_follows_the_equations(reset: Reset, compare: Compare) -> None:
    """On eighths with decay 1/2 five steps stay inside eleven bits, so f32 and FP16 must agree exactly."""
    rng = np.random.default_rng(7)
    x = rng.integers(-16, 17, (5, 2, 3, 4, 6)) / 8
    params = np.zeros((1, 9, 6), np.float16)
    params[0, Param.DECAY] = 0.5
    params[0, Param.THRESHOLD] = rng.integers(1, 9, 6) / 8
    params[0, Param.RESET_VALUE] = rng.integers(-4, 3, 6) / 8
    params[0, Param.INITIAL] = rng.integers(-8, 9, 6) / 8
    params[0, Param.TH_L], params[0, Param.TH_R] = -0.25, 0.75
    plan = SomaPlan(stage1=replace(PLAIN, reset=reset, compare=compare))
    result = GOLDEN.soma(x.astype(np.float16), plan, params, (None,), True)
    assert result.finite
    rows = torch.tensor(params[0].astype(np.float32))
    threshold, v = rows[Param.THRESHOLD], rows[Param.INITIAL].expand(2, 3, 4, 6)
    for t, current in enumerate(torch.tensor(x, dtype=torch.float32)):
        m = rows[Param.DECAY] * v + current
        s = (m >= threshold if compare is Compare.GE else m > threshold).float()
        match reset:
            case Reset.HARD:
                v = m * (1 - s) + rows[Param.RESET_VALUE] * s
            case Reset.SOFT:
                v = m - threshold * s
            case Reset.NONE:
                v = m
        np.testing.assert_array_equal(result.probes[0].membrane[t], m.numpy())
        assert result.spikes is not None
        np.testing.assert_array_equal(result.spikes[t], s.numpy())
        mask = (m > -0.25) & (m < 0.75)
        np.testing.assert_array_equal(result.probes[0].mask[t], mask.numpy())
    np.testing.assert_array_equal(result.state[0], v.numpy())


def test_a_value_that_no_window_covers_does_not_count() -> None:
    """Five columns pooled by two leave the last one out; infinite values hidden by a maximum still count."""
    pool = Pool(
        kind=PoolKind.MAX,
        kernel_h=1,
        kernel_w=2,
        stride_h=1,
        stride_w=2,
        out_h=1,
        out_w=2,
        top=0,
        left=0,
        limit_h=1,
        limit_w=5,
        include_pad=True,
    )
    params = np.zeros((1, 9, 1), np.float16)
    plan = SomaPlan(stage1=PLAIN, pool1=pool)
    for column, finite in ((4, True), (1, False)):
        x = np.zeros((1, 1, 1, 5, 1), np.float16)
        x[..., column, :] = -np.inf
        for engines in (GOLDEN, FAST):
            assert engines.soma(x, plan, params, (None,), False).finite is finite


@settings(max_examples=30, deadline=None)
@given(shape=st.tuples(*[st.integers(1, 5)] * 3), kind=kinds, seed=seeds)
def test_compressed_membrane_round_trip(shape: tuple[int, ...], kind: Values, seed: int) -> None:
    membrane, mask = f16(seed, shape, kind), spikes(seed, shape)
    packed = compress(membrane, mask)
    assert packed.shape == (int(mask.sum()),)
    assert_same_bits(decompress(packed, mask), np.where(mask, membrane, np.float16(0)))
