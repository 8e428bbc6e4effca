"""Phases and tiles of the weight's gradient by events: every input meets every tap once, in tiles that fit."""

from __future__ import annotations

import itertools
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from compiler.fused.spikes.geometry import Geometry
from compiler.fused.spikes.weight_tiles import Phase, most_sums, phases, tile_grid, vectors


@st.composite
def layers(draw: st.DrawFn) -> Geometry:
    kernel, padding = (draw(st.tuples(*[st.integers(low, high)] * 2)) for low, high in ((1, 7), (0, 8)))
    height, width = (draw(st.integers(max(1, k - 2 * p), 12)) for k, p in zip(kernel, padding, strict=True))
    stride = draw(st.tuples(*[st.integers(1, 4)] * 2))
    return Geometry(
        images=1, height=height, width=width, channels=1, out_channels=1, kernel=kernel, stride=stride, padding=padding
    )


@settings(max_examples=150, deadline=None)
@given(layers(), st.sampled_from([4, 8, 16]))
def test_phases_are_all_pairs_of_an_input_and_a_tap_that_meet_an_output(geometry: Geometry, lanes: int) -> None:
    (sy, sx), (ph, pw), outputs = geometry.stride, geometry.padding, (geometry.out_height, geometry.out_width)
    found = Counter[tuple[int, ...]]()
    for phase in phases(geometry, lanes):
        down, across = phase.taps
        assert down * across <= most_sums(lanes)
        for i, j, s, t in itertools.product(range(phase.rows), range(phase.columns), range(down), range(across)):
            output = phase.top + i + down - 1 - s, phase.left + j + across - 1 - t
            if all(0 <= at < extent for at, extent in zip(output, outputs, strict=True)):
                found[phase.y + i * sy, phase.x + j * sx, phase.ky + s * sy, phase.kx + t * sx, *output] += 1
    want = Counter[tuple[int, ...]]()
    for oy, ox, ky, kx in itertools.product(*map(range, outputs), *map(range, geometry.kernel)):
        iy, ix = oy * sy + ky - ph, ox * sx + kx - pw
        if 0 <= iy < geometry.height and 0 <= ix < geometry.width:
            want[iy, ix, ky, kx, oy, ox] += 1
    assert found == want


@given(
    st.integers(1, 300), st.integers(1, 300), st.tuples(st.integers(1, 4), st.integers(1, 7)), st.integers(1, 50),
    st.sampled_from([28, 84, 168, 672]),
)  # fmt: skip
def test_tiles_fit_and_cover_the_phase(
    rows: int, columns: int, taps: tuple[int, int], images: int, places: int
) -> None:
    grid = tile_grid(phase_of(rows, columns, taps), images, places)
    assert grid.images * grid.lines * grid.pitch <= places
    assert (grid.lines, grid.pitch) == (grid.tile_rows + taps[0] - 1, grid.tile_columns + taps[1] - 1)
    assert 1 <= grid.tile_rows <= rows
    assert 1 <= grid.tile_columns <= columns
    if grid.images > 1:
        assert (grid.tile_rows, grid.tile_columns) == (rows, columns)


@pytest.mark.parametrize(
    ("rows", "columns", "taps", "tile"),
    [
        (8, 8, (3, 3), (6, 8, 8)),  # 6 * 10**2 = 600; 40 images in 7 tiles
        (16, 16, (3, 3), (2, 16, 16)),  # 2 * 18**2 = 648
        (32, 32, (3, 3), (1, 16, 32)),  # 17 rows would fit, 2 tiles of 16 are level
        (1, 1000, (1, 1), (1, 1, 500)),
        (224, 224, (4, 7), (1, 12, 38)),  # 15 * 44 = 660 for 456 inputs
    ],
)
def test_tiles_are_large_and_level(rows: int, columns: int, taps: tuple[int, int], tile: tuple[int, int, int]) -> None:
    grid = tile_grid(phase_of(rows, columns, taps), 40, 672)
    assert (grid.images, grid.tile_rows, grid.tile_columns) == tile


@pytest.mark.parametrize(
    ("taps", "channels", "count"), [((3, 3), 512, 1), ((1, 1), 512, 4), ((1, 1), 20, 2), ((2, 2), 512, 2)]
)
def test_few_taps_leave_registers_for_more_channels(taps: tuple[int, int], channels: int, count: int) -> None:
    assert vectors(phase_of(8, 8, taps), 16, channels) == count


def phase_of(rows: int, columns: int, taps: tuple[int, int]) -> Phase:
    return Phase(y=0, x=0, rows=rows, columns=columns, ky=0, kx=0, taps=taps, top=0, left=0)
