"""The result of a layer of spikes by look-ups in registers, on torch tensors: as fast whatever the spikes are."""

from __future__ import annotations

import functools
from collections.abc import Callable

from torch import Tensor

from compiler.fused.spikes.forward_lut import forward_lut_kernel, lookup_lanes, sizes_of
from compiler.fused.spikes.geometry import Geometry
from compiler.tvm_setup import host_target, tvm
from runtime.fused.spikes.launch import Take
from runtime.fused.spikes.planes import tap_planes
from runtime.fused.threads import free_cores, match_thread_count

_SERIAL = 1 << 24  # multiplications of the dense layer: below, waking a thread takes longer than the work


def supports(geometry: Geometry) -> bool:
    """Every layer, on a processor that has AVX2 or AVX-512."""
    return geometry.out_channels > 0 and _lanes() > 0


def forward_lut(geometry: Geometry, words: Tensor, weight: Tensor, bias: Tensor | None, y: Tensor, take: Take) -> None:
    """y[n, oy, ox, o] = bias[o] + sum weight[o, ky, kx, c] * x[n, oy * sy + ky - ph, ox * sx + kx - pw, c].

    Shapes: words i32 (images, H, W, words), weight (O, KH, KW, C / groups), bias (O,) -> y (images, OH, OW, O);
    all f32 but the words, and contiguous. The bits of y do not depend on the number of threads.
    """
    planes = tap_planes(geometry, words, take)
    parallel = geometry.multiplications >= _SERIAL and match_thread_count() > 1
    if parallel:
        free_cores()
    arrays = [weight, *(() if bias is None else (bias,)), y]
    sizes = sizes_of(geometry).numbers()
    _compiled(bias is not None, parallel)(planes.view(-1), *(array.view(-1) for array in arrays), *sizes, 1.0)


@functools.cache
def _compiled(bias: bool, parallel: bool) -> Callable[..., None]:
    kernel = forward_lut_kernel(_lanes(), bias=bias, parallel=parallel)
    function: Callable[..., None] = tvm.compile(kernel, target=host_target())["forward_lut"]
    return function


@functools.cache
def _lanes() -> int:
    return lookup_lanes(host_target())
