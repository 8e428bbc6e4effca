"""The lists of spikes by tile and channel, against NumPy."""

from __future__ import annotations

import functools
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from compiler.fused.spikes.geometry import BITS, Geometry
from compiler.fused.spikes.weight_lists import AT_ONCE, event_lists_kernel
from compiler.fused.spikes.weight_tiles import TileGrid
from compiler.tvm_setup import host_target, tvm


@functools.cache
def compiled(lanes: int) -> Callable[..., None]:
    kernel: Callable[..., None] = tvm.compile(event_lists_kernel(lanes, parallel=True), host_target())["event_lists"]
    return kernel


@st.composite
def cuts(draw: st.DrawFn) -> tuple[Geometry, TileGrid, tuple[int, int]]:
    """A layer, tiles of the inputs of a phase, and the phase's first input."""
    groups = draw(st.integers(1, 2))
    geometry = Geometry(
        images=draw(st.integers(1, 5)), height=draw(st.integers(1, 9)), width=draw(st.integers(1, 40)),
        channels=groups * draw(st.integers(1, 40)), out_channels=groups, groups=groups,
        stride=draw(st.tuples(st.integers(1, 2), st.integers(1, 2))),
    )  # fmt: skip
    y, x = (draw(st.integers(0, min(s, n) - 1)) for s, n in zip(geometry.stride, sizes(geometry), strict=True))
    rows, columns = (-(-(n - first) // s) for s, n, first in zip(geometry.stride, sizes(geometry), (y, x), strict=True))
    tile_rows, tile_columns = draw(st.integers(1, rows)), draw(st.integers(1, columns))
    whole = (tile_rows, tile_columns) == (rows, columns)
    images = draw(st.integers(1, geometry.images)) if whole else 1
    grid = TileGrid(rows, columns, images, tile_rows, tile_columns, tile_rows + 2, tile_columns + 1)
    return geometry, grid, (y, x)


def sizes(geometry: Geometry) -> tuple[int, int]:
    return geometry.height, geometry.width


@pytest.mark.parametrize("lanes", [4, 8, 16])
@settings(max_examples=60, deadline=None)
@given(cuts(), st.sampled_from([0.0, 0.05, 0.3, 1.0]), st.integers(1, 4), st.integers(0, 2**16))
def test_lists_hold_each_spike_of_a_tile_in_order(
    lanes: int, cut: tuple[Geometry, TileGrid, tuple[int, int]], density: float, tasks: int, seed: int
) -> None:
    geometry, grid, (y, x) = cut
    bits = np.random.default_rng(seed).random((geometry.images, *sizes(geometry), geometry.words, BITS)) < density
    words = np.packbits(bits.reshape(-1, geometry.words * BITS), axis=1, bitorder="little").view(np.int32)
    starts_of_tiles = [
        (n, r, c)
        for n in range(0, geometry.images, int(grid.images))
        for r in range(0, int(grid.rows), int(grid.tile_rows))
        for c in range(0, int(grid.columns), int(grid.tile_columns))
    ]
    inputs = grid.images * grid.tile_rows * grid.tile_columns
    chunks = -(-inputs // BITS)
    lists = torch.full((len(starts_of_tiles), (inputs + 1) * geometry.channels + AT_ONCE), -77, dtype=torch.int16)
    starts = torch.empty((len(starts_of_tiles), geometry.groups), dtype=torch.int32)
    slots = (tasks, chunks * BITS + 1)
    compiled(lanes)(
        torch.from_numpy(words.copy()), torch.empty((tasks, chunks, geometry.words * BITS), dtype=torch.int32),
        torch.empty(slots, dtype=torch.int16), torch.empty(slots, dtype=torch.int32), lists, starts,
        geometry.images, *grid, *sizes(geometry), y, x, *geometry.stride, geometry.group_channels, 16,
    )  # fmt: skip
    by_channel = bits.reshape(*bits.shape[:3], geometry.groups, -1)
    for tile, (n, r, c) in enumerate(starts_of_tiles):
        for group in range(geometry.groups):
            at = int(starts[tile, group])
            for channel in range(geometry.group_channels):
                fired = by_channel[
                    n : n + grid.images, y :: geometry.stride[0], x :: geometry.stride[1], group, channel
                ]
                own = fired[:, r : r + grid.tile_rows, c : c + grid.tile_columns]
                want = [((m * grid.lines + i) * grid.pitch + j) * 16 for m, i, j in np.argwhere(own)]
                assert lists[tile, at : at + len(want) + 1].tolist() == [*want, -1]
                at += len(want) + 1
