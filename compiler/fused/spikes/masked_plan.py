"""How the gradient of a layer's input at open places is cut: phases of strides, taps in registers, tiles in cache."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum, auto

from compiler.fused.spikes.geometry import Geometry

TOGETHER = 4  # pixels whose sums over lanes are made together
_TILE_BYTES = 44 << 10  # of gradients: most of a first-level cache
_MOST_VECTORS = 4  # of output channels: more of them leave a tile too few pixels
_WEIGHTS = {8: 9, 16: 20}  # registers for them, by lanes; partial sums need the rest
_CHAINS = {8: 1, 16: 2}


@dataclass(frozen=True, slots=True, kw_only=True)
class Taps:
    """What a kernel is compiled for: the taps of a phase, and how many weights of an input channel the registers hold.

    vectors: of output channels. Either all rows of taps are in registers, or one at a time.
    """

    rows: int
    columns: int
    lanes: int
    vectors: int
    whole: bool

    @property
    def block(self) -> int:
        """Output channels that are treated at once."""
        return self.lanes * self.vectors

    @property
    def turns(self) -> int:
        """Turns over an input channel's pixels for a block."""
        return 1 if self.whole else self.rows

    @property
    def rows_at_once(self) -> int:
        """Rows of taps in registers."""
        return self.rows if self.whole else 1

    @property
    def registers(self) -> int:
        """Vectors of weights, in the order (row of taps, column, vector)."""
        return self.rows_at_once * self.columns * self.vectors

    @property
    def chains(self) -> int:
        """Partial sums of a pixel: 8 of all pixels together hide how long a product takes, where registers suffice."""
        return min(_CHAINS[self.lanes], self.registers)


class Size(IntEnum):
    """Where the kernels find each number among their sizes, i64.

    A pixel of the phase in its row a and column b is input (a * STRIDE_Y + ORIGIN_Y, b * STRIDE_X + ORIGIN_X) and meets
    outputs (a - j, b - k) by taps (j * STRIDE_Y + PHASE_Y, k * STRIDE_X + PHASE_X).
    """

    IMAGES = 0
    HEIGHT = auto()
    WIDTH = auto()
    GROUPS = auto()
    CHANNELS = auto()  # of a group
    WORDS = auto()  # of a group
    OUT_HEIGHT = auto()
    OUT_WIDTH = auto()
    OUT_CHANNELS = auto()  # of a group
    KERNEL_Y = auto()
    KERNEL_X = auto()
    STRIDE_Y = auto()
    STRIDE_X = auto()
    PHASE_Y = auto()
    PHASE_X = auto()
    ORIGIN_Y = auto()
    ORIGIN_X = auto()
    FIRST_ROW = auto()  # a of the phase's first pixel
    FIRST_COLUMN = auto()
    ROWS = auto()  # of pixels of the phase
    COLUMNS = auto()
    TILE_IMAGES = auto()
    TILE_ROWS = auto()
    TILE_COLUMNS = auto()
    CAPACITY = auto()  # pixels of a tile, made whole vectors, and one vector more


@dataclass(frozen=True, slots=True)
class Call:
    """One call of the kernels, for the pixels of a phase.

    packed: f32 values of the weights in the kernel's order. memory: of each worker, see `input_masked_kernel`.
    """

    taps: Taps
    sizes: tuple[int, ...]
    tiles: int
    packed: int
    memory: tuple[int, int, int, int, int]


@dataclass(frozen=True, slots=True)
class _Axis:
    """A phase of one axis: (i + padding) % stride of its pixels i."""

    phase: int
    origin: int
    taps: int
    first: int
    pixels: int


def fits_registers(geometry: Geometry, lanes: int) -> bool:
    """Whether a row of taps does; there is no form of the kernel that splits one."""
    return -(-geometry.kernel[1] // geometry.stride[1]) <= _WEIGHTS[lanes]


def masked_calls(geometry: Geometry, lanes: int) -> tuple[Call, ...]:
    """One for each phase with pixels that any tap meets."""
    return tuple(
        _call(geometry, lanes, rows, columns) for rows, columns in _phases(geometry) if rows.taps and columns.taps
    )


def fill_all(geometry: Geometry) -> bool:
    """Whether the calls write each pixel: with a stride beyond the kernel, no tap meets some."""
    return all(rows.taps and columns.taps for rows, columns in _phases(geometry))


def _phases(geometry: Geometry) -> Iterator[tuple[_Axis, _Axis]]:
    for phase_y in range(geometry.stride[0]):
        for phase_x in range(geometry.stride[1]):
            rows, columns = _axis(geometry, 0, phase_y), _axis(geometry, 1, phase_x)
            if rows.pixels and columns.pixels:
                yield rows, columns


def _axis(geometry: Geometry, axis: int, phase: int) -> _Axis:
    kernel, stride, padding = geometry.kernel[axis], geometry.stride[axis], geometry.padding[axis]
    extent = (geometry.height, geometry.width)[axis]
    origin = phase - padding
    first = -(origin // stride)  # the least a with a * stride + origin >= 0
    pixels = max(0, -(-(extent - origin) // stride) - first)
    return _Axis(phase, origin, len(range(phase, kernel, stride)), first, pixels)


def _call(geometry: Geometry, lanes: int, rows: _Axis, columns: _Axis) -> Call:
    taps = _taps(geometry, lanes, rows.taps, columns.taps)
    tile = images, height, width = _tile(geometry, taps, rows.pixels, columns.pixels)
    capacity = -(-images * height * width // lanes) * lanes + lanes
    blocks = -(-geometry.group_out_channels // taps.block)
    cells = images * (height + taps.rows - 1) * (width + taps.columns - 1)
    places = geometry.channels * capacity
    return Call(
        taps,
        _sizes(geometry, rows, columns, tile, capacity),
        -(-geometry.images // images) * -(-rows.pixels // height) * -(-columns.pixels // width),
        geometry.groups * blocks * taps.turns * geometry.group_channels * taps.registers * lanes,
        (cells * taps.block, places, places, cells * lanes, 3 * capacity + geometry.channels),
    )


def _taps(geometry: Geometry, lanes: int, rows: int, columns: int) -> Taps:
    most = _WEIGHTS[lanes]
    whole = rows * columns <= most
    fitting = most // (rows * columns if whole else columns)
    vectors = min(_MOST_VECTORS, fitting, -(-geometry.group_out_channels // lanes))
    return Taps(rows=rows, columns=columns, lanes=lanes, vectors=vectors, whole=whole)


def _tile(geometry: Geometry, taps: Taps, rows: int, columns: int) -> tuple[int, int, int]:
    """Images, rows and columns: as many as the cache holds, all tiles nearly equal."""
    cells = _TILE_BYTES // (4 * taps.block)
    width = _even(columns, cells // taps.rows - taps.columns + 1)
    pitch = width + taps.columns - 1
    height = _even(rows, cells // pitch - taps.rows + 1)
    images = _even(geometry.images, cells // (pitch * (height + taps.rows - 1))) if height == rows else 1
    return images, height, width


def _even(extent: int, most: int) -> int:
    return -(-extent // -(-extent // max(1, most)))


def _sizes(
    geometry: Geometry, rows: _Axis, columns: _Axis, tile: tuple[int, int, int], capacity: int
) -> tuple[int, ...]:
    sizes = {
        Size.IMAGES: geometry.images,
        Size.HEIGHT: geometry.height,
        Size.WIDTH: geometry.width,
        Size.GROUPS: geometry.groups,
        Size.CHANNELS: geometry.group_channels,
        Size.WORDS: geometry.words_of_group,
        Size.OUT_HEIGHT: geometry.out_height,
        Size.OUT_WIDTH: geometry.out_width,
        Size.OUT_CHANNELS: geometry.group_out_channels,
        Size.KERNEL_Y: geometry.kernel[0],
        Size.KERNEL_X: geometry.kernel[1],
        Size.STRIDE_Y: geometry.stride[0],
        Size.STRIDE_X: geometry.stride[1],
        Size.PHASE_Y: rows.phase,
        Size.PHASE_X: columns.phase,
        Size.ORIGIN_Y: rows.origin,
        Size.ORIGIN_X: columns.origin,
        Size.FIRST_ROW: rows.first,
        Size.FIRST_COLUMN: columns.first,
        Size.ROWS: rows.pixels,
        Size.COLUMNS: columns.pixels,
        Size.TILE_IMAGES: tile[0],
        Size.TILE_ROWS: tile[1],
        Size.TILE_COLUMNS: tile[2],
        Size.CAPACITY: capacity,
    }
    return tuple(sizes[size] for size in Size)
