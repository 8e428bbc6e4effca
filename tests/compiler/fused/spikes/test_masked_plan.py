"""The cut of a layer's open places: each pixel once, with the taps that reach it, in tiles that the cache holds."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from compiler.fused.spikes.geometry import Geometry
from compiler.fused.spikes.masked_plan import Size, fill_all, fits_registers, masked_calls

LANES = (8, 16)


@st.composite
def geometries(draw: st.DrawFn) -> Geometry:
    kernel, padding, stride = (draw(st.tuples(*[st.integers(*range_)] * 2)) for range_ in ((1, 7), (0, 4), (1, 3)))
    height, width = (draw(st.integers(max(1, k - 2 * p), 90)) for k, p in zip(kernel, padding, strict=True))
    groups = draw(st.integers(1, 3))
    return Geometry(
        images=draw(st.integers(1, 50)), height=height, width=width, channels=groups * draw(st.integers(1, 40)),
        out_channels=groups * draw(st.integers(1, 300)), kernel=kernel, padding=padding, stride=stride, groups=groups,
    )  # fmt: skip


@given(geometries(), st.sampled_from(LANES))
def test_each_pixel_and_tap_is_in_one_call(geometry: Geometry, lanes: int) -> None:
    seen = np.zeros((geometry.height, geometry.width), int)
    taps = np.zeros(geometry.kernel, int)
    for call in masked_calls(geometry, lanes):
        size = call.sizes
        lines = [
            size[stride] * (size[first] + np.arange(size[extent])) + size[origin]
            for stride, first, extent, origin in (
                (Size.STRIDE_Y, Size.FIRST_ROW, Size.ROWS, Size.ORIGIN_Y),
                (Size.STRIDE_X, Size.FIRST_COLUMN, Size.COLUMNS, Size.ORIGIN_X),
            )
        ]
        assert min(lines[0].min(), lines[1].min()) >= 0
        seen[np.ix_(*lines)] += 1
        taps[size[Size.PHASE_Y] :: size[Size.STRIDE_Y], size[Size.PHASE_X] :: size[Size.STRIDE_X]] += 1
        assert taps[size[Size.PHASE_Y] :: size[Size.STRIDE_Y], size[Size.PHASE_X] :: size[Size.STRIDE_X]].shape == (
            call.taps.rows,
            call.taps.columns,
        )
    assert seen.max() <= 1
    assert taps.max() <= 1
    assert (seen.min() == 1) == fill_all(geometry)


@given(geometries(), st.sampled_from(LANES))
def test_tiles_cover_the_pixels_and_fit_the_cache(geometry: Geometry, lanes: int) -> None:
    for call in masked_calls(geometry, lanes):
        size = call.sizes
        tiles = 1
        for extent, tile in (
            (Size.IMAGES, Size.TILE_IMAGES),
            (Size.ROWS, Size.TILE_ROWS),
            (Size.COLUMNS, Size.TILE_COLUMNS),
        ):
            assert 1 <= size[tile] <= size[extent]
            tiles *= -(-size[extent] // size[tile])
        assert tiles == call.tiles
        assert 4 * call.memory[0] <= 48 << 10
        places = size[Size.TILE_IMAGES] * size[Size.TILE_ROWS] * size[Size.TILE_COLUMNS]
        assert places + lanes <= size[Size.CAPACITY] < places + 2 * lanes


@pytest.mark.parametrize("lanes", LANES)
def test_weights_and_sums_fit_the_registers(lanes: int) -> None:
    for side in range(1, 8):
        geometry = Geometry(images=1, height=9, width=9, channels=1, out_channels=512, kernel=(side, side))
        (call,) = masked_calls(geometry, lanes)
        assert call.taps.registers + 4 * call.taps.chains + 2 <= 2 * lanes


def test_long_rows_of_taps_do_not_fit() -> None:
    layer = Geometry(images=1, height=30, width=30, channels=1, out_channels=1, kernel=(1, 20))
    assert [fits_registers(layer, lanes) for lanes in LANES] == [False, True]
