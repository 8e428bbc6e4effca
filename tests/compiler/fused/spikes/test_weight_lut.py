"""The kernels of weight gradients on small layers, for this CPU and for one of eight lanes, against sums by NumPy."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from compiler.fused.spikes.forward_lut import lookup_lanes
from compiler.fused.spikes.geometry import BITS, Geometry
from compiler.fused.spikes.planes import pixel_pitch, pixel_word_shape, plane_rows, positions, word_pixels
from compiler.fused.spikes.weight_lut import (
    CHUNK,
    TASKS,
    WeightSizes,
    pattern_taps,
    weight_lut_kernel,
    weight_sum_kernel,
)
from compiler.tvm_setup import host_target, tvm

Floats = npt.NDArray[np.float32]
Spikes = npt.NDArray[np.bool_]  # (images, height * width, groups, channels of a group)
AVX2 = tvm.target.Target({"kind": "llvm", "mcpu": "x86-64-v3"})
TARGETS = {"here": host_target(), "avx2": AVX2}
LAYER = Geometry(
    images=2, height=6, width=7, channels=37, out_channels=11, kernel=(3, 3), stride=(2, 1), padding=(1, 1)
)
LAYERS = {
    "stride": LAYER,
    "whole vectors": replace(LAYER, channels=64, out_channels=16, stride=(1, 1)),
    "groups": replace(LAYER, channels=6, out_channels=3 * 17, groups=3, stride=(1, 2)),
    "several maps a chunk": replace(LAYER, images=50, height=2, width=3, kernel=(1, 1), padding=(0, 0)),
    "parts of several chunks of a map": replace(
        LAYER, images=15, height=19, width=CHUNK // 4 + 1, channels=3, out_channels=33, stride=(1, 1)
    ),
    "a line of several chunks": Geometry.of_linear(4 * CHUNK + 1, 40, 5),
}


def lanes_of(target: tvm.target.Target) -> int:
    lanes = lookup_lanes(target)
    if not lanes or (target is AVX2 and not lookup_lanes(host_target())):
        pytest.skip("the processor has no look-ups in registers")
    return lanes


@functools.cache
def compiled(target: tvm.target.Target, *, parallel: bool = False) -> tuple[Callable[..., None], Callable[..., None]]:
    """The look-ups, and the sums of their parts."""
    lanes = lanes_of(target)
    kernels = weight_lut_kernel(lanes, parallel=parallel), weight_sum_kernel(lanes, parallel=parallel)
    look_up, add = (tvm.compile(kernel, target=target) for kernel in kernels)
    return look_up["weight_lut"], add["weight_sum"]


def pixel_words_of(geometry: Geometry, spikes: Spikes, taps: int) -> npt.NDArray[np.int32]:
    """The pixel words of spikes, by NumPy."""
    shape, pixels = pixel_word_shape(geometry, taps), word_pixels(taps)
    bits = np.zeros((*spikes.shape[:3], geometry.words_of_group * BITS), bool)
    bits[..., : geometry.group_channels] = spikes
    places = positions(geometry, pixel_pitch(geometry, taps), shape[3] * pixels)
    seen = np.where(places[..., None] < 0, False, bits.reshape(*spikes.shape[:2], -1)[:, places])
    weights = (1 << np.arange(pixels, dtype=np.uint32))[:, None]
    words = (seen.reshape(geometry.images, -1, shape[3], pixels, shape[4]) * weights).sum(3, dtype=np.uint32)
    result: npt.NDArray[np.int32] = words.view(np.int32).reshape(shape)
    return result


def reference(geometry: Geometry, spikes: Spikes, grad: Floats) -> Floats:
    """In f64 by a loop over taps; grad (images, OH, OW, O)."""
    (height, width), padding = (geometry.height, geometry.width), geometry.padding
    maps = spikes.reshape(geometry.images, height, width, geometry.groups, -1).astype(np.float64)
    maps = np.pad(maps, ((0, 0), *((p, p) for p in padding), (0, 0), (0, 0)))
    split = grad.reshape(*grad.shape[:3], geometry.groups, -1).astype(np.float64)
    result = np.empty((*split.shape[3:], *geometry.kernel, geometry.group_channels))
    (sy, sx), (rows, columns) = geometry.stride, (geometry.out_height, geometry.out_width)
    for ky, kx in np.ndindex(geometry.kernel):
        seen = maps[:, ky : ky + sy * rows : sy, kx : kx + sx * columns : sx][:, :rows, :columns]
        result[:, :, ky, kx] = np.einsum("nyxgo,nyxgc->goc", split, seen)
    return result.reshape(-1, *result.shape[2:]).astype(np.float32)


def run(geometry: Geometry, target: tvm.target.Target, spikes: Spikes, grad: Floats, *, parallel: bool) -> Floats:
    lanes = lanes_of(target)
    sizes = WeightSizes.of(geometry, lanes)
    rows = geometry.out_channels * geometry.kernel[0] * geometry.kernel[1]
    sums = np.full((sizes.parts, rows, sizes.vectors * lanes), np.nan, np.float32)
    result = np.full((rows, geometry.group_channels), np.nan, np.float32)
    tables = np.full(sizes.table_memory(lanes), np.nan, np.float32)
    words = pixel_words_of(geometry, spikes, pattern_taps(lanes))
    look_up, add = compiled(target, parallel=parallel)
    look_up(words.reshape(-1), grad.reshape(-1), sums.reshape(-1), tables, *sizes.numbers(), 1.0)
    add(sums, result)
    return result.reshape(geometry.out_channels, *geometry.kernel, -1)


def inputs(geometry: Geometry, seed: int) -> tuple[Spikes, Floats]:
    """Spikes, and gradients whose sums are exact."""
    random = np.random.default_rng(seed)
    shape = (geometry.images, geometry.height * geometry.width, geometry.groups, geometry.group_channels)
    results = (geometry.images, geometry.out_height, geometry.out_width, geometry.out_channels)
    return random.random(shape) < 0.3, random.integers(-9, 10, results).astype(np.float32)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("name", LAYERS)
def test_sums_of_small_layers(name: str, target: str) -> None:
    spikes, grad = inputs(LAYERS[name], 1)
    found = run(LAYERS[name], TARGETS[target], spikes, grad, parallel=False)
    np.testing.assert_array_equal(found, reference(LAYERS[name], spikes, grad))


@pytest.mark.parametrize("target", TARGETS)
def test_threads_share_the_same_sums(target: str) -> None:
    spikes, grad = inputs(LAYER, 2)
    grad *= np.float32(0.1)
    alone, shared = (run(LAYER, TARGETS[target], spikes, grad, parallel=parallel) for parallel in (False, True))
    np.testing.assert_array_equal(alone, shared)


@given(st.integers(1, 300), st.integers(1, 40), st.integers(1, 400), st.integers(1, 700), st.sampled_from([8, 16]))
def test_chunks_cover_all_tables_and_fit_their_memory(
    images: int, height: int, width: int, out_channels: int, lanes: int
) -> None:
    layer = Geometry(images=images, height=height, width=width, channels=5, out_channels=out_channels)
    sizes = WeightSizes.of(layer, lanes)
    assert sizes.chunk_images * sizes.piece <= CHUNK
    assert (sizes.pieces - 1) * sizes.piece < sizes.tables <= sizes.pieces * sizes.piece
    whole = sizes.chunks // sizes.pieces
    assert (whole - 1) * sizes.chunk_images < images <= whole * sizes.chunk_images
    assert sizes.chunk_images == 1 or sizes.pieces == 1
    assert 1 <= sizes.parts <= min(TASKS, sizes.chunks)


def test_patterns_of_a_word_are_those_of_the_stride_phases() -> None:
    """A tap reads a phase and a line that the words have."""
    sizes = WeightSizes.of(LAYER, 16)
    phases, lines = plane_rows(LAYER)
    last = (lines * sizes.pitch - 1) // (BITS // pattern_taps(16))
    assert sizes.phases == phases
    assert last < sizes.line_words
