"""The gradient of a layer's input where a mask is open, on torch tensors."""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
from torch import Tensor

from compiler.fused.cpu import vector_lanes
from compiler.fused.spikes.geometry import Geometry
from compiler.fused.spikes.input_masked import input_masked_kernel
from compiler.fused.spikes.masked_plan import Call, Taps, fill_all, fits_registers, masked_calls
from compiler.fused.spikes.masked_weights import masked_weights_kernel
from compiler.tvm_setup import host_target, tvm
from runtime.fused.spikes.launch import Take
from runtime.fused.threads import threads_wanted

_MEMORY = (  # of each worker
    ("tile", torch.float32),
    ("lists", torch.int32),
    ("sums", torch.float32),
    ("dense", torch.float32),
    ("tables", torch.int32),
)


def supports(geometry: Geometry) -> bool:
    """Whether there are outputs, and a row of one phase's taps fits the registers; a mask is needed besides."""
    outputs = geometry.out_height * geometry.out_width * geometry.out_channels
    return outputs > 0 and fits_registers(geometry, _lanes())


def input_masked(
    geometry: Geometry, grad: Tensor, weight: Tensor, mask_words: Tensor | None, grad_x: Tensor, take: Take
) -> None:
    """grad_x[n, iy, ix, c] = sum of W[o, ky, kx, c] * grad[n, oy, ox, o] where the mask's bit is 1, and 0 elsewhere.

    Shapes: grad (images, OH, OW, O), weight (O, KH, KW, C / groups), mask_words i32 (images, H, W, words) ->
    grad_x (images, H, W, C); all contiguous. `supports` tells for which layers.
    """
    assert mask_words is not None
    if not fill_all(geometry):
        grad_x.zero_()
    parallel = threads_wanted(grad.nbytes)
    calls = _calls(geometry, _lanes())
    if not calls:
        return
    workers = min(torch.get_num_threads(), max(call.tiles for call, _ in calls)) if parallel else 1
    packed = take("input_masked weights", (max(call.packed for call, _ in calls),), torch.float32)
    memory = [
        take(f"input_masked {name}", (workers, max(call.memory[at] for call, _ in calls)), dtype)
        for at, (name, dtype) in enumerate(_MEMORY)
    ]
    for call, sizes in calls:
        _weights(call.taps, parallel)(sizes, weight.view(-1), packed)
        _kernel(call.taps, parallel)(sizes, mask_words.view(-1), grad.view(-1), packed, grad_x.view(-1), *memory)


def _lanes() -> int:
    """The kernel's vectors: of 16 values, or of 8, which a CPU with smaller ones takes in parts."""
    return 16 if vector_lanes() >= 16 else 8


@functools.cache
def _calls(geometry: Geometry, lanes: int) -> tuple[tuple[Call, Tensor], ...]:
    return tuple((call, torch.tensor(call.sizes, dtype=torch.int64)) for call in masked_calls(geometry, lanes))


@functools.cache
def _weights(taps: Taps, parallel: bool) -> Callable[..., None]:
    kernel = masked_weights_kernel(taps, parallel)
    function: Callable[..., None] = tvm.compile(kernel, host_target())["masked_weights"]
    return function


@functools.cache
def _kernel(taps: Taps, parallel: bool) -> Callable[..., None]:
    function: Callable[..., None] = tvm.compile(input_masked_kernel(taps, parallel), host_target())["input_masked"]
    return function
