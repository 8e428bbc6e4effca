"""The gradient of the weights of a layer of spikes by look-ups in registers: as fast whatever the spikes are."""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
from torch import Tensor

from compiler.fused.spikes.forward_lut import lookup_lanes
from compiler.fused.spikes.geometry import Geometry
from compiler.fused.spikes.weight_lut import WeightSizes, pattern_taps, weight_lut_kernel, weight_sum_kernel
from compiler.tvm_setup import host_target, tvm
from runtime.fused.spikes.launch import Take
from runtime.fused.spikes.planes import pixel_words
from runtime.fused.threads import free_cores, match_thread_count

_SERIAL = 1 << 24  # multiplications of the dense layer: below, waking a thread takes longer than the work


def supports(geometry: Geometry) -> bool:
    """Every layer whose result has pixels and channels, on a processor that has AVX2 or AVX-512."""
    pixels = geometry.images * geometry.out_height * geometry.out_width
    return pixels * geometry.out_channels > 0 and _lanes() > 0


def weight_lut(geometry: Geometry, words: Tensor, grad: Tensor, grad_weight: Tensor, take: Take) -> None:
    """grad_weight[o, ky, kx, c] = sum grad[n, oy, ox, o] * x[n, oy * sy + ky - ph, ox * sx + kx - pw, c].

    Shapes: words i32 (images, H, W, words), grad (images, OH, OW, O) -> grad_weight (O, KH, KW, C / groups);
    both f32, and all contiguous. The bits of grad_weight do not depend on the number of threads.
    """
    lanes = _lanes()
    seen = pixel_words(geometry, words, pattern_taps(lanes), take)
    parallel = geometry.multiplications >= _SERIAL and match_thread_count() > 1
    if parallel:
        free_cores()
    sizes = WeightSizes.of(geometry, lanes)
    rows, pitch = grad_weight.shape[:3].numel(), sizes.vectors * lanes
    whole = sizes.parts == 1 and pitch == geometry.group_channels
    sums = grad_weight if whole else take("weight sums", (sizes.parts, rows, pitch), torch.float32)
    tables = take("weight tables", (sizes.table_memory(lanes),), torch.float32)
    _looked_up(parallel)(seen.view(-1), grad.view(-1), sums.view(-1), tables, *sizes.numbers(), 1.0)
    if not whole:
        _summed(parallel)(sums, grad_weight.view(rows, -1))


@functools.cache
def _lanes() -> int:
    return lookup_lanes(host_target())


@functools.cache
def _looked_up(parallel: bool) -> Callable[..., None]:
    kernel = weight_lut_kernel(_lanes(), parallel=parallel)
    function: Callable[..., None] = tvm.compile(kernel, target=host_target())["weight_lut"]
    return function


@functools.cache
def _summed(parallel: bool) -> Callable[..., None]:
    kernel = weight_sum_kernel(_lanes(), parallel=parallel)
    function: Callable[..., None] = tvm.compile(kernel, target=host_target())["weight_sum"]
    return function
