"""Forward Engine: the LUT convolution is a convolution, and fast equals golden bit for bit."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from runtime.engines import Window, fast, golden
from tests.runtime.engines.fp16_values import Values, assert_same_bits, f16, kinds, seeds, spikes

GOLDEN, FAST = golden(), fast()


@st.composite
def windows(draw: st.DrawFn) -> Window:
    size = st.integers(1, 5)
    return Window(
        kernel_h=draw(st.integers(1, 7)),
        kernel_w=draw(st.integers(1, 7)),
        stride_h=draw(st.integers(1, 3)),
        stride_w=draw(st.integers(1, 3)),
        out_h=draw(size),
        out_w=draw(size),
    )


def region(window: Window, margin: int) -> tuple[int, int]:
    """The smallest region that the window covers, and a margin that no window touches."""
    return (
        (window.out_h - 1) * window.stride_h + window.kernel_h + margin,
        (window.out_w - 1) * window.stride_w + window.kernel_w + margin,
    )


@settings(max_examples=25, deadline=None)
@given(window=windows(), channels=st.integers(1, 6), array_rows=st.sampled_from([4, 16]), seed=seeds)
def test_golden_convolution_is_exact_on_dyadic_weights(
    window: Window, channels: int, array_rows: int, seed: int
) -> None:
    """Quarters below 512 are FP16 numbers and no sum of 6 * 49 weights in [-1, 1] leaves them."""
    rng = np.random.default_rng(seed)
    engines, cols, pieces = golden(array_rows=array_rows), 3, window.pieces
    weights = rng.integers(-4, 5, (cols, channels, window.kernel_h, window.kernel_w)) / 4
    x = spikes(seed, (2, *region(window, 0), channels))
    taps = np.zeros((channels, pieces * 9, cols))
    taps[:, : window.taps] = weights.reshape(cols, channels, window.taps).transpose(1, 2, 0)
    all_rows = taps.reshape(channels * pieces, 9, cols).astype(np.float16)
    psum = np.full((2, window.out_h, window.out_w, cols), np.nan, np.float16)
    for first in range(0, len(all_rows), array_rows):
        rows = all_rows[first : first + array_rows]
        patterns = engines.indices(x, window, first, len(rows))
        engines.accumulate(engines.program_conv(rows), patterns, psum, first == 0)
    want = torch.nn.functional.conv2d(
        torch.tensor(x.transpose(0, 3, 1, 2), dtype=torch.float64),
        torch.tensor(weights),
        stride=(window.stride_h, window.stride_w),
    )
    np.testing.assert_array_equal(psum, want.numpy().transpose(0, 2, 3, 1))


@settings(max_examples=25, deadline=None)
@given(window=windows(), channels=st.integers(1, 70), margin=st.integers(0, 2), seed=seeds, data=st.data())
def test_fast_patterns_equal_golden(window: Window, channels: int, margin: int, seed: int, data: st.DataObject) -> None:
    total = channels * window.pieces
    first = data.draw(st.integers(0, total - 1))
    rows = data.draw(st.integers(1, min(64, total - first)))
    x = spikes(seed, (3, *region(window, margin), channels))
    got = FAST.indices(x, window, first, rows)
    np.testing.assert_array_equal(got, GOLDEN.indices(x, window, first, rows))
    assert got.dtype == np.uint16


@settings(max_examples=20, deadline=None)
@given(rows=st.integers(1, 64), cols=st.integers(1, 16), kind=kinds, seed=seeds)
def test_fast_programs_the_same_luts(rows: int, cols: int, kind: Values, seed: int) -> None:
    weights = f16(seed, (rows, 9, cols), kind)
    weights[0, 0] = -0.0
    assert_same_bits(FAST.program_conv(weights), GOLDEN.program_conv(weights))


def check_accumulate(rows: int, cols: int, pixels: tuple[int, int, int], kind: Values, seed: int) -> None:
    lut = GOLDEN.program_conv(f16(seed, (rows, 9, cols), kind))
    patterns = np.random.default_rng(seed).integers(0, 512, (*pixels, rows)).astype(np.uint16)
    got = f16(seed + 1, (*pixels, cols), kind)
    want = got.copy()
    for init in (False, True):
        FAST.accumulate(lut, patterns, got, init)
        GOLDEN.accumulate(lut, patterns, want, init)
        assert_same_bits(got, want)


@settings(max_examples=16, deadline=None)
@given(
    rows=st.integers(1, 64),
    cols=st.integers(1, 20),
    pixels=st.sampled_from([(1, 1, 1), (2, 3, 5), (5, 8, 8), (3, 11, 13)]),  # adding and expanding kernels
    kind=kinds,
    seed=seeds,
)
def test_fast_accumulates_the_same_bits(
    rows: int, cols: int, pixels: tuple[int, int, int], kind: Values, seed: int
) -> None:
    check_accumulate(rows, cols, pixels, kind, seed)


@pytest.mark.slow
@pytest.mark.parametrize("rows", range(1, 65))
def test_every_number_of_rows(rows: int) -> None:
    for pixels in ((1, 3, 3), (5, 8, 8)):
        check_accumulate(rows, 16, pixels, Values.TIES, rows)


def test_a_tree_is_not_a_running_sum() -> None:
    """2048 + 1 rounds back to 2048; the tree adds the two ones first."""
    weights = np.zeros((4, 9, 1), np.float16)
    weights[:, 0, 0] = [2048, 0, 1, 1]
    psum = np.zeros((1, 1, 1, 1), np.float16)
    patterns = np.ones((1, 1, 1, 4), np.uint16)
    for engines in (GOLDEN, FAST):
        engines.accumulate(engines.program_conv(weights), patterns, psum, True)
        assert psum.item() == 2050


@settings(max_examples=20, deadline=None)
@given(
    array_rows=st.sampled_from([4, 64]),
    groups=st.integers(1, 3),
    batch=st.integers(1, 6),
    cols=st.integers(1, 20),
    kind=kinds,
    seed=seeds,
)
def test_fast_fc_equals_golden(array_rows: int, groups: int, batch: int, cols: int, kind: Values, seed: int) -> None:
    slow, quick = golden(array_rows=array_rows), fast(array_rows=array_rows)
    weights = f16(seed, (groups, array_rows, 3, cols), kind)
    lut = quick.program_fc(weights)
    assert_same_bits(lut, slow.program_fc(weights))
    x = spikes(seed, (batch, groups * array_rows * 3))
    got = f16(seed + 1, (batch, cols), kind)
    want = got.copy()
    for init in (False, True):
        quick.accumulate_fc(lut, x, got, init)
        slow.accumulate_fc(lut, x, want, init)
        assert_same_bits(got, want)


def test_fc_of_negative_zeros_is_positive_zero() -> None:
    lut = np.full((1, 64, 3, 2), -0.0, np.float16)
    for engines in (GOLDEN, FAST):
        psum = np.full((1, 2), -0.0, np.float16)
        engines.accumulate_fc(lut, np.ones((1, 192), np.uint8), psum, True)
        assert psum.view(np.uint16).tolist() == [[0, 0]]


@settings(max_examples=10, deadline=None)
@given(seed=seeds)
def test_golden_fc_is_exact_on_small_integers(seed: int) -> None:
    rng = np.random.default_rng(seed)
    weights = rng.integers(-3, 4, (2, 64, 3, 5))
    x = spikes(seed, (4, 384))
    psum = np.zeros((4, 5), np.float16)
    GOLDEN.accumulate_fc(GOLDEN.program_fc(weights.astype(np.float16)), x, psum, True)
    np.testing.assert_array_equal(psum, x.astype(np.int64) @ weights.reshape(384, 5))
