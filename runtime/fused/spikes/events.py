"""Lists of what is not zero, on torch tensors, and sums of the weights that they choose."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from compiler.fused.cpu import vector_lanes
from compiler.fused.spikes.event_sums import EventSums, SumSizes, most_chunked
from compiler.fused.spikes.events import SPARE, ListSizes, list_kernel
from compiler.fused.spikes.geometry import BITS, Geometry
from compiler.tvm_setup import host_target, tvm
from runtime.fused.spikes.launch import Take

LIMIT = 2**30  # values among which events are counted: their numbers and places are i32, and gaps need room
_RUNS = 64  # about so many: threads take whole ones


@dataclass(frozen=True, slots=True, kw_only=True)
class Events:
    """What `list_kernel` writes. values: beside each event, of gradients."""

    bounds: Tensor
    events: Tensor
    values: Tensor | None


def list_spikes(geometry: Geometry, words: Tensor, chunk: int, take: Take, *, parallel: bool) -> Events:
    """The input's spikes, in chunks of so many channels, whole words."""
    columns, words_of_chunk = geometry.words_of_group, chunk // BITS
    sizes = ListSizes(
        pixels=geometry.images * geometry.height * geometry.width, run=_run(geometry, geometry.height, geometry.width),
        groups=geometry.groups, columns=columns, chunks=-(-columns // words_of_chunk), chunk=words_of_chunk,
        room=min(chunk, geometry.group_channels),
    )  # fmt: skip
    return _list(sizes, geometry.group_channels, words, take, parallel=parallel)


def list_values(geometry: Geometry, grad: Tensor, chunk: int, take: Take, *, parallel: bool) -> Events:
    """The output's gradients that are not zero, in chunks of so many channels."""
    columns, height, width = geometry.group_out_channels, geometry.out_height, geometry.out_width
    sizes = ListSizes(
        pixels=geometry.images * height * width, run=_run(geometry, height, width), groups=geometry.groups,
        columns=columns, chunks=-(-columns // chunk), chunk=chunk, room=min(chunk, columns),
    )  # fmt: skip
    return _list(sizes, columns, grad, take, parallel=parallel)


def add_rows(plan: EventSums, sizes: SumSizes, weights: Tensor, events: Events, y: Tensor, *others: Tensor) -> None:
    """Run the kernel of the plan; `others`: bias or mask, where the plan has them."""
    values = () if events.values is None else (events.values,)
    flat = (tensor.view(-1) for tensor in (*others, y))
    _sum_kernel(plan)(*sizes, weights, events.bounds, events.events, *values, *flat)


def _run(geometry: Geometry, height: int, width: int) -> int:
    """Pixels of a run: whole lines, except where no window holds more than one column."""
    line = 1 if geometry.kernel[1] == 1 else width
    lines = geometry.images * height * width // line
    return line * -(-lines // _RUNS)


def _list(sizes: ListSizes, channels: int, source: Tensor, take: Take, *, parallel: bool) -> Events:
    pixels, run, groups = int(sizes.pixels), int(sizes.run), int(sizes.groups)
    words = -(-channels // BITS)  # the most chunks
    length = groups * -(-pixels // run) * (run * most_chunked(channels, channels) + words * SPARE)
    bounds = take("event bounds", (groups * words * pixels * 2,), torch.int32)
    events = take("events", (length,), torch.int32)
    kept = take("event values", (length,), torch.float32) if source.is_floating_point() else None
    others = () if kept is None else (kept,)
    _list_kernel(vector_lanes(), kept is not None, parallel)(*sizes, source.view(-1), bounds, events, *others)
    return Events(bounds=bounds, events=events, values=kept)


def take_rows(geometry: Geometry, channels: int, width: int, blocks: int, columns: int, take: Take) -> Tensor:
    """Memory for the rows of weights of that width, of so many channels and columns of the kernel."""
    words = -(-channels // BITS)
    rows = geometry.groups * blocks * geometry.kernel[0] * columns * most_chunked(channels, words * BITS)
    return take("event rows", (rows * width,), torch.float32)


@functools.cache
def _list_kernel(lanes: int, values: bool, parallel: bool) -> Callable[..., None]:
    function = list_kernel("list_events", lanes=lanes, values=values, parallel=parallel)
    kernel: Callable[..., None] = tvm.compile(function, target=host_target())["list_events"]
    return kernel


@functools.cache
def _sum_kernel(plan: EventSums) -> Callable[..., None]:
    kernel: Callable[..., None] = tvm.compile(plan.kernel("add_rows"), target=host_target())["add_rows"]
    return kernel
