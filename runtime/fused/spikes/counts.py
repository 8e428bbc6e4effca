"""Averages of pooled spikes as words on torch tensors: the bits of their counts packed and expanded."""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
from torch import Tensor

from compiler.fused.spikes.counts import Counts
from compiler.fused.spikes.counts_words import CountWordName, count_word_kernel
from compiler.fused.spikes.geometry import BITS
from compiler.tvm_setup import host_target, tvm
from hwmodel.errors import CompileError, Loc
from runtime.fused.spikes.launch import Take
from runtime.fused.threads import threads_wanted

_PART = 1 << 16  # values that a thread treats at once, about


def pack_counts(counts: Counts, x: Tensor, words: Tensor, take: Take, name: str = "input") -> tuple[int, ...]:
    """Fill the words of averages; the number of ones in each plane.

    Shapes: x (.., channels) f32 contiguous; words i32 (planes, .., ceil(channels / 32)) contiguous.
    Raises: CompileError, at `name`, for a value that is no average of spikes in windows of so many pixels.
    """
    sums = take("count sums", (_parts(x), counts.planes + 1), torch.int64)
    kernel = _compiled(CountWordName.PACK, counts, threads_wanted(x.nbytes))
    kernel(x.view(-1), words.view(counts.planes, -1), sums, x.shape[-1])
    *ones, wrong = sums[0].tolist()
    if wrong:
        message = f"the input holds other values than averages of {counts.pixels} spikes"
        raise CompileError(message, Loc(name), hint="fuse it with spike_kernels='off'")
    return tuple(ones)


def expand_counts(counts: Counts, words: Tensor, x: Tensor) -> None:
    """Fill x with the averages, exactly those that were packed. Shapes as in `pack_counts`."""
    kernel = _compiled(CountWordName.EXPAND, counts, threads_wanted(x.nbytes))
    kernel(words.view(counts.planes, -1), x.view(-1), x.shape[-1], _parts(x))


def stacked(words: Tensor, groups: int) -> Tensor:
    """Some planes as channels beside each other, group by group: the words of a layer of as many times the channels.

    Shapes: (planes, T, N, H, W, words) -> (T * N, H, W, groups * planes * words of a group).
    """
    planes, timesteps, samples, height, width, _ = words.shape
    images = timesteps * samples
    by_pixel = words.view(planes, images, height, width, groups, -1).permute(1, 2, 3, 4, 0, 5)
    return by_pixel.contiguous().view(images, height, width, -1)


def channels_of_words(channels: int) -> int:
    """As many channels as whole words hold."""
    return -(-channels // BITS) * BITS


def _parts(x: Tensor) -> int:
    return max(1, -(-x.numel() // _PART))


@functools.cache
def _compiled(name: CountWordName, counts: Counts, parallel: bool) -> Callable[..., None]:
    kernel = count_word_kernel(name, counts, parallel=parallel)
    function: Callable[..., None] = tvm.compile(kernel, target=host_target())[str(name)]
    return function
