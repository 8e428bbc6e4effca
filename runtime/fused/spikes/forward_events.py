"""The forward pass of a layer whose input has few spikes: each one adds a row of weights."""

from __future__ import annotations

import functools
from collections.abc import Callable

from torch import Tensor

from compiler.fused.cpu import vector_lanes
from compiler.fused.spikes.event_sums import EventSums, SumSizes, chunk_channels, row_vectors
from compiler.fused.spikes.forward_events import RowSizes, forward_rows_kernel
from compiler.fused.spikes.geometry import BITS, Geometry
from compiler.tvm_setup import host_target, tvm
from runtime.fused.spikes.events import LIMIT, add_rows, list_spikes, take_rows
from runtime.fused.spikes.launch import Take
from runtime.fused.spikes.words import count
from runtime.fused.threads import threads_wanted


def supports(geometry: Geometry) -> bool:
    """Every layer whose input, with each pixel's channels filled up to whole words, has fewer than 2**30 values."""
    pixels = geometry.images * geometry.height * geometry.width
    return pixels * geometry.words * BITS < LIMIT


def forward_events(
    geometry: Geometry, words: Tensor, weight: Tensor, bias: Tensor | None, y: Tensor, take: Take, *, onto: bool = False
) -> None:
    """Fill y: y[pixel] = bias + the sum over spikes (tap, c) in the pixel's window of weight[:, tap, c].

    How the sums are cut depends on the number of spikes, never on the number of threads. onto: what y holds is added,
    and there is no bias.

    Shapes: words i32 see `Geometry`; weight (out_channels, kernel height, kernel width, channels / groups), bias
    (out_channels,), y (images, out_height, out_width, out_channels), f32 contiguous.
    """
    parallel = threads_wanted(max(y.nbytes, geometry.neurons * y.itemsize))
    density = count(words, take) / geometry.neurons
    lanes, kernel_columns = vector_lanes(), geometry.kernel[1]
    chunk = chunk_channels(geometry.group_channels, kernel_columns, density)
    vectors = row_vectors(geometry.group_out_channels, lanes)
    width = vectors * lanes
    blocks, chunks = -(-geometry.group_out_channels // width), -(-geometry.group_channels // chunk)
    events = list_spikes(geometry, words, chunk, take, parallel=parallel)
    rows = take_rows(geometry, geometry.group_channels, width, blocks, kernel_columns, take)
    row_sizes = RowSizes(
        geometry.groups, geometry.group_channels, geometry.group_out_channels, *geometry.kernel, blocks, chunks, chunk
    )
    _rows_kernel(lanes, vectors, parallel)(*row_sizes, weight.view(-1), rows)
    plan = EventSums(
        lanes=lanes, vectors=vectors, stride=geometry.stride, tail=geometry.group_out_channels % width != 0,
        bias=bias is not None, onto=onto, parallel=parallel,
    )  # fmt: skip
    sizes = SumSizes(
        geometry.images, geometry.out_height, geometry.out_width, geometry.height, geometry.width, *geometry.kernel,
        *geometry.padding, geometry.groups, geometry.group_out_channels, blocks, chunks, chunk,
    )  # fmt: skip
    add_rows(plan, sizes, rows, events, y, *(() if bias is None else (bias,)))


@functools.cache
def _rows_kernel(lanes: int, vectors: int, parallel: bool) -> Callable[..., None]:
    function = forward_rows_kernel("forward_rows", lanes=lanes, vectors=vectors, parallel=parallel)
    kernel: Callable[..., None] = tvm.compile(function, target=host_target())["forward_rows"]
    return kernel
