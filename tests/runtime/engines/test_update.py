"""Weight Update Engine: exact on small integers, fast equals golden, the tree spans the time steps."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from runtime.engines import U8, Window, fast, golden
from runtime.engines.golden_update import program_update
from tests.runtime.engines.fp16_values import Values, assert_same_bits, f16, kinds, seeds, spikes

GOLDEN, FAST = golden(), fast()
STEPS = [3, 10]  # each is a kernel of its own; the slow tests take all


@st.composite
def windows(draw: st.DrawFn) -> Window:
    return Window(
        kernel_h=draw(st.integers(1, 7)),
        kernel_w=draw(st.integers(1, 7)),
        stride_h=draw(st.integers(1, 3)),
        stride_w=draw(st.integers(1, 3)),
        out_h=draw(st.integers(1, 4)),
        out_w=draw(st.sampled_from([1, 3, 7, 8, 9, 17])),
    )


def region(window: Window, margin: int = 0) -> tuple[int, int]:
    """The smallest region that the window covers, and a margin that no window touches."""
    return (
        (window.out_h - 1) * window.stride_h + window.kernel_h + margin,
        (window.out_w - 1) * window.stride_w + window.kernel_w + margin,
    )


def conv_weight_gradient(x: np.ndarray, g: np.ndarray, window: Window) -> np.ndarray:
    """Torch's, over all maps. Shapes: x (B, Hin, Win, C), g (B, out_h, out_w, cols) -> (taps, C, cols)."""
    shape = (g.shape[-1], x.shape[-1], window.kernel_h, window.kernel_w)
    weights = torch.zeros(shape, dtype=torch.float64, requires_grad=True)
    maps = torch.tensor(x.transpose(0, 3, 1, 2).astype(np.float64))
    outputs = torch.nn.functional.conv2d(maps, weights, stride=(window.stride_h, window.stride_w))
    outputs.backward(torch.tensor(g.transpose(0, 3, 1, 2).astype(np.float64)))
    assert weights.grad is not None
    return weights.grad.numpy().transpose(2, 3, 1, 0).reshape(window.taps, x.shape[-1], g.shape[-1])


@settings(max_examples=25, deadline=None)
@given(window=windows(), steps=st.integers(1, 10), samples=st.integers(1, 3), seed=seeds)
def test_golden_update_is_the_gradient_of_the_convolution(window: Window, steps: int, samples: int, seed: int) -> None:
    """Integers below 2048 are exact: |sum| <= 10 * 3 * 4 * 17."""
    rng = np.random.default_rng(seed)
    x = spikes(seed, (steps * samples, *region(window), 3))
    g = rng.integers(-1, 2, (steps, samples, window.out_h, window.out_w, 2))
    psum = np.full((window.taps, 3, 2), np.nan, np.float16)
    GOLDEN.accumulate_update(g.astype(np.float16), GOLDEN.update_patterns(x, window), psum, True)
    np.testing.assert_array_equal(psum, conv_weight_gradient(x, g.reshape(-1, *g.shape[2:]), window))


@settings(max_examples=25, deadline=None)
@given(window=windows(), channels=st.integers(1, 70), margin=st.integers(0, 2), seed=seeds)
def test_fast_patterns_equal_golden(window: Window, channels: int, margin: int, seed: int) -> None:
    x = spikes(seed, (3, *region(window, margin), channels))
    got = FAST.update_patterns(x, window)
    np.testing.assert_array_equal(got, GOLDEN.update_patterns(x, window))
    assert got.dtype == np.uint8


def patterns(seed: int, shape: tuple[int, ...], out_w: int) -> U8:
    """Random spikes of windows that exist."""
    values = np.random.default_rng(seed).integers(0, 256, shape).astype(np.uint8)
    values[:, :, -1] &= (1 << (out_w - 1) % 8 + 1) - 1
    return values


def check_update(steps: int, samples: int, size: tuple[int, int], kernel: tuple[int, int, int], seed: int) -> None:
    """One call on random values; `kernel` is taps, channels, columns."""
    kind = list(Values)[seed % len(Values)]
    taps, channels, columns = kernel
    g = f16(seed, (steps, samples, *size, columns), kind)
    pattern = patterns(seed, (steps * samples, size[0], -(-size[1] // 8), taps, channels), size[1])
    got = f16(seed + 1, kernel, kind)
    want = got.copy()
    for init in (False, True):
        FAST.accumulate_update(g, pattern, got, init)
        GOLDEN.accumulate_update(g, pattern, want, init)
        assert_same_bits(got, want)


@settings(max_examples=40, deadline=None)
@given(
    steps=st.sampled_from(STEPS),
    samples=st.integers(1, 5),
    size=st.tuples(st.integers(1, 3), st.integers(1, 17)),
    kernel=st.sampled_from([(1, 1), (4, 30), (9, 40), (1, 130), (25, 3)]),  # adding and expanding kernels
    columns=st.integers(1, 40),
    seed=seeds,
)
def test_fast_update_equals_golden(
    steps: int, samples: int, size: tuple[int, int], kernel: tuple[int, int], columns: int, seed: int
) -> None:
    check_update(steps, samples, size, (*kernel, columns), seed)


@pytest.mark.slow
@pytest.mark.parametrize("steps", range(1, 11))
@pytest.mark.parametrize("kind", range(len(Values)))
def test_every_number_of_steps(steps: int, kind: int) -> None:
    check_update(steps, 3, (2, 13), (9, 20, 128), kind)
    check_update(steps, 3, (2, 13), (1, 3, 17), kind)


def test_sub_lut_entries_are_subset_sums() -> None:
    lut = program_update(np.array([1, 2, 4, 8, 16, 32, 64, 128], np.float16).reshape(1, 8, 1))
    np.testing.assert_array_equal(lut[0, 0, :, 0], np.arange(16))
    np.testing.assert_array_equal(lut[0, 1, :, 0], np.arange(0, 256, 16))


def test_time_steps_are_a_tree_and_windows_a_running_sum() -> None:
    """2048 + 1 rounds back to 2048, so the order shows: the tree adds the ones of two steps first."""
    ones = np.ones((4, 1, 1, 1, 1), np.uint8)
    for engines in (GOLDEN, FAST):
        psum = np.zeros((1, 1, 1), np.float16)
        engines.accumulate_update(np.array([2048, 0, 1, 1], np.float16).reshape(4, 1, 1, 1, 1), ones, psum, True)
        assert psum.item() == 2050
        engines.accumulate_update(np.array([2048, 1, 1, 0], np.float16).reshape(1, 4, 1, 1, 1), ones, psum, True)
        assert psum.item() == 2048


@settings(max_examples=40, deadline=None)
@given(
    shape=st.sampled_from([(3, 10), (4, 4)]),  # time steps of rows: trees with and without absentees
    samples=st.integers(1, 5),
    channels=st.integers(1, 70),
    columns=st.integers(1, 40),
    kind=kinds,
    seed=seeds,
)
def test_fast_fc_update_equals_golden(
    shape: tuple[int, int], samples: int, channels: int, columns: int, kind: Values, seed: int
) -> None:
    steps, rows = shape
    g = f16(seed, (steps, samples, columns), kind)
    g[..., 0] = -0.0
    x = spikes(seed, (steps, samples, channels))
    got = f16(seed + 1, (channels, columns), kind)
    got[:, 0] = -0.0
    want = got.copy()
    for init in (False, True):
        fast(update_rows=rows).accumulate_update_fc(g, x, got, init)
        golden(update_rows=rows).accumulate_update_fc(g, x, want, init)
        assert_same_bits(got, want)


def test_golden_fc_update_is_a_matrix_product() -> None:
    """Integers below 2048 are exact: |sum| <= 10 * 5 * 4."""
    g = np.random.default_rng(0).integers(-4, 5, (10, 5, 6))
    x = spikes(0, (10, 5, 7))
    psum = np.full((7, 6), np.nan, np.float16)
    GOLDEN.accumulate_update_fc(g.astype(np.float16), x, psum, True)
    np.testing.assert_array_equal(psum, np.einsum("tnc,tnk->ck", x.astype(np.int64), g))
