"""Backward Engine's weight gradients on real inputs: exact on small integers, fast equals golden."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from runtime.engines import Window, fast, golden
from tests.runtime.engines.fp16_values import Values, assert_same_bits, f16, kinds, seeds
from tests.runtime.engines.test_update import conv_weight_gradient, region, windows

GOLDEN, FAST = golden(), fast()
POINT = Window(kernel_h=1, kernel_w=1, stride_h=1, stride_w=1, out_h=1, out_w=1)


@settings(max_examples=25, deadline=None)
@given(window=windows(), steps=st.integers(1, 4), held=st.booleans(), seed=seeds)
def test_golden_outer_is_the_gradient_of_the_convolution(window: Window, steps: int, held: bool, seed: int) -> None:
    """Integers below 2048 are exact: |sum| <= 4 * 2 * 4 * 17 * 2."""
    rng = np.random.default_rng(seed)
    x = rng.integers(-2, 3, (2 if held else 2 * steps, *region(window, 1), 3))
    g = rng.integers(-1, 2, (2 * steps, window.out_h, window.out_w, 4))
    psum = np.full((window.taps, 3, 4), np.nan, np.float16)
    GOLDEN.accumulate_outer(x.astype(np.float16), g.astype(np.float16), window, psum, True)
    height, width = region(window)
    every = np.tile(x, (steps, 1, 1, 1)) if held else x
    np.testing.assert_array_equal(psum, conv_weight_gradient(every[:, :height, :width], g, window))


@settings(max_examples=40, deadline=None)
@given(
    window=windows(),
    rows=st.integers(1, 16),
    columns=st.integers(1, 40),
    held=st.booleans(),
    density=st.sampled_from([0.0, 0.3, 1.0]),
    kind=kinds,
    seed=seeds,
)
def test_fast_outer_equals_golden(
    window: Window, rows: int, columns: int, held: bool, density: float, kind: Values, seed: int
) -> None:
    x = f16(seed, (2 if held else 6, *region(window, seed % 2), rows), kind)
    g = f16(seed + 1, (6, window.out_h, window.out_w, columns), kind)
    g[np.random.default_rng(seed).random(g.shape) >= density] = 0
    got = f16(seed + 2, (window.taps, rows, columns), kind)
    want = got.copy()
    for init in (False, True):
        FAST.accumulate_outer(x, g, window, got, init)
        GOLDEN.accumulate_outer(x, g, window, want, init)
        assert_same_bits(got, want)


def test_each_map_is_summed_by_itself() -> None:
    """2048 + 1 rounds back to 2048; the two ones of the second map meet first."""
    window = Window(kernel_h=1, kernel_w=1, stride_h=1, stride_w=1, out_h=1, out_w=2)
    g = np.array([2048, 0, 1, 1], np.float16).reshape(2, 1, 2, 1)
    for engines in (GOLDEN, FAST):
        psum = np.zeros((1, 1, 1), np.float16)
        engines.accumulate_outer(np.ones((2, 1, 2, 1), np.float16), g, window, psum, True)
        assert psum.item() == 2050


def test_a_gradient_of_zero_meets_no_infinite_input() -> None:
    for engines in (GOLDEN, FAST):
        psum = np.full((1, 1, 2), 5, np.float16)
        x, g = np.full((1, 1, 1, 1), np.inf, np.float16), np.array([-0.0, np.nan], np.float16)
        engines.accumulate_outer(x, g.reshape(1, 1, 1, 2), POINT, psum, False)
        np.testing.assert_array_equal(psum.ravel(), [5, np.nan])
