"""Backward Engine in dense mode: exact on small integers, fast equals golden, products are rounded."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from runtime.engines import Window, fast, golden
from tests.runtime.engines.fp16_values import Values, assert_same_bits, f16, kinds, seeds

GOLDEN, FAST = golden(), fast()
POINT = Window(kernel_h=1, kernel_w=1, stride_h=1, stride_w=1, out_h=1, out_w=1)


@st.composite
def bands(draw: st.DrawFn) -> tuple[Window, int, int]:
    """A window, the first kernel row of a band, and the band's rows."""
    window = Window(
        kernel_h=draw(st.integers(1, 7)),
        kernel_w=draw(st.integers(1, 7)),
        stride_h=draw(st.integers(1, 3)),
        stride_w=draw(st.integers(1, 3)),
        out_h=draw(st.integers(1, 4)),
        out_w=draw(st.integers(1, 4)),
    )
    first = draw(st.integers(0, window.kernel_h - 1))
    return window, first, draw(st.integers(1, window.kernel_h - first))


@settings(max_examples=16, deadline=None)
@given(band=bands(), channels=st.integers(1, 16), cols=st.integers(1, 64), kind=kinds, seed=seeds)
def test_fast_dense_equals_golden(
    band: tuple[Window, int, int], channels: int, cols: int, kind: Values, seed: int
) -> None:
    window, first, rows = band
    height = (window.out_h - 1) * window.stride_h + rows + seed % 2
    width = (window.out_w - 1) * window.stride_w + window.kernel_w
    x = f16(seed, (3, height, width, channels), kind)
    weights = f16(seed + 1, (rows * window.kernel_w, channels, cols), Values.NORMAL)
    got = f16(seed + 2, (3, window.out_h, window.out_w, cols), kind)
    want = got.copy()
    for init in (False, True):
        FAST.accumulate_dense(x, weights, window, first, rows, got, init)
        GOLDEN.accumulate_dense(x, weights, window, first, rows, want, init)
        assert_same_bits(got, want)


@settings(max_examples=15, deadline=None)
@given(band=bands(), channels=st.integers(1, 4), seed=seeds)
def test_bands_of_the_golden_engine_sum_to_the_convolution(
    band: tuple[Window, int, int], channels: int, seed: int
) -> None:
    """Integers below 2048 are exact: |sum| <= 49 * 4 * 4."""
    window, cut, _ = band
    rng = np.random.default_rng(seed)
    height = (window.out_h - 1) * window.stride_h + window.kernel_h
    width = (window.out_w - 1) * window.stride_w + window.kernel_w
    x = rng.integers(-2, 3, (2, height, width, channels))
    weights = rng.integers(-2, 3, (5, channels, window.kernel_h, window.kernel_w))
    psum = np.full((2, window.out_h, window.out_w, 5), np.nan, np.float16)
    for first, rows in ((0, cut), (cut, window.kernel_h - cut)):
        if rows == 0:
            continue
        last = first + (window.out_h - 1) * window.stride_h + rows
        band_x = np.ascontiguousarray(x[:, first:last], np.float16)
        taps = weights[:, :, first : first + rows].transpose(2, 3, 1, 0).reshape(-1, channels, 5)
        init = first == 0
        GOLDEN.accumulate_dense(band_x, taps.astype(np.float16), window, first, rows, psum, init)
    want = torch.nn.functional.conv2d(
        torch.tensor(x.transpose(0, 3, 1, 2)).double(),
        torch.tensor(weights).double(),
        stride=(window.stride_h, window.stride_w),
    )
    np.testing.assert_array_equal(psum, want.numpy().transpose(0, 2, 3, 1))


def test_the_product_is_rounded_before_the_sum() -> None:
    """(1 + 2^-10)^2 rounds to 1 + 2^-9; a fused multiply-add would leave its 2^-20."""
    window = Window(kernel_h=1, kernel_w=2, stride_h=1, stride_w=1, out_h=1, out_w=1)
    near_one = 1 + 2.0**-10
    x = np.array([1 + 2.0**-9, near_one], np.float16).reshape(1, 1, 2, 1)
    weights = np.array([-1, near_one], np.float16).reshape(2, 1, 1).repeat(16, axis=2)
    for engines in (GOLDEN, FAST):
        psum = np.ones((1, 1, 1, 16), np.float16)
        engines.accumulate_dense(x, weights, window, 0, 1, psum, True)
        assert not psum.any()


def test_fully_connected_is_a_one_by_one_window() -> None:
    x = np.arange(10, dtype=np.float16).reshape(1, 1, 1, 10)
    weights = np.ones((1, 10, 3), np.float16)
    for engines in (GOLDEN, FAST):
        psum = np.full((1, 1, 1, 3), 100, np.float16)
        engines.accumulate_dense(x, weights, POINT, 0, 1, psum, False)
        assert psum.ravel().tolist() == [145, 145, 145]
