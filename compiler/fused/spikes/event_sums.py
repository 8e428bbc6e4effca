"""The kernel that adds up, for each pixel, the rows of weights that its events choose."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from typing import NamedTuple

from compiler.fused.cpu_cell import stack
from compiler.fused.emit import Buffer, Expr, T, argument, f32, kernel, put, select, tirx
from compiler.fused.spikes.events import load, store
from compiler.fused.spikes.geometry import BITS
from compiler.fused.spikes.words import held

TILE = 512  # pixels of the result whose sums stay in the second-level cache while the weights pass by
_WIDEST = 96  # channels of a row: their sums stay in registers
_EVENT = 2  # additions of a vector that take as long as what else an event costs
# Events that one visit of a pixel should find: fewer, and the branch at their end costs as much as they do; more, and
# the rows among which they choose do not fit the first-level cache.
_VISIT = 36
_MOST = 128  # events of one sum in registers: longer ones lose what is small beside them


class SumSizes(NamedTuple):
    """Numbers that the kernel takes first, in this order.

    rows, columns: of a map of the result. source_rows, source_columns: of a map of the events. channels: of the
    result, of one group. blocks: rows of weights of so many channels. chunks, chunk: of the events' channels.
    """

    images: Expr | int
    rows: Expr | int
    columns: Expr | int
    source_rows: Expr | int
    source_columns: Expr | int
    kernel_rows: Expr | int
    kernel_columns: Expr | int
    pad_rows: Expr | int
    pad_columns: Expr | int
    groups: Expr | int
    channels: Expr | int
    blocks: Expr | int
    chunks: Expr | int
    chunk: Expr | int


@dataclass(frozen=True, slots=True, kw_only=True)
class EventSums:
    """y[pixel] = bias + the sum of rows W[ky, slot, channel] over events of the pixel's window.

    transposed: the result is a layer's input, the events are of its output, weighted with values; otherwise the result
    is the output, the events are spikes. The window's columns of one line neighbour each other in memory, with a
    stride too, if the weights are laid such that a slot is the column's place in the window: see `slots` and `slot`.
    Sums of one line and chunk, of a limited length, are made in registers and then added to y.

    vectors: of a row, `lanes` f32 each. tail: the rows reach beyond the channels. bias, mask: whether these are given.
    onto: what y holds stands in the bias' place.
    """

    lanes: int
    vectors: int
    stride: tuple[int, int]
    tail: bool
    transposed: bool = False
    bias: bool = False
    mask: bool = False
    onto: bool = False
    parallel: bool = True

    def kernel(self, name: str) -> tirx.PrimFunc:
        """Arguments: `SumSizes`, weights, bounds, events, [values], [bias], [mask], y.

        Shapes: weights (groups, blocks, chunks, kernel rows, slots, chunk, row); bounds, events and values see
        `list_kernel`; bias (groups * channels,); mask i32 words of y (pixels, words), y is 0 where it is; y (pixels,
        groups * channels). All flat.
        """
        return kernel(name, _Writer(self).write)


def row_vectors(channels: int, lanes: int) -> int:
    """Vectors of a row: what an event costs beside them is shared by many, but a last block may stay half empty."""
    needed = -(-channels // lanes)

    def cost(vectors: int) -> tuple[int, int]:
        blocks = -(-needed // vectors)
        return blocks * (vectors + _EVENT), blocks * vectors

    return min(range(1, max(1, _WIDEST // lanes) + 1), key=cost)


def chunk_channels(channels: int, kernel_columns: int, density: float) -> int:
    """Channels of a chunk, whole words of them, such that a visit finds enough events."""
    words = -(-channels // BITS)
    wanted = _VISIT / max(density * kernel_columns * BITS, 1e-9)  # words
    chunks = max(1, -(-words // max(1, min(words, round(wanted)))))
    return -(-words // chunks) * BITS


@functools.cache
def most_chunked(channels: int, room: int) -> int:
    """The most that all chunks hold together, by whatever density they were cut; `room`: the most of one chunk.

    Memory of that size serves every step: what is asked for must not change with the number of events.
    """
    words = -(-channels // BITS)
    return max(chunks * min(-(-words // chunks) * BITS, room) for chunks in range(1, words + 1))


def slots(kernel_columns: int, stride: int) -> int:
    """Columns of the weights of a transposed sum."""
    return -(-kernel_columns // stride) * stride


def slot(column: Expr | int, kernel_columns: Expr | int, stride: int) -> Expr | int:
    """Where a transposed sum finds the column: those of one phase together, the last one first."""
    phase, place = column % stride, column // stride
    longest = (kernel_columns + stride - 1) // stride
    return phase * longest + _of_phase(phase, kernel_columns, stride) - 1 - place


def _of_phase(phase: Expr | int, kernel_columns: Expr | int, stride: int) -> Expr | int:
    return (kernel_columns - phase + stride - 1) // stride


@dataclass(frozen=True, slots=True)
class _Tile:
    """What one thread treats at once: pixels first to last of the result, the channels of one block."""

    block: Expr  # of all groups
    first: Expr
    last: Expr
    group: Expr
    channel: Expr  # the first one, of all groups
    valid: Expr  # channels of the block that exist


@dataclass(slots=True)
class _Writer:
    plan: EventSums
    sizes: SumSizes = field(init=False)
    arrays: dict[str, Buffer] = field(init=False)
    slots: Expr = field(init=False)
    source_pixels: Expr = field(init=False)

    def write(self) -> None:
        plan = self.plan
        self.sizes = sizes = SumSizes(*(T.arg(name, T.int64()) for name in SumSizes._fields))
        names = {"weights": "float32", "bounds": "int32", "events": "int32"}
        names |= {"values": "float32"} if plan.transposed else {}
        names |= {"bias": "float32"} if plan.bias else {}
        names |= {"mask": "int32"} if plan.mask else {}
        self.arrays = {name: argument(name, [T.int64()], dtype) for name, dtype in (names | {"y": "float32"}).items()}
        self.slots = sizes.kernel_columns
        if plan.transposed:
            step = plan.stride[1]
            self.slots = held((sizes.kernel_columns + step - 1) // step * step)
        self.source_pixels = held(sizes.images * sizes.source_rows * sizes.source_columns)
        with self._tiles() as tile:
            if not plan.onto:
                self._begin(tile)
            with T.serial(sizes.chunks) as chunk, T.serial(sizes.kernel_rows) as tap:
                self._lines(tile, chunk, tap)
            if plan.mask:
                self._mask(tile)

    @contextmanager
    def _tiles(self) -> Iterator[_Tile]:
        """Those of one block after each other, so that they share the weights."""
        sizes, width = self.sizes, self.plan.vectors * self.plan.lanes
        pixels = held(sizes.images * sizes.rows * sizes.columns)
        tiles = held((pixels + TILE - 1) // TILE)
        tasks = sizes.groups * sizes.blocks * tiles
        loop: AbstractContextManager[Expr] = T.parallel(tasks) if self.plan.parallel else T.serial(tasks)
        with loop as task:
            block, first = held(task // tiles), held(task % tiles * TILE)
            group, before = held(block // sizes.blocks), held(block % sizes.blocks * width)
            last, valid = held(T.min(first + TILE, pixels)), held(T.min(T.int64(width), sizes.channels - before))
            yield _Tile(block, first, last, group, held(group * sizes.channels + before), valid)

    def _begin(self, tile: _Tile) -> None:
        """y is the bias, or zero."""
        sums = self._zeros()
        if self.plan.bias:
            for vector in range(self.plan.vectors):
                bias = self._load(self.arrays["bias"], tile.channel, vector, tile)
                put(sums, bias, self._of(vector))
        with T.serial(tile.last - tile.first) as pixel:
            place = held((tile.first + pixel) * self.sizes.groups * self.sizes.channels + tile.channel)
            for vector in range(self.plan.vectors):
                self._store(sums[self._of(vector)], place, vector, tile)

    def _lines(self, tile: _Tile, chunk: Expr, tap: Expr) -> None:
        """Add what one line of the kernel sees of one chunk to all pixels of the tile."""
        sizes, (step, _) = self.sizes, self.plan.stride
        line = held(tile.first // sizes.columns)
        before = held((tile.group * sizes.chunks + chunk) * self.source_pixels)  # pixels of other lists
        width = self.plan.vectors * self.plan.lanes
        part = held((tile.block * sizes.chunks + chunk) * sizes.kernel_rows + tap)
        weights = held(part * self.slots * sizes.chunk * width)
        with T.serial((tile.last - 1) // sizes.columns + 1 - line) as index:
            row = held(line + index)
            image, y = held(row // sizes.rows), held(row % sizes.rows)
            if self.plan.transposed:
                meets = held(y + sizes.pad_rows - tap)
                source = held(meets // step)
                there = tirx.And(tirx.And(meets >= 0, meets % step == 0), source < sizes.source_rows)
            else:
                source = held(y * step - sizes.pad_rows + tap)
                there = tirx.And(source >= 0, source < sizes.source_rows)
            with T.If(there), T.Then():
                pixel = held((image * sizes.source_rows + source) * sizes.source_columns)
                begin = held(T.max(tile.first - row * sizes.columns, T.int64(0)))
                end = held(T.min(tile.last - row * sizes.columns, sizes.columns))
                with T.serial(end - begin) as column:
                    self._pixel(tile, row, held(begin + column), pixel, before, weights)

    def _pixel(self, tile: _Tile, row: Expr, column: Expr, source: Expr, before: Expr, weights: Expr) -> None:
        """Add one line's events. source: the pixel that begins the line of the events."""
        sizes, bounds = self.sizes, self.arrays["bounds"]
        low, length, phase = self._window(column)
        first = held(T.max(low, T.int64(0)))
        count = held(T.min(low + length, sizes.source_columns) - first)
        with T.If(count > 0), T.Then():
            pixel = held(before + source + first)
            begin = held(T.cast(bounds[pixel * 2], "int64"))
            events = held(T.cast(bounds[(pixel + count - 1) * 2 + 1], "int64") - begin)
            # The event number counts from pixel 0, the slot from the window's first column.
            rows = held((phase - source - low) * sizes.chunk)
            place = held((row * sizes.columns + column) * sizes.groups * sizes.channels + tile.channel)
            with T.serial((events + _MOST - 1) // _MOST) as part:
                some = held(T.min(T.int64(_MOST), events - part * _MOST))
                self._add_events(tile, held(begin + part * _MOST), some, weights, rows, place)

    def _add_events(self, tile: _Tile, begin: Expr, count: Expr, weights: Expr, rows: Expr, place: Expr) -> None:
        sums, width = self._zeros(), self.plan.vectors * self.plan.lanes
        with T.serial(count) as event:
            index = held(weights + (rows + T.cast(self.arrays["events"][begin + event], "int64")) * width)
            self._add(sums, index, begin + event)
        for vector in range(self.plan.vectors):
            total = self._load(self.arrays["y"], place, vector, tile) + sums[self._of(vector)]
            self._store(total, place, vector, tile)

    def _window(self, column: Expr) -> tuple[Expr, Expr, Expr]:
        """First column of the window, how many there are, and the slot of the first."""
        sizes, step = self.sizes, self.plan.stride[1]
        if not self.plan.transposed:
            return held(column * step - sizes.pad_columns), sizes.kernel_columns, T.int64(0)
        meets = held(column + sizes.pad_columns)
        phase = held(meets % step)
        length = held(_of_phase(phase, sizes.kernel_columns, step))
        longest = (sizes.kernel_columns + step - 1) // step
        return held(meets // step - length + 1), length, held(phase * longest)

    def _add(self, sums: Buffer, index: Expr, event: Expr) -> None:
        lanes = self.plan.lanes
        if self.plan.transposed:
            factor = stack(1)
            put(factor, self.arrays["values"][event], 0)
        for vector in range(self.plan.vectors):
            row = self.arrays["weights"][T.ramp(index + vector * lanes, T.int64(1), lanes)]
            if self.plan.transposed:
                row = row * T.broadcast(factor[0], lanes)
            put(sums, sums[self._of(vector)] + row, self._of(vector))

    def _mask(self, tile: _Tile) -> None:
        """Zero where the mask is, even if what stands there is no number."""
        sizes, lanes = self.sizes, self.plan.lanes
        columns = held((sizes.channels + BITS - 1) // BITS)
        before = held(tile.channel - tile.group * sizes.channels)
        with T.serial(tile.last - tile.first) as index:
            pixel = held(tile.first + index)
            words = held((pixel * sizes.groups + tile.group) * columns)
            place = held(pixel * sizes.groups * sizes.channels + tile.channel)
            for vector in range(self.plan.vectors):
                channel = held(T.min(before + vector * lanes, sizes.channels - 1))
                word = held(T.cast(self.arrays["mask"][words + channel // BITS], "uint32"), "uint32")
                shifts = T.ramp(T.cast(channel % BITS, "uint32"), T.uint32(1), lanes)
                bits = T.bitwise_and(T.shift_right(T.broadcast(word, lanes), shifts), T.broadcast(T.uint32(1), lanes))
                chosen = bits != T.broadcast(T.uint32(0), lanes)
                value = self._load(self.arrays["y"], place, vector, tile)
                self._store(select(chosen, value, T.broadcast(f32(0.0), lanes)), place, vector, tile)

    def _zeros(self) -> Buffer:
        sums = stack(self.plan.vectors * self.plan.lanes)
        for vector in range(self.plan.vectors):
            put(sums, T.broadcast(f32(0.0), self.plan.lanes), self._of(vector))
        return sums

    def _of(self, vector: int) -> Expr:
        return T.ramp(vector * self.plan.lanes, 1, self.plan.lanes)

    def _load(self, buffer: Buffer, first: Expr, vector: int, tile: _Tile) -> Expr:
        lanes = self.plan.lanes
        if self.plan.tail:
            return load(buffer, first + vector * lanes, lanes, valid=tile.valid - vector * lanes)
        return buffer[T.ramp(first + vector * lanes, T.int64(1), lanes)]

    def _store(self, value: Expr, first: Expr, vector: int, tile: _Tile) -> None:
        lanes = self.plan.lanes
        if self.plan.tail:
            store(self.arrays["y"], value, first + vector * lanes, lanes, valid=tile.valid - vector * lanes)
        else:
            put(self.arrays["y"], value, T.ramp(first + vector * lanes, T.int64(1), lanes))
