"""The tables and kernels of bit layouts, on small cases by hand, for this CPU and for one of eight lanes."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from compiler.fused.spikes.geometry import BITS, Geometry
from compiler.fused.spikes.planes import (
    pixel_pitch,
    pixel_word_kernel,
    pixel_word_shape,
    plane_rows,
    positions,
    tap_plane_kernel,
    tap_plane_shape,
    word_pixels,
)
from compiler.tvm_setup import host_target, tvm

TARGETS = {"here": host_target(), "avx2": tvm.target.Target({"kind": "llvm", "mcpu": "x86-64-v3"})}


def test_positions_of_a_small_map() -> None:
    geometry = Geometry(images=1, height=2, width=3, channels=1, out_channels=1, kernel=(3, 3), padding=(1, 1))
    assert plane_rows(geometry) == (1, 4)
    assert positions(geometry, pitch=4, length=18).tolist() == [
        [-1, -1, -1, -1, -1, 0, 1, -1, -1, 3, 4, -1, -1, -1, -1, -1, -1, -1],
        [-1, -1, -1, -1, 0, 1, 2, -1, 3, 4, 5, -1, -1, -1, -1, -1, -1, -1],
        [-1, -1, -1, -1, 1, 2, -1, -1, 4, 5, -1, -1, -1, -1, -1, -1, -1, -1],
    ]


def test_positions_under_a_stride_of_two() -> None:
    geometry = Geometry(images=1, height=4, width=4, channels=1, out_channels=1, kernel=(3, 2), stride=(2, 2))
    assert plane_rows(geometry) == (2, 2)
    assert positions(geometry, pitch=2, length=4).tolist() == [
        [0, 2, 8, 10], [4, 6, 12, 14],  # the first column of the kernel, even lines and odd ones
        [1, 3, 9, 11], [5, 7, 13, 15],
    ]  # fmt: skip


def test_a_stride_above_the_kernel_makes_no_planes_that_nobody_reads() -> None:
    geometry = Geometry(images=1, height=9, width=9, channels=1, out_channels=1, kernel=(1, 1), stride=(3, 3))
    assert plane_rows(geometry) == (1, 3)


def test_shapes_of_the_layouts() -> None:
    geometry = Geometry(
        images=2, height=7, width=7, channels=96, out_channels=5, kernel=(3, 3), padding=(1, 1), groups=2
    )
    assert tap_plane_shape(geometry) == (2, 4, 3, 1, 9 * 7 + 16)
    assert (word_pixels(4), pixel_pitch(geometry, 4)) == (32, 8)
    assert pixel_word_shape(geometry, 4) == (2, 3, 1, 3 + 1, 128)  # 9 lines of 8 fill 2.25 words
    assert pixel_pitch(Geometry(images=1, height=1, width=12, channels=1, out_channels=1), 4) == 12
    assert (word_pixels(3), pixel_pitch(geometry, 3)) == (30, 9)
    assert pixel_word_shape(geometry, 3) == (2, 3, 1, 3 + 1, 128)  # 9 lines of 9 fill 2.7 words


@pytest.mark.parametrize("parallel", [False, True])
@pytest.mark.parametrize("target", TARGETS)
def test_tap_planes_pick_words(target: str, parallel: bool) -> None:
    kernel = tvm.compile(tap_plane_kernel(parallel=parallel), target=TARGETS[target])["tap_planes"]
    rng = np.random.default_rng(7)
    words = rng.integers(-(2**31), 2**31, (3, 10, 2), dtype=np.int32)
    table = rng.integers(-1, 10, (4, 21), dtype=np.int32)
    result = torch.full((3, 2, 4, 23), 7, dtype=torch.int32)
    kernel(torch.from_numpy(words), torch.from_numpy(table), result)
    picked = np.where(table[None, None] < 0, 0, words.transpose(0, 2, 1)[:, :, table])
    np.testing.assert_array_equal(result[..., :21].numpy(), picked)
    assert (result[..., 21:] == 7).all()


@pytest.mark.parametrize("parallel", [False, True])
@pytest.mark.parametrize(("target", "taps"), [("here", 4), ("avx2", 3)])
def test_pixel_words_transpose_bits(target: str, taps: int, parallel: bool) -> None:
    kernel = tvm.compile(pixel_word_kernel(taps, parallel=parallel), target=TARGETS[target])["pixel_words"]
    rng, pixels = np.random.default_rng(8), word_pixels(taps)
    words = rng.integers(-(2**31), 2**31, (2, 10, 3), dtype=np.int32)
    table = rng.integers(-1, 10, (4, 2 * pixels), dtype=np.int32)
    result = torch.full((2, 4, 2, 3 * BITS), -1, dtype=torch.int32)
    kernel(torch.from_numpy(words), torch.from_numpy(table), result)
    spikes = np.unpackbits(words.view(np.uint8), axis=2, bitorder="little")
    picked = np.where(table[None, ..., None] < 0, 0, spikes[:, table]).reshape(2, 4, 2, pixels, 3 * BITS)
    bits = np.zeros((2, 4, 2, BITS, 3 * BITS), np.uint8)
    bits[:, :, :, :pixels] = picked
    want = np.packbits(bits.transpose(0, 1, 2, 4, 3).copy(), axis=4, bitorder="little").view(np.int32)[..., 0]
    np.testing.assert_array_equal(result.numpy(), want)
