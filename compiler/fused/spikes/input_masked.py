"""The gradient of a layer's input at the places of a mask only: one dot product for each open place.

An open place (pixel, c) needs sum of W[o, ky, kx, c] * g[oy, ox, o] over taps and output channels. The weights of one
c, all taps and some output channels fill the registers and meet the open pixels of a tile one after the other, whose
gradients lie in the first-level cache. Four pixels at a time share the sums over the lanes.

With strides, input pixels of one phase (iy + ph) % sy, (ix + pw) % sx meet the same taps: each phase is such a problem
of stride 1 with fewer taps.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from compiler.fused.cpu_cell import stack
from compiler.fused.emit import Buffer, Expr, T, argument, f32, kernel, put, select, tirx
from compiler.fused.spikes.geometry import BITS
from compiler.fused.spikes.masked_plan import TOGETHER, Size, Taps
from compiler.fused.spikes.words import held

_AHEAD = 3  # vectors of the next channel's weights asked for at each turn: they may have left the second-level cache
_CELLS, _PIXELS, _GATHERED, _LENGTHS = range(4)  # parts of the tables


def input_masked_kernel(taps: Taps, parallel: bool) -> tirx.PrimFunc:
    """The gradient of the pixels of a phase, 0 where the mask is.

    A cell is a place of a tile and its border, a place one of its pixels in order.
    Arguments, as one line each: sizes; mask words; gradient (images, OH, OW, O); packed weights; result
    (images, H, W, C). Then memory of each worker, (workers, any): tile f32 (cell, o of a block), lists i32 (c, place),
    sums f32 (c, place), dense f32 (cell, lane), and tables i32: cells, pixels, words of the places, lengths of lists.
    """
    return kernel("input_masked", partial(_write, taps, parallel))


def _write(taps: Taps, parallel: bool) -> None:
    workers = T.int64()
    arrays = _Arrays(
        sizes=argument("sizes", [len(Size)], "int64"),
        words=argument("words", [T.int64()], "int32"),
        grad=argument("grad", [T.int64()]),
        packed=argument("packed", [T.int64()]),
        grad_x=argument("grad_x", [T.int64()]),
        tile=argument("tile", [workers, T.int64()]),
        lists=argument("lists", [workers, T.int64()], "int32"),
        sums=argument("sums", [workers, T.int64()]),
        dense=argument("dense", [workers, T.int64()]),
        tables=argument("tables", [workers, T.int64()], "int32"),
    )
    with T.parallel(workers) if parallel else T.serial(workers) as worker:
        _Worker(taps, arrays, held(worker)).write(workers)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Arrays:
    """The arguments."""

    sizes: Buffer
    words: Buffer
    grad: Buffer
    packed: Buffer
    grad_x: Buffer
    tile: Buffer
    lists: Buffer
    sums: Buffer
    dense: Buffer
    tables: Buffer


@dataclass(frozen=True, slots=True)
class _Worker:
    """A share of the tiles, with memory of its own."""

    taps: Taps
    arrays: _Arrays
    worker: Expr

    def write(self, workers: Expr) -> None:
        size = tuple(held(self.arrays.sizes[at]) for at in range(len(Size)))
        rows, columns = _parts(size, Size.ROWS, Size.TILE_ROWS), _parts(size, Size.COLUMNS, Size.TILE_COLUMNS)
        tiles = held(_parts(size, Size.IMAGES, Size.TILE_IMAGES) * rows * columns)
        start, end = (held(tiles * at // workers) for at in (self.worker, self.worker + 1))
        with T.serial(end - start) as index:
            at = held(start + index)
            image = held(at // (rows * columns) * size[Size.TILE_IMAGES])
            row = held(at // columns % rows * size[Size.TILE_ROWS])
            column = held(at % columns * size[Size.TILE_COLUMNS])
            first = (image, held(row + size[Size.FIRST_ROW]), held(column + size[Size.FIRST_COLUMN]))
            extent = (
                held(T.min(size[Size.TILE_IMAGES], size[Size.IMAGES] - image)),
                held(T.min(size[Size.TILE_ROWS], size[Size.ROWS] - row)),
                held(T.min(size[Size.TILE_COLUMNS], size[Size.COLUMNS] - column)),
            )
            _Tile(self.taps, self.arrays, self.worker, size, first, extent).write()


@dataclass(frozen=True, slots=True)
class _Tile:
    """Neighbouring pixels of a phase, of some images."""

    taps: Taps
    arrays: _Arrays
    worker: Expr
    size: tuple[Expr, ...]
    first: tuple[Expr, Expr, Expr]  # image, row, column
    extent: tuple[Expr, Expr, Expr]

    def write(self) -> None:
        taps, size = self.taps, self.size
        self._places()
        self._lists()
        channels = size[Size.CHANNELS]
        blocks = held((size[Size.OUT_CHANNELS] + taps.block - 1) // taps.block)
        with T.serial(size[Size.GROUPS]) as group, T.serial(blocks) as block:
            self._fill(group, block)
            with T.serial(taps.turns) as turn, T.serial(channels) as channel:
                line = held((group * blocks + block) * taps.turns + turn)
                self._multiply(
                    held(group * channels + channel),
                    held((line * channels + channel) * (taps.registers * taps.lanes)),
                    turn,
                )
        self._write_out()

    @property
    def _pitch(self) -> Expr:
        """Cells from one row to the next."""
        return self.size[Size.TILE_COLUMNS] + (self.taps.columns - 1)

    @property
    def _image_pitch(self) -> Expr:
        return (self.size[Size.TILE_ROWS] + (self.taps.rows - 1)) * self._pitch

    @property
    def _count(self) -> Expr:
        return self.extent[0] * self.extent[1] * self.extent[2]

    def _table(self, which: int, at: Expr) -> list[Expr]:
        return [self.worker, self.size[Size.CAPACITY] * which + at]

    def _places(self) -> None:
        """The cell and the pixel of each place."""
        tables, size, lanes = self.arrays.tables, self.size, self.taps.lanes
        (image, row, column), (_, rows, columns) = self.first, self.extent
        pitch, image_pitch = held(self._pitch), held(self._image_pitch)
        with T.serial(self.extent[0]) as i, T.serial(rows) as y:
            place = held((i * rows + y) * columns)
            cell = held(i * image_pitch + y * pitch)
            line = (image + i) * size[Size.HEIGHT] + (row + y) * size[Size.STRIDE_Y] + size[Size.ORIGIN_Y]
            pixel = held(line * size[Size.WIDTH] + column * size[Size.STRIDE_X] + size[Size.ORIGIN_X])
            with T.serial(columns) as x:
                put(tables, T.cast(cell + x, "int32"), *self._table(_CELLS, place + x))
                put(tables, T.cast(pixel + x * size[Size.STRIDE_X], "int32"), *self._table(_PIXELS, place + x))
        rest = T.ramp(held(size[Size.CAPACITY] * _GATHERED + self._count), 1, lanes)
        put(tables, _broadcast(0, lanes, "int32"), self.worker, rest)

    def _lists(self) -> None:
        """The cells of each channel's open places, and zeros for their sums."""
        arrays, size = self.arrays, self.size
        tables, count, words = arrays.tables, held(self._count), size[Size.WORDS]
        all_words = held(words * size[Size.GROUPS])
        with T.serial(all_words) as word:
            with T.serial(count) as place:
                pixel = T.cast(tables[tuple(self._table(_PIXELS, place))], "int64")
                put(tables, arrays.words[pixel * all_words + word], *self._table(_GATHERED, place))
            in_group = held(word % words * BITS)
            channel = held(word // words * size[Size.CHANNELS] + in_group)
            with T.serial(T.min(T.int64(BITS), size[Size.CHANNELS] - in_group)) as bit:
                self._list(held(channel + bit), held(T.shift_left(T.int32(1), T.cast(bit, "int32")), "int32"), count)

    def _list(self, channel: Expr, bit: Expr, count: Expr) -> None:
        arrays, capacity, lanes = self.arrays, self.size[Size.CAPACITY], self.taps.lanes
        tables, found = arrays.tables, stack(1, dtype="int64")
        zeros = _broadcast(0, lanes, "int32")
        first = held(channel * capacity)
        put(found, T.int64(0), 0)
        with T.serial((count + lanes - 1) // lanes) as part:
            gathered = tables[self.worker, T.ramp(capacity * _GATHERED + part * lanes, 1, lanes)]
            cells = tables[self.worker, T.ramp(capacity * _CELLS + part * lanes, 1, lanes)]
            wanted = tirx.NE(T.bitwise_and(gathered, T.broadcast(bit, lanes)), zeros)
            put(arrays.lists, _compressed(cells, wanted, lanes), self.worker, T.ramp(first + found[0], 1, lanes))
            put(found, found[0] + _ones(wanted, lanes), 0)
        # The last few places that are treated together may be none: any cell will do for those.
        put(arrays.lists, zeros, self.worker, T.ramp(first + found[0], 1, lanes))
        put(tables, T.cast(found[0], "int32"), *self._table(_LENGTHS, channel))
        with T.serial((found[0] + lanes - 1) // lanes) as part:
            put(arrays.sums, _broadcast(0.0, lanes), self.worker, T.ramp(first + part * lanes, 1, lanes))

    def _fill(self, group: Expr, block: Expr) -> None:
        """Copy the gradients that the tile's pixels meet, zeros outside the map."""
        taps, size, block_size = self.taps, self.size, self.taps.block
        (image, row, column), (images, rows, columns) = self.first, self.extent
        outputs = size[Size.OUT_CHANNELS]
        filled = held(T.min(T.int64(block_size), outputs - block * block_size))
        left = held(column - (taps.columns - 1))
        width = held(columns + (taps.columns - 1))
        with T.serial(images) as i, T.serial(rows + (taps.rows - 1)) as y:
            line = held(row - (taps.rows - 1) + y)
            there = tirx.And(line >= 0, line < size[Size.OUT_HEIGHT])
            start = held(select(there, T.min(T.max(-left, T.int64(0)), width), width))
            end = held(select(there, T.max(T.min(width, size[Size.OUT_WIDTH] - left), start), width))
            target = held((i * self._image_pitch + y * self._pitch) * block_size)
            pixel = held(((image + i) * size[Size.OUT_HEIGHT] + line) * size[Size.OUT_WIDTH] + left)
            source = held(pixel * (outputs * size[Size.GROUPS]) + group * outputs + block * block_size)
            self._zeros(target, T.int64(0), start)
            self._copy(source, target, start, end, filled)
            self._zeros(target, end, width)

    def _zeros(self, target: Expr, start: Expr, end: Expr) -> None:
        taps = self.taps
        with T.serial(end - start) as x:
            for vector in range(taps.vectors):
                where = T.ramp(target + (start + x) * taps.block + vector * taps.lanes, 1, taps.lanes)
                put(self.arrays.tile, _broadcast(0.0, taps.lanes), self.worker, where)

    def _copy(self, source: Expr, target: Expr, start: Expr, end: Expr, filled: Expr) -> None:
        taps, grad, tile = self.taps, self.arrays.grad, self.arrays.tile
        all_outputs = held(self.size[Size.OUT_CHANNELS] * self.size[Size.GROUPS])
        with T.If(filled == taps.block):
            with T.Then(), T.serial(end - start) as x:
                for vector in range(taps.vectors):
                    at = vector * taps.lanes
                    value = grad[T.ramp(source + (start + x) * all_outputs + at, 1, taps.lanes)]
                    put(tile, value, self.worker, T.ramp(target + (start + x) * taps.block + at, 1, taps.lanes))
            with T.Else(), T.serial(end - start) as x, T.serial(taps.block) as lane:
                at = source + (start + x) * all_outputs + T.cast(lane, "int64")
                value = T.if_then_else(lane < filled, grad[at], f32(0.0))
                put(tile, value, self.worker, target + (start + x) * taps.block + lane)

    def _multiply(self, channel: Expr, weights: Expr, turn: Expr) -> None:
        """Add a channel's products with a block of output channels, or with one row of taps, to its sums."""
        taps, arrays, lanes = self.taps, self.arrays, self.taps.lanes
        first = held(channel * self.size[Size.CAPACITY])
        length = T.cast(arrays.tables[tuple(self._table(_LENGTHS, channel))], "int64")
        pitch, last = held(self._pitch * taps.block), taps.rows - 1
        rows = [held(pitch * (last - (row if taps.whole else turn))) for row in range(taps.rows_at_once)]
        registers = [
            _kept(arrays.packed[T.ramp(weights + at * lanes, 1, lanes)], lanes) for at in range(taps.registers)
        ]
        with T.serial((length + (TOGETHER - 1)) // TOGETHER) as some:
            here = held(first + some * TOGETHER)
            for line in range(_AHEAD):
                _fetch(arrays.packed, weights + (some * _AHEAD + (line + taps.registers)) * lanes)
            cells = [held(T.cast(arrays.lists[self.worker, here + k], "int64") * taps.block) for k in range(TOGETHER)]
            sums = _summed(self._products(cells, rows, registers), lanes)
            where = T.ramp(here, 1, TOGETHER)
            put(arrays.sums, arrays.sums[self.worker, where] + sums, self.worker, where)

    def _products(self, cells: Sequence[Expr], rows: Sequence[Expr], registers: Sequence[Buffer]) -> list[Buffer]:
        """For each cell the sums of weights times gradients, lane by lane."""
        taps, lanes = self.taps, self.taps.lanes
        whole = T.ramp(0, 1, lanes)
        totals = [[stack(lanes) for _ in range(taps.chains)] for _ in cells]
        for at, register in enumerate(registers):
            tap, vector = divmod(at, taps.vectors)
            row, column = divmod(tap, taps.columns)
            offset = (taps.columns - 1 - column) * taps.block + vector * lanes
            for cell, chains in zip(cells, totals, strict=True):
                grad = self.arrays.tile[self.worker, T.ramp(cell + rows[row] + offset, 1, lanes)]
                total, product = chains[at % taps.chains], register[whole] * grad
                put(total, product if at < taps.chains else total[whole] + product, whole)
        return [
            chains[0] if len(chains) == 1 else _kept(chains[0][whole] + chains[1][whole], lanes) for chains in totals
        ]

    def _write_out(self) -> None:
        """The results of a vector of channels at their cells, then line by line into the array."""
        arrays, size, lanes = self.arrays, self.size, self.taps.lanes
        channels = held(size[Size.CHANNELS] * size[Size.GROUPS])
        count = held(self._count)
        with T.serial((channels + lanes - 1) // lanes) as part:
            some = held(T.min(T.int64(lanes), channels - part * lanes))
            with T.serial(count) as place:
                cell = held(T.cast(arrays.tables[tuple(self._table(_CELLS, place))], "int64") * lanes)
                put(arrays.dense, _broadcast(0.0, lanes), self.worker, T.ramp(cell, 1, lanes))
            with T.serial(some) as lane:
                channel = held(part * lanes + lane)
                first = held(channel * size[Size.CAPACITY])
                with T.serial(T.cast(arrays.tables[tuple(self._table(_LENGTHS, channel))], "int64")) as at:
                    cell = T.cast(arrays.lists[self.worker, first + at], "int64")
                    put(arrays.dense, arrays.sums[self.worker, first + at], self.worker, cell * lanes + lane)
            with T.serial(count) as place:
                cell = held(T.cast(arrays.tables[tuple(self._table(_CELLS, place))], "int64") * lanes)
                pixel = T.cast(arrays.tables[tuple(self._table(_PIXELS, place))], "int64")
                target = held(pixel * channels + part * lanes)
                self._store(cell, target, some)

    def _store(self, cell: Expr, target: Expr, some: Expr) -> None:
        arrays, lanes = self.arrays, self.taps.lanes
        with T.If(some == lanes):
            with T.Then():
                put(arrays.grad_x, arrays.dense[self.worker, T.ramp(cell, 1, lanes)], T.ramp(target, 1, lanes))
            with T.Else(), T.serial(some) as lane:
                put(arrays.grad_x, arrays.dense[self.worker, cell + lane], target + lane)


def _parts(size: Sequence[Expr], extent: Size, tile: Size) -> Expr:
    return held((size[extent] + size[tile] - 1) // size[tile])


def _kept(vector: Expr, lanes: int) -> Buffer:
    register = stack(lanes)
    put(register, vector, T.ramp(0, 1, lanes))
    return register


def _broadcast(value: float, lanes: int, dtype: str = "float32") -> Expr:
    return T.broadcast(tirx.const(value, dtype), lanes)


def _compressed(values: Expr, wanted: Expr, lanes: int) -> Expr:
    """The wanted values, then zeros."""
    return T.call_llvm_pure_intrin(
        f"int32x{lanes}", "llvm.experimental.vector.compress", values, wanted, _broadcast(0, lanes, "int32")
    )


def _ones(mask: Expr, lanes: int) -> Expr:
    bits = tirx.call_intrin(f"int{lanes}", "tirx.reinterpret", mask)
    return T.cast(T.call_llvm_pure_intrin(f"int{lanes}", f"llvm.ctpop.i{lanes}", bits), "int64")


def _fetch(buffer: Buffer, index: Expr) -> None:
    """Bring a cache line nearer; an address outside the array does no harm."""
    arguments = (T.int32(0), T.int32(3), T.int32(1))  # to read, into the first level, data
    T.evaluate(tirx.call_llvm_intrin("void", "llvm.prefetch.p0", T.address_of(buffer[index]), *arguments))


def _summed(totals: Sequence[Buffer], lanes: int) -> Expr:
    """The sums over the lanes of four vectors, as a vector of four."""
    first, second, third, fourth = totals
    in_turn, in_pairs = (0, lanes, 1, lanes + 1), (0, 1, lanes, lanes + 1)
    total = _folded(_folded(first, second, in_turn, lanes), _folded(third, fourth, in_turn, lanes), in_pairs, lanes)
    while lanes > TOGETHER:
        lanes //= 2
        whole = total[T.ramp(0, 1, 2 * lanes)]
        low, high = (T.Shuffle([whole], [T.int32(at + lane) for lane in range(lanes)]) for at in (0, lanes))
        total = _kept(low + high, lanes)
    return total[T.ramp(0, 1, TOGETHER)]


def _folded(left: Buffer, right: Buffer, places: Sequence[int], lanes: int) -> Buffer:
    """In each four lanes those places of two vectors, the right one's counted from `lanes`, plus the places two on."""
    vectors = [buffer[T.ramp(0, 1, lanes)] for buffer in (left, right)]
    low, high = (
        T.Shuffle(vectors, [T.int32(first + place + on) for first in range(0, lanes, 4) for place in places])
        for on in (0, 2)
    )
    return _kept(low + high, lanes)
