"""The gradient of a layer's input where few gradients of its output are not zero: each one adds rows of weights."""

from __future__ import annotations

import functools
from collections.abc import Callable

from torch import Tensor

from compiler.fused.cpu import vector_lanes
from compiler.fused.spikes.event_sums import EventSums, SumSizes, chunk_channels, row_vectors, slots
from compiler.fused.spikes.forward_events import RowSizes
from compiler.fused.spikes.geometry import BITS, Geometry
from compiler.fused.spikes.input_events import input_rows_kernel
from compiler.tvm_setup import host_target, tvm
from runtime.fused.spikes.events import LIMIT, add_rows, list_values, take_rows
from runtime.fused.spikes.launch import Take
from runtime.fused.threads import threads_wanted

_SAMPLE = 31  # pixels by which the density is estimated


def supports(geometry: Geometry) -> bool:
    """Every layer whose output, with each group's channels filled up to a multiple of 32, has under 2**30 values."""
    pixels = geometry.images * geometry.out_height * geometry.out_width
    return pixels * geometry.groups * (geometry.group_out_channels + BITS) < LIMIT


def input_events(
    geometry: Geometry, grad: Tensor, weight: Tensor, mask_words: Tensor | None, grad_x: Tensor, take: Take
) -> None:
    """Fill grad_x: the sum over gradients that are not zero, of taps that reach the pixel, of weight[o, tap] * grad.

    Where a bit of the mask is 0 the result is 0. How the sums are cut depends on the gradients, never on the number of
    threads.

    Shapes: grad (images, out_height, out_width, out_channels), weight (out_channels, kernel height, kernel width,
    channels / groups), grad_x (images, height, width, channels), f32 contiguous; mask_words i32 see `Geometry`.
    """
    density = _density(grad)
    parallel = threads_wanted(max(grad.nbytes, grad_x.nbytes))
    lanes, kernel_columns = vector_lanes(), geometry.kernel[1]
    step = geometry.stride[1]
    chunk = chunk_channels(geometry.group_out_channels, -(-kernel_columns // step), density)
    vectors = row_vectors(geometry.group_channels, lanes)
    width = vectors * lanes
    blocks, chunks = -(-geometry.group_channels // width), -(-geometry.group_out_channels // chunk)
    events = list_values(geometry, grad, chunk, take, parallel=parallel)
    rows = take_rows(geometry, geometry.group_out_channels, width, blocks, slots(kernel_columns, step), take)
    row_sizes = RowSizes(
        geometry.groups, geometry.group_channels, geometry.group_out_channels, *geometry.kernel, blocks, chunks, chunk
    )
    _rows_kernel(lanes, vectors, step, parallel)(*row_sizes, weight.view(-1), rows)
    plan = EventSums(
        lanes=lanes, vectors=vectors, stride=geometry.stride, tail=geometry.group_channels % width != 0,
        transposed=True, mask=mask_words is not None, parallel=parallel,
    )  # fmt: skip
    sizes = SumSizes(
        geometry.images, geometry.height, geometry.width, geometry.out_height, geometry.out_width, *geometry.kernel,
        *geometry.padding, geometry.groups, geometry.group_channels, blocks, chunks, chunk,
    )  # fmt: skip
    add_rows(plan, sizes, rows, events, grad_x, *(() if mask_words is None else (mask_words,)))


def _density(grad: Tensor) -> float:
    """About how many of the gradients are not zero, from pixels all over the maps."""
    pixels = grad.view(-1, grad.shape[-1])
    sample = pixels[:: max(1, len(pixels) // _SAMPLE) | 1]  # an odd step meets all columns of most maps
    return int(sample.count_nonzero()) / sample.numel()


@functools.cache
def _rows_kernel(lanes: int, vectors: int, stride: int, parallel: bool) -> Callable[..., None]:
    function = input_rows_kernel("input_rows", lanes=lanes, vectors=vectors, stride=stride, parallel=parallel)
    kernel: Callable[..., None] = tvm.compile(function, target=host_target())["input_rows"]
    return kernel
