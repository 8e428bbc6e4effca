"""Backward Engine's input gradients: the finders, exactness on small integers, fast equals golden."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from runtime.engines import F16, U8, GradWindow, fast, golden
from runtime.engines.golden_gradient import accumulate_gradient, conv_ids, output_ids
from tests.runtime.engines.fp16_values import Values, assert_same_bits, f16, kinds, seeds

GOLDEN, FAST = golden(), fast()
ONE_TO_ONE = GradWindow(kernel_h=1, kernel_w=1, stride_h=1, stride_w=1, out_h=1, out_w=1, top=0, left=0)

densities = st.sampled_from([0.0, 0.1, 0.5, 0.9, 1.0])


@st.composite
def windows(draw: st.DrawFn) -> GradWindow:
    """Any window, those that miss the region included."""
    kernel_h, kernel_w = draw(st.integers(1, 7)), draw(st.integers(1, 7))
    return GradWindow(
        kernel_h=kernel_h,
        kernel_w=kernel_w,
        stride_h=draw(st.integers(1, 3)),
        stride_w=draw(st.integers(1, 3)),
        out_h=draw(st.integers(1, 6)),
        out_w=draw(st.integers(1, 6)),
        top=draw(st.integers(-4, kernel_h + 2)),
        left=draw(st.integers(-4, kernel_w + 2)),
    )


def mask(seed: int, shape: tuple[int, ...], density: float) -> U8:
    return (np.random.default_rng(seed).random(shape) < density).astype(np.uint8)


def thinned(values: F16, seed: int, density: float) -> F16:
    """Values with zeros of both signs."""
    return np.where(mask(seed, values.shape, density), values, np.copysign(np.float16(0), values))


@settings(max_examples=40, deadline=None)
@given(shape=st.tuples(*[st.integers(1, 6)] * 3), buffers=st.integers(1, 5), density=densities, seed=seeds)
def test_outputs_go_to_the_buffers_in_turn(
    shape: tuple[int, int, int], buffers: int, density: float, seed: int
) -> None:
    wanted = mask(seed, shape, density)
    want: list[list[list[int]]] = [[] for _ in range(buffers)]
    for b in range(shape[0]):
        turn = itertools.cycle(range(buffers))
        for y, x in np.ndindex(shape[1:]):
            if wanted[b, y, x]:
                want[next(turn)].append([b, y, x])
    got = output_ids(wanted, buffers)
    assert [ids.tolist() for ids in got] == want
    for b in range(shape[0]):
        loads = [int((ids[:, 0] == b).sum()) for ids in got]
        assert max(loads) - min(loads) <= 1


@settings(max_examples=40, deadline=None)
@given(window=windows(), size=st.tuples(*[st.integers(1, 6)] * 2), density=densities, seed=seeds)
def test_every_valid_pair_is_found_once_in_raster_order(
    window: GradWindow, size: tuple[int, int], density: float, seed: int
) -> None:
    x_mask = mask(seed, (2, *size, 3), density)
    ids = np.argwhere(mask(seed + 1, (2, window.out_h, window.out_w), 0.7))
    found = conv_ids(ids, x_mask, window)
    for k, (b, oy, ox) in enumerate(ids):
        for r in range(3):
            got = [
                (found.rows[k, conv], found.columns[k, conv], found.weight_ids[conv])
                for conv in np.flatnonzero(found.tags[k, :, r])
            ]
            want = []
            for iy, ix in np.ndindex(size):
                ky, kx = oy + window.top - iy * window.stride_h, ox + window.left - ix * window.stride_w
                if x_mask[b, iy, ix, r] and 0 <= ky < window.kernel_h and 0 <= kx < window.kernel_w:
                    want.append((iy, ix, ky * window.kernel_w + kx))
            assert got == want


@settings(max_examples=20, deadline=None)
@given(window=windows(), density=densities, kind=kinds, seed=seeds)
def test_the_number_of_output_buffers_changes_nothing(
    window: GradWindow, density: float, kind: Values, seed: int
) -> None:
    x, weights = f16(seed, (2, 4, 5, 3), kind), f16(seed + 1, (window.taps, 2, 3), kind)
    wanted = mask(seed, (2, window.out_h, window.out_w, 2), density)
    results = [f16(seed + 2, wanted.shape, Values.NORMAL) for _ in range(3)]
    with np.errstate(all="ignore"):
        for buffers, psum in zip((1, 4, 7), results, strict=True):
            accumulate_gradient(x, None, weights, wanted, window, psum, False, 16, buffers)
    assert_same_bits(results[1], results[0])
    assert_same_bits(results[2], results[0])


@st.composite
def tiles(draw: st.DrawFn, size: int, padded: int, kernel: int, stride: int) -> tuple[int, int, int, int, int]:
    """First output and outputs of a tile, first row and rows of a region that feeds it, offset between the two."""
    pad, last = (padded - size) // 2, (padded - kernel) // stride
    start = draw(st.integers(0, size - 1))
    stop = draw(st.integers(start + 1, size))
    first = draw(st.integers(0, min(last, max(0, -(-(start + pad - kernel + 1) // stride)))))
    end = draw(st.integers(max(first, min(last, (stop - 1 + pad) // stride)), last))
    return start, stop - start, first, end + 1 - first, start + pad - stride * first


@settings(max_examples=40, deadline=None)
@given(
    kernel=st.tuples(*[st.integers(1, 7)] * 2),
    stride=st.tuples(*[st.integers(1, 3)] * 2),
    size=st.tuples(*[st.integers(4, 9)] * 2),
    density=densities,
    seed=seeds,
    data=st.data(),
)
def test_golden_tiles_are_the_gradient_of_the_convolution(
    kernel: tuple[int, int],
    stride: tuple[int, int],
    size: tuple[int, int],
    density: float,
    seed: int,
    data: st.DataObject,
) -> None:
    """Integers below 2048 are exact: |sum| <= 7 * 7 * 2 * 2 * 8."""
    rng = np.random.default_rng(seed)
    pad = kernel[0] // 2, kernel[1] // 2
    inputs = torch.zeros(2, 3, *size, dtype=torch.float64, requires_grad=True)
    weights = torch.tensor(rng.integers(-2, 3, (8, 3, *kernel)), dtype=torch.float64)
    outputs = torch.nn.functional.conv2d(inputs, weights, stride=stride, padding=pad)
    g = rng.integers(-2, 3, tuple(outputs.shape))
    outputs.backward(torch.tensor(g, dtype=torch.float64))
    assert inputs.grad is not None
    y, out_h, row, rows, top = data.draw(tiles(size[0], size[0] + 2 * pad[0], kernel[0], stride[0]))
    x, out_w, column, columns, left = data.draw(tiles(size[1], size[1] + 2 * pad[1], kernel[1], stride[1]))
    window = GradWindow(
        kernel_h=kernel[0],
        kernel_w=kernel[1],
        stride_h=stride[0],
        stride_w=stride[1],
        out_h=out_h,
        out_w=out_w,
        top=top,
        left=left,
    )
    region = g.transpose(0, 2, 3, 1)[:, row : row + rows, column : column + columns].astype(np.float16)
    taps = weights.numpy().transpose(2, 3, 1, 0).reshape(-1, 3, 8).astype(np.float16)
    wanted = mask(seed, (2, out_h, out_w, 3), density)
    psum = np.full(wanted.shape, np.nan, np.float16)
    for first, init in ((0, True), (4, False)):
        block = np.ascontiguousarray(region[..., first : first + 4])
        block_weights = np.ascontiguousarray(taps[..., first : first + 4])
        GOLDEN.accumulate_gradient(block, None, block_weights, wanted, window, psum, init)
    want = inputs.grad.numpy().transpose(0, 2, 3, 1)[:, y : y + out_h, x : x + out_w]
    np.testing.assert_array_equal(psum, want * wanted)


@settings(max_examples=60, deadline=None)
@given(
    window=windows(),
    size=st.tuples(*[st.integers(1, 6)] * 2),
    rows=st.integers(1, 16),
    columns=st.integers(1, 40),
    density=densities,
    out_density=st.none() | densities,
    kind=kinds,
    seed=seeds,
)
def test_fast_gradient_equals_golden(
    window: GradWindow,
    size: tuple[int, int],
    rows: int,
    columns: int,
    density: float,
    out_density: float | None,
    kind: Values,
    seed: int,
) -> None:
    x = thinned(f16(seed, (2, *size, rows), kind), seed, density)
    x_mask = (x != 0).astype(np.uint8) if seed % 2 else None
    weights = f16(seed + 1, (window.taps, columns, rows), Values.NORMAL if seed % 3 else kind)
    got = f16(seed + 2, (2, window.out_h, window.out_w, columns), kind)
    wanted = None if out_density is None else mask(seed + 3, got.shape, out_density)
    want = got.copy()
    for init in (False, True):
        FAST.accumulate_gradient(x, x_mask, weights, wanted, window, got, init)
        GOLDEN.accumulate_gradient(x, x_mask, weights, wanted, window, want, init)
        assert_same_bits(got, want)


def test_an_engine_of_32_rows() -> None:
    window = GradWindow(kernel_h=3, kernel_w=3, stride_h=2, stride_w=1, out_h=5, out_w=4, top=1, left=1)
    x, weights = f16(0, (3, 3, 4, 29), Values.TIES), f16(1, (9, 20, 29), Values.NORMAL)
    got = f16(2, (3, 5, 4, 20), Values.TIES)
    want = got.copy()
    fast(dense_rows=32).accumulate_gradient(x, None, weights, None, window, got, False)
    golden(dense_rows=32).accumulate_gradient(x, None, weights, None, window, want, False)
    assert_same_bits(got, want)


@pytest.mark.parametrize(("value", "weight", "result"), [(np.nan, 1, np.nan), (0, np.inf, 0), (-0.0, np.nan, 0)])
def test_only_zeros_are_skipped(value: float, weight: float, result: float) -> None:
    x, weights = np.full((1, 1, 1, 1), value, np.float16), np.full((1, 1, 1), weight, np.float16)
    for engines in (GOLDEN, FAST):
        psum = np.ones((1, 1, 1, 1), np.float16)
        engines.accumulate_gradient(x, None, weights, None, ONE_TO_ONE, psum, True)
        np.testing.assert_array_equal(psum.ravel(), [result])


def test_what_no_spike_gradient_asks_for_stays() -> None:
    x, weights = np.ones((1, 1, 1, 1), np.float16), np.ones((1, 3, 1), np.float16)
    wanted = np.array([0, 1, 0], np.uint8).reshape(1, 1, 1, 3)
    for engines in (GOLDEN, FAST):
        psum = np.array([-0.0, 7, np.nan], np.float16).reshape(1, 1, 1, 3)
        engines.accumulate_gradient(x, None, weights, wanted, ONE_TO_ONE, psum, False)
        assert_same_bits(psum.ravel(), np.array([-0.0, 8, np.nan], np.float16))
        engines.accumulate_gradient(x, None, weights, wanted, ONE_TO_ONE, psum, True)
        assert_same_bits(psum.ravel(), np.array([0, 1, 0], np.float16))


@settings(max_examples=40, deadline=None)
@given(
    batch=st.integers(1, 5),
    positions=st.integers(1, 4),
    columns=st.integers(1, 40),
    rows=st.integers(1, 16),
    kind=kinds,
    seed=seeds,
)
def test_fast_fc_gradient_equals_golden(
    batch: int, positions: int, columns: int, rows: int, kind: Values, seed: int
) -> None:
    x, weights = f16(seed, (batch, rows), kind), f16(seed + 1, (positions, columns, rows), kind)
    weights[0, 0] = 0
    got = f16(seed + 2, (batch, positions, columns), kind)
    got[0, 0, 0] = -0.0
    want = got.copy()
    for init in (False, True):
        FAST.accumulate_fc_gradient(x, weights, got, init)
        GOLDEN.accumulate_fc_gradient(x, weights, want, init)
        assert_same_bits(got, want)


def test_products_of_negative_zero_are_positive_zero_to_a_pe() -> None:
    x, weights = np.full((1, 16), -1, np.float16), np.zeros((1, 2, 16), np.float16)
    for engines in (GOLDEN, FAST):
        for init in (False, True):
            psum = np.full((1, 1, 2), -0.0, np.float16)
            engines.accumulate_fc_gradient(x, weights, psum, init)
            assert psum.view(np.uint16).ravel().tolist() == [0, 0]


def test_golden_fc_gradient_is_a_matrix_product() -> None:
    """Integers below 2048 are exact: |sum| <= 16 * 9."""
    rng = np.random.default_rng(0)
    x, weights = rng.integers(-3, 4, (4, 16)), rng.integers(-3, 4, (5, 6, 16))
    psum = np.zeros((4, 5, 6), np.float16)
    GOLDEN.accumulate_fc_gradient(x.astype(np.float16), weights.astype(np.float16), psum, True)
    np.testing.assert_array_equal(psum, np.einsum("br,pcr->bpc", x, weights))
