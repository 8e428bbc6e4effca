"""Spikes as words on torch tensors: packed, expanded and counted."""

from __future__ import annotations

import functools
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from compiler.fused.population import Activation
from compiler.fused.spikes.geometry import BITS, Geometry
from compiler.fused.spikes.words import WordName, pack_width, word_kernel
from compiler.tvm_setup import host_target, tvm
from hwmodel.errors import CompileError, Loc
from runtime.fused.spikes.launch import Take
from runtime.fused.threads import threads_wanted

_PART = 1 << 16  # values that a thread treats at once, about: what a call of TVM costs is a hundredth of that
_PART_WORDS = 1 << 13
_FEW_WORDS = 1 << 13  # that NumPy counts before a kernel has been called
_NO_SPIKES = "the input holds values beside 0 and 1, but the network was fused for spikes"


def word_shape(geometry: Geometry) -> tuple[int, int, int, int]:
    """Of the words of a layer's input."""
    return geometry.images, geometry.height, geometry.width, geometry.words


def pack(geometry: Geometry, x: Tensor, words: Tensor, take: Take, name: str = "input") -> int:
    """Fill the words of spikes; the number of ones.

    Shapes: x (images, height, width, channels) f32 or bf16 contiguous; words i32, see `Geometry`.
    Raises: CompileError, at `name`, for a value that is neither 0 nor 1.
    """
    rows, channels = _rows(geometry)
    parts = _parts(rows * channels, _PART)
    sums = take("word sums", (parts, 2), torch.int64)
    kernel = _compiled(WordName.PACK, x.dtype, pack_width(channels), threads_wanted(x.nbytes))
    kernel(_as_integers(x), words.view(-1), sums, channels)
    ones, wrong = sums[0].tolist()
    if wrong:
        raise CompileError(_NO_SPIKES, Loc(name), hint="fuse it with an example that is real-valued too")
    return int(ones)


def expand(geometry: Geometry, words: Tensor, x: Tensor) -> None:
    """Fill x, f32 or bf16, with 1 or 0 for each bit. Shapes as in `pack`."""
    rows, channels = _rows(geometry)
    kernel = _compiled(WordName.EXPAND, x.dtype, pack_width(channels), threads_wanted(x.nbytes))
    kernel(words.view(-1), _as_integers(x), channels, _parts(rows * channels, _PART))


def count(words: Tensor, take: Take) -> int:
    """The number of ones in contiguous words of any shape."""
    if words.numel() < _FEW_WORDS:
        return int(np.bitwise_count(words.numpy().view(np.uint32)).sum())
    sums = take("word sums", (_parts(words.numel(), _PART_WORDS), 2), torch.int64)
    kernel = _compiled(WordName.COUNT, torch.float32, BITS, threads_wanted(words.nbytes))
    kernel(words.view(-1), sums)
    return int(sums[0, 0])


def _rows(geometry: Geometry) -> tuple[int, int]:
    """Rows of one group's channels of one pixel; whole words are rows of their own."""
    channels = BITS if geometry.group_channels % BITS == 0 else geometry.group_channels
    return geometry.neurons // channels, channels


def _parts(values: int, of_part: int) -> int:
    return max(1, -(-values // of_part))


def _as_integers(x: Tensor) -> Tensor:
    return x.view(torch.int16 if x.dtype == torch.bfloat16 else torch.int32).view(-1)


@functools.cache
def _compiled(name: WordName, dtype: torch.dtype, width: int, parallel: bool) -> Callable[..., None]:
    activation = Activation.BF16 if dtype == torch.bfloat16 else Activation.F32
    kernel = word_kernel(name, activation, width, parallel=parallel)
    function: Callable[..., None] = tvm.compile(kernel, target=host_target())[str(name)]
    return function
