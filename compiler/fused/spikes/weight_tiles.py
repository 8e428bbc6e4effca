"""How the kernels of the weight's gradient by events cut a layer: phases of a stride, and tiles of a phase."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import NamedTuple

from compiler.fused.emit import Expr, T
from compiler.fused.spikes.geometry import Geometry
from compiler.fused.spikes.words import held

Index = Expr | int
_MOST_SUMS = {16: 28, 8: 14}  # by lanes: vector registers, less a few for what is read
_FEW_SUMS = 8  # with fewer taps than this, more channels are summed at once


@dataclass(frozen=True, slots=True, kw_only=True)
class Phase:
    """Inputs that meet outputs by the same taps, and some of these taps.

    Input (i, j) of the phase is (y + i * sy, x + j * sx) of the map. By tap (s, t) it meets the output
    (top + i + taps[0] - 1 - s, left + j + taps[1] - 1 - t); that tap is (ky + s * sy, kx + t * sx) of the kernel.
    """

    y: int
    x: int
    rows: int
    columns: int
    ky: int
    kx: int
    taps: tuple[int, int]
    top: int
    left: int


def phases(geometry: Geometry, lanes: int) -> Iterator[Phase]:
    """All phases that have taps and inputs, the taps dealt out so that their sums fit the registers."""
    (sy, sx), (ph, pw) = geometry.stride, geometry.padding
    for a in range(min(sy, geometry.kernel[0])):
        for b in range(min(sx, geometry.kernel[1])):
            first_row, first_column = -((a - ph) // sy), -((b - pw) // sx)
            y, x = first_row * sy + a - ph, first_column * sx + b - pw
            rows, columns = -(-(geometry.height - y) // sy), -(-(geometry.width - x) // sx)
            down, across = -(-(geometry.kernel[0] - a) // sy), -(-(geometry.kernel[1] - b) // sx)
            if rows <= 0 or columns <= 0:
                continue
            parts = -(-down // max(1, most_sums(lanes) // across))
            for part in range(parts):
                first, last = part * down // parts, (part + 1) * down // parts
                yield Phase(
                    y=y, x=x, rows=rows, columns=columns, ky=a + first * sy, kx=b, taps=(last - first, across),
                    top=first_row - last + 1, left=first_column - across + 1,
                )  # fmt: skip


def most_sums(lanes: int) -> int:
    """Vectors of sums that registers hold."""
    return _MOST_SUMS.get(lanes, 14)


def vectors(phase: Phase, lanes: int, channels: int) -> int:
    """Vectors of output channels that are summed at once, of so many channels."""
    return max(1, min(_FEW_SUMS // (phase.taps[0] * phase.taps[1]), 4, -(-channels // lanes)))


class TileGrid(NamedTuple):
    """How a phase's inputs are cut: `images` and rows x columns of them in a tile, fewer at the ends.

    A tile's gradient has `pitch` columns and `lines` rows for each image, with the border that the taps reach.
    """

    rows: Index  # of the phase
    columns: Index
    images: Index
    tile_rows: Index
    tile_columns: Index
    lines: Index
    pitch: Index


def tile_grid(phase: Phase, images: int, places: int) -> TileGrid:
    """The largest tiles whose gradient has no more than so many places."""
    down, across = phase.taps
    best = (1, 1)
    for parts in range(1, phase.columns + 1):
        columns = -(-phase.columns // parts)
        rows = min(phase.rows, max(1, places // (columns + across - 1) - down + 1))
        rows = -(-phase.rows // -(-phase.rows // rows))
        if rows * columns > best[0] * best[1] and (rows + down - 1) * (columns + across - 1) <= places:
            best = rows, columns
    rows, columns = best
    lines, pitch, together = rows + down - 1, columns + across - 1, 1
    if (rows, columns) == (phase.rows, phase.columns):
        together = max(1, min(images, places // (lines * pitch)))
        together = -(-images // -(-images // together))
    return TileGrid(phase.rows, phase.columns, together, rows, columns, lines, pitch)


class Tile:
    """The tile of a number: its first image and input, and how many it holds of each."""

    def __init__(self, number: Expr, grid: TileGrid, images: Expr) -> None:
        across = held(ceil(grid.columns, grid.tile_columns))
        down = held(ceil(grid.rows, grid.tile_rows))
        self.image = held(number // across // down * grid.images)
        self.row = held(number // across % down * grid.tile_rows)
        self.column = held(number % across * grid.tile_columns)
        self.images = held(T.min(grid.images, images - self.image))
        self.rows = held(T.min(grid.tile_rows, grid.rows - self.row))
        self.columns = held(T.min(grid.tile_columns, grid.columns - self.column))


def integers(*names: str) -> list[Expr]:
    """The next arguments of the kernel: i64."""
    return [T.arg(name, T.int64()) for name in names]


def dealt(extent: Expr, parallel: bool) -> AbstractContextManager[Expr]:
    """A loop over tasks."""
    loop: AbstractContextManager[Expr] = T.parallel(extent) if parallel else T.serial(extent)
    return loop


def ceil(extent: Index, parts: Index) -> Expr:
    """Parts that hold the extent."""
    return (extent + parts - 1) // parts
