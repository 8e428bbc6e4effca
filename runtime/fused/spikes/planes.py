"""Spike words laid out for the look-ups in registers, on torch tensors."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from compiler.fused.spikes.geometry import Geometry
from compiler.fused.spikes.planes import (
    OVERRUN,
    pixel_pitch,
    pixel_word_kernel,
    pixel_word_shape,
    positions,
    tap_plane_kernel,
    tap_plane_shape,
    word_pixels,
)
from compiler.tvm_setup import host_target, tvm
from runtime.fused.spikes.launch import Take
from runtime.fused.threads import threads_wanted


def tap_planes(geometry: Geometry, words: Tensor, take: Take) -> Tensor:
    """The word that output pixel p = oy * OW + ox sees under tap (ky, kx), for each word w of an image n:

    element [n, w, kx, ky % stride, (ky // stride) * OW + p]; 0 beside the map.

    Shapes: words i32 (images, height, width, words) contiguous -> i32 `tap_plane_shape`, its tail undefined.
    """
    shape = tap_plane_shape(geometry)
    planes = take("tap planes", shape, torch.int32)
    table = _table(_without_images(geometry), geometry.out_width, shape[-1] - OVERRUN)
    kernel = _tap_planes(threads_wanted(planes.nbytes))
    kernel(_by_pixels(geometry, words), table, planes.view(*shape[:2], -1, shape[-1]))
    return planes


def pixel_words(geometry: Geometry, words: Tensor, taps: int, take: Take) -> Tensor:
    """The spikes that neighbouring output pixels see, in the bits of one word for each input channel.

    With f = (oy + ky // stride) * `pixel_pitch` + ox and the `word_pixels`, bit f % pixels of element
    [n, kx, ky % stride, f // pixels, c] is what output pixel (oy, ox) sees of channel c under tap (ky, kx); 0 beside
    the map. Channel c of group g has lane g * 32 * words_of_group + c.

    Shapes: words i32 (images, height, width, words) contiguous -> i32 `pixel_word_shape`.
    """
    shape = pixel_word_shape(geometry, taps)
    result = take("pixel words", shape, torch.int32)
    table = _table(_without_images(geometry), pixel_pitch(geometry, taps), shape[3] * word_pixels(taps))
    kernel = _pixel_words(taps, threads_wanted(result.nbytes))
    kernel(_by_pixels(geometry, words), table, result.view(shape[0], -1, *shape[3:]))
    return result


def _without_images(geometry: Geometry) -> Geometry:
    """What the table depends on."""
    return replace(geometry, images=1, channels=1, out_channels=1, groups=1)


def _by_pixels(geometry: Geometry, words: Tensor) -> Tensor:
    return words.view(geometry.images, geometry.height * geometry.width, geometry.words)


@functools.lru_cache(maxsize=256)
def _table(geometry: Geometry, pitch: int, length: int) -> Tensor:
    return torch.from_numpy(positions(geometry, pitch, length))


@functools.cache
def _tap_planes(parallel: bool) -> Callable[..., None]:
    function: Callable[..., None] = tvm.compile(tap_plane_kernel(parallel=parallel), target=host_target())["tap_planes"]
    return function


@functools.cache
def _pixel_words(taps: int, parallel: bool) -> Callable[..., None]:
    kernel = pixel_word_kernel(taps, parallel=parallel)
    function: Callable[..., None] = tvm.compile(kernel, target=host_target())["pixel_words"]
    return function
