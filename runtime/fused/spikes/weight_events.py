"""The weight's gradient by events, on torch tensors."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from compiler.fused.cpu import vector_lanes
from compiler.fused.spikes.geometry import BITS, Geometry
from compiler.fused.spikes.weight_events import weight_events_kernel, weight_of_sums_kernel
from compiler.fused.spikes.weight_lists import AT_ONCE, event_lists_kernel
from compiler.fused.spikes.weight_tiles import Phase, TileGrid, phases, tile_grid, vectors
from compiler.tvm_setup import host_target, tirx, tvm
from runtime.fused.spikes.launch import Take
from runtime.fused.threads import threads_wanted

TILE_BYTES = 42 << 10  # of gradient: most of a first-level cache of 48 KB, and of one of 32 KB not far beyond
TASKS = 16  # into which the work is dealt out at least, whatever the threads
Compiled = Callable[..., None]


def weight_events(geometry: Geometry, words: Tensor, grad: Tensor, grad_weight: Tensor, take: Take) -> None:
    """Fill grad_weight[o, ky, kx, c] = sum over images and pixels of spike * grad; time grows with the spikes.

    Shapes: words (images, H, W, words) i32, grad (images, OH, OW, O), grad_weight (O, KH, KW, C / groups), f32.
    """
    steps = _steps(geometry, min(16, max(4, vector_lanes())))  # the masks' words are whole vectors too
    if sum(step.phase.taps[0] * step.phase.taps[1] for step in steps) < geometry.kernel[0] * geometry.kernel[1]:
        grad_weight.zero_()  # some taps meet no input
    parallel = threads_wanted(grad.nbytes)
    for step in steps:
        lists, starts = step.lists(words.view(-1, geometry.words), parallel, take)
        step.sums(grad, lists, starts, grad_weight, parallel, take)


@functools.lru_cache(maxsize=256)
def _steps(geometry: Geometry, lanes: int) -> tuple[_Step, ...]:
    found = []
    for phase in phases(geometry, lanes):
        parts = vectors(phase, lanes, geometry.group_out_channels)
        grid = tile_grid(phase, geometry.images, TILE_BYTES // (4 * parts * lanes))
        found.append(_Step(geometry, phase, lanes, parts, grid))
    return tuple(found)


@dataclass(frozen=True, slots=True)
class _Step:
    """The work of one phase. parts: vectors of output channels at once."""

    geometry: Geometry
    phase: Phase
    lanes: int
    parts: int
    grid: TileGrid

    def lists(self, words: Tensor, parallel: bool, take: Take) -> tuple[Tensor, Tensor]:
        """The spikes of each tile by channel."""
        geometry, grid, phase = self.geometry, self.grid, self.phase
        inputs = grid.images * grid.tile_rows * grid.tile_columns
        chunks, tasks = -(-inputs // BITS), min(self.tiles, 2 * TASKS) if parallel else 1
        masks = take("weight_events masks", (tasks, chunks, geometry.words * BITS), torch.int32)
        slots = (tasks, chunks * BITS + 1)
        places = take("weight_events places", slots, torch.int16)
        pixels = take("weight_events pixels", slots, torch.int32)
        lists = take("weight_events lists", (self.tiles, (inputs + 1) * geometry.channels + AT_ONCE), torch.int16)
        starts = take("weight_events starts", (self.tiles, geometry.groups), torch.int32)
        _lists_kernel(self.lanes, parallel)(
            words, masks, places, pixels, lists, starts, geometry.images, *grid, geometry.height, geometry.width,
            phase.y, phase.x, *geometry.stride, geometry.group_channels, self.parts * self.lanes,
        )  # fmt: skip
        return lists, starts

    def sums(
        self, grad: Tensor, lists: Tensor, starts: Tensor, grad_weight: Tensor, parallel: bool, take: Take
    ) -> None:
        """The gradient of the phase's taps."""
        geometry, grid, phase, width = self.geometry, self.grid, self.phase, self.parts * self.lanes
        blocks = geometry.groups * -(-geometry.group_out_channels // width)
        splits = max(1, min(self.tiles, TASKS // blocks))
        size = grid.images * grid.lines * grid.pitch * width
        tile = take("weight_events tile", (splits * blocks, size), torch.float32)
        taps = phase.taps[0] * phase.taps[1]
        sums = take("weight_events sums", (splits, blocks, geometry.group_channels, taps, width), torch.float32)
        kernel = _sums_kernel(phase.taps, self.parts, self.lanes, parallel)
        kernel(grad, lists, starts, tile, sums, *grid, phase.top, phase.left)
        weight = _weight_kernel(phase.taps, width, self.lanes, parallel)
        weight(sums, grad_weight, geometry.groups, phase.ky, phase.kx, *geometry.stride)

    @property
    def tiles(self) -> int:
        """Tiles of all images."""
        grid = self.grid
        of_map = -(-grid.rows // grid.tile_rows) * -(-grid.columns // grid.tile_columns)
        return -(-self.geometry.images // grid.images) * of_map


@functools.cache
def _lists_kernel(lanes: int, parallel: bool) -> Compiled:
    return _compiled(event_lists_kernel(lanes, parallel))


@functools.cache
def _sums_kernel(taps: tuple[int, int], parts: int, lanes: int, parallel: bool) -> Compiled:
    return _compiled(weight_events_kernel(taps, parts, lanes, parallel))


@functools.cache
def _weight_kernel(taps: tuple[int, int], width: int, lanes: int, parallel: bool) -> Compiled:
    return _compiled(weight_of_sums_kernel(taps, width, lanes, parallel))


def _compiled(function: tirx.PrimFunc) -> Compiled:
    compiled: Compiled = tvm.compile(function, target=host_target())[str(function.attrs["global_symbol"])]
    return compiled
