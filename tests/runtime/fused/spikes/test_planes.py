"""What every output pixel finds in the bit layouts, against torch's unfolded windows."""

from __future__ import annotations

import itertools

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

from compiler.fused.spikes.geometry import BITS, Geometry
from compiler.fused.spikes.planes import pixel_pitch, plane_rows, word_pixels
from runtime.fused.spikes.planes import pixel_words, tap_planes
from tests.runtime.fused.spikes.spike_maps import geometries, random_spikes, take, words_of

Bits = npt.NDArray[np.uint8]


def windows(geometry: Geometry, words: Tensor) -> Bits:
    """The bits that output pixels see: (images, 32 * words, kernel height, kernel width, OH, OW)."""
    bits = np.unpackbits(words.numpy().view(np.uint8), axis=3, bitorder="little")
    maps = torch.from_numpy(bits).permute(0, 3, 1, 2).float()
    seen = functional.unfold(maps, geometry.kernel, padding=geometry.padding, stride=geometry.stride)
    shape = (geometry.images, -1, *geometry.kernel, geometry.out_height, geometry.out_width)
    return seen.view(shape).to(torch.uint8).numpy()


def check_tap_planes(geometry: Geometry, words: Tensor) -> None:
    planes, seen = tap_planes(geometry, words, take).numpy(), windows(geometry, words)
    pixels, step = geometry.out_height * geometry.out_width, geometry.stride[0]
    for ky, kx in itertools.product(*map(range, geometry.kernel)):
        first = ky // step * geometry.out_width
        found = planes[:, :, kx, ky % step, first : first + pixels, None].copy()
        bits = np.unpackbits(found.view(np.uint8), axis=3, bitorder="little").transpose(0, 1, 3, 2)
        want = seen[:, :, ky, kx].reshape(geometry.images, geometry.words, BITS, pixels)
        np.testing.assert_array_equal(bits, want)


def check_pixel_words(geometry: Geometry, words: Tensor, taps: int) -> None:
    found, seen = pixel_words(geometry, words, taps, take).numpy(), windows(geometry, words)
    pitch, lines = pixel_pitch(geometry, taps), plane_rows(geometry)[1]
    bits = np.unpackbits(found[..., None].view(np.uint8), axis=5, bitorder="little")
    used, unused = np.split(bits, [word_pixels(taps)], axis=5)
    assert not unused.any()
    flat = used.transpose(0, 1, 2, 4, 3, 5).reshape(*used.shape[:3], used.shape[4], -1)
    assert not flat[..., lines * pitch :].any()
    by_line = flat[..., : lines * pitch].reshape(*flat.shape[:4], lines, pitch)
    assert not by_line[..., geometry.out_width :].any()
    for ky, kx in itertools.product(*map(range, geometry.kernel)):
        first, step = ky // geometry.stride[0], geometry.stride[0]
        rows = by_line[:, kx, ky % step, :, first : first + geometry.out_height, : geometry.out_width]
        np.testing.assert_array_equal(rows, seen[:, :, ky, kx])


@settings(max_examples=60)
@given(geometries(), st.floats(0.02, 1), st.integers(0, 2**16))
def test_a_tap_plane_holds_the_word_of_every_output_pixel(geometry: Geometry, density: float, seed: int) -> None:
    check_tap_planes(geometry, words_of(geometry, random_spikes(geometry, density, seed)))


@settings(max_examples=60)
@given(geometries(), st.sampled_from([3, 4]), st.floats(0.02, 1), st.integers(0, 2**16))
def test_pixel_words_hold_the_spikes_of_neighbouring_output_pixels(
    geometry: Geometry, taps: int, density: float, seed: int
) -> None:
    check_pixel_words(geometry, words_of(geometry, random_spikes(geometry, density, seed)), taps)


@pytest.mark.parametrize("threads", [1, 2])
def test_layouts_large_enough_for_threads(threads: int) -> None:
    geometry = Geometry(
        images=8, height=32, width=32, channels=128, out_channels=1, kernel=(3, 3), padding=(1, 1)
    )  # fmt: skip
    words = words_of(geometry, random_spikes(geometry, 0.3, seed=1))
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        check_tap_planes(geometry, words)
        check_pixel_words(geometry, words, 4)
    finally:
        torch.set_num_threads(before)
