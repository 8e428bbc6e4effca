"""The result of a layer of spikes by look-ups: the sum of some weights for each pattern of spikes, in one register.

Four neighbouring input channels of a pixel have 16 patterns of spikes. For an output channel and a tap, the 16 sums of
their weights fill a vector, and one permutation of it finds the sums for 16 output pixels. That takes an addition for
four multiplications and additions, whatever the spikes are. Vectors of 8 hold the patterns of three channels.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, fields
from typing import Generic, TypeVar

from compiler.fused.cpu_cell import stack
from compiler.fused.emit import Buffer, Expr, T, argument, f32, kernel, put, tirx, tvm
from compiler.fused.spikes.geometry import BITS, Geometry
from compiler.fused.spikes.planes import plane_rows, tap_plane_shape
from compiler.fused.spikes.words import held

Number = TypeVar("Number")

CHANNELS = 8  # output channels whose sums are in registers; a power of two that divides the lanes
PARTS = 2  # times as many belong to a task: a pixel's results fill a line of the cache
TABLES = 72  # of an output channel that are used before others: those of all in registers fit the first-level cache
CHUNK = 128  # vectors of pixels that use the tables before others take their place


@dataclass(frozen=True, slots=True)
class _Vectors:
    """What a kind of processor offers."""

    feature: str
    taps: int  # channels whose patterns index a vector
    pixels: int  # vectors of pixels, whose sums for all CHANNELS fit the registers
    permute: str


_VECTORS = {
    16: _Vectors("avx512f", 4, 3, "llvm.x86.avx512.permvar.sf.512"),
    8: _Vectors("avx2", 3, 1, "llvm.x86.avx2.permps"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes(Generic[Number]):
    """The numbers that a kernel takes, in this order: of a layer, and of its `tap_planes`."""

    images: Number
    groups: Number
    channels: Number  # input channels of a group
    words: Number  # of a group
    out_channels: Number  # of a group
    taps_y: Number
    taps_x: Number
    phases: Number  # of lines, under a stride
    length: Number  # of a plane
    out_width: Number
    out_pixels: Number

    def numbers(self) -> tuple[Number, ...]:
        """As arguments."""
        return tuple(getattr(self, at.name) for at in fields(self))


def sizes_of(geometry: Geometry) -> Sizes[int]:
    """The numbers of a layer."""
    return Sizes(
        images=geometry.images,
        groups=geometry.groups,
        channels=geometry.group_channels,
        words=geometry.words_of_group,
        out_channels=geometry.group_out_channels,
        taps_y=geometry.kernel[0],
        taps_x=geometry.kernel[1],
        phases=plane_rows(geometry)[0],
        length=tap_plane_shape(geometry)[-1],
        out_width=geometry.out_width,
        out_pixels=geometry.out_height * geometry.out_width,
    )


def lookup_lanes(target: tvm.target.Target) -> int:
    """f32 values in a vector that the target can permute by variable indices; 0 if it has none."""
    has = tvm.get_global_func("target.target_has_feature")
    return next((lanes for lanes, vectors in _VECTORS.items() if has(vectors.feature, target)), 0)


def forward_lut_kernel(lanes: int, *, bias: bool, parallel: bool) -> tirx.PrimFunc:
    """y[n, p, o] = bias[o] + sum over taps and the channels of o's group of weight[o, ky, kx, c] * spike.

    Each pattern's sum is rounded on its own; TABLES sums are added one after the other, and then to the result.

    Arguments, as one line each: planes i32, see `tap_planes`; weight (O, KH, KW, C / groups) f32; with `bias` that
    (O,); y (images, OH * OW, O). Then the numbers of `Sizes`, i64, and the number 1.0.
    """
    return kernel("forward_lut", lambda: _Writer(lanes, bias, parallel).write())


@dataclass(frozen=True, slots=True)
class _Tile:
    """Output channels whose sums are in registers."""

    first: Expr
    count: Expr
    sums: Expr  # where theirs begin

    def row(self, channel: Expr | int) -> Expr:
        """The channel, or the last one instead of one that is absent."""
        return self.first + T.min(T.int64(channel) if isinstance(channel, int) else channel, self.count - 1)


@dataclass(slots=True)
class _Writer:
    """Declares the arguments and writes the loops.

    A chunk's sums lie in memory by part, vector of pixels, output channel. Blocks of tables are made one after the
    other; each is used for all vectors of the chunk. A unit is one tap's word of channels, up to 32 of them.
    """

    lanes: int
    bias: bool
    parallel: bool
    vectors: _Vectors = field(init=False)
    sizes: Sizes[Expr] = field(init=False)
    arrays: dict[str, Buffer] = field(init=False)
    one: Expr = field(init=False)
    of_image: Expr = field(init=False)  # vectors of pixels
    first: Expr = field(init=False)  # vector of the chunk
    end: Expr = field(init=False)
    group: Expr = field(init=False)
    sums: Buffer = field(init=False)
    tables: Buffer = field(init=False)
    planes: Buffer = field(init=False)  # of each unit of the block: where it begins in an image's planes
    counts: Buffer = field(init=False)  # of each unit: tables

    @property
    def of_word(self) -> int:
        """Tables for 32 channels."""
        return -(-BITS // self.vectors.taps)

    @property
    def units(self) -> int:
        """Of a block."""
        return TABLES // self.of_word

    @property
    def table_step(self) -> int:
        return CHANNELS * self.lanes

    @property
    def part_step(self) -> int:
        return (CHUNK + self.vectors.pixels) * self.table_step

    def write(self) -> None:
        self.vectors = _VECTORS[self.lanes]
        self.arrays = {"planes": argument("planes", [T.int64()], "int32")}
        for name in ("weight", "bias", "y") if self.bias else ("weight", "y"):
            self.arrays[name] = argument(name, [T.int64()])
        self.sizes = sizes = Sizes(**{at.name: T.arg(at.name, T.int64()) for at in fields(Sizes)})
        self.one = T.arg("one", T.float32())  # an unknown number: a known 1 would become a plain addition
        self.of_image = held(_ceil(sizes.out_pixels, self.lanes))
        vectors = held(sizes.images * self.of_image)
        chunks = held(_ceil(vectors, CHUNK))
        of_group = held(_ceil(sizes.out_channels, PARTS * CHANNELS))
        tasks = held(chunks * sizes.groups * of_group)
        loop: AbstractContextManager[Expr] = T.parallel(tasks) if self.parallel else T.serial(tasks)
        with loop as task:
            chunk, rest = held(task // (sizes.groups * of_group)), held(task % (sizes.groups * of_group))
            self.first, self.end = held(chunk * vectors // chunks), held((chunk + 1) * vectors // chunks)
            self.group = held(rest // of_group)
            self._task(held(rest % of_group * (PARTS * CHANNELS)))

    def _task(self, channel: Expr) -> None:
        """A chunk's results for the output channels of the group from one on."""
        self.sums = stack(PARTS * self.part_step)
        self.tables = stack(self.units * self.of_word * self.table_step)
        self.planes, self.counts = stack(self.units, dtype="int64"), stack(self.units, dtype="int64")
        units = held(self.sizes.words * self.sizes.taps_y * self.sizes.taps_x)
        parts = held(T.min(T.int64(PARTS), _ceil(self.sizes.out_channels - channel, CHANNELS)))
        runs = held(_ceil(self.end - self.first, self.vectors.pixels))
        with T.serial(parts) as part:
            tile = self._tile(channel, part)
            self._begin(tile, runs)
            with T.serial(_ceil(units, self.units)) as block:
                first = held(block * self.units)
                count = held(T.min(T.int64(self.units), units - first))
                with T.serial(count) as unit:
                    self._make_tables(tile, held(first + unit), unit)
                with T.serial(runs) as run:
                    self._add(tile, run * self.vectors.pixels, count)
        with T.serial(self.end - self.first) as vector, T.serial(parts) as part:
            self._store(self._tile(channel, part), vector)

    def _tile(self, channel: Expr, part: Expr) -> _Tile:
        left = self.sizes.out_channels - channel - part * CHANNELS
        return _Tile(
            held(self.group * self.sizes.out_channels + channel + part * CHANNELS),
            held(T.min(T.int64(CHANNELS), left)),
            held(part * self.part_step),
        )

    def _begin(self, tile: _Tile, runs: Expr) -> None:
        """A pass of its own: with few channels it takes a quarter less time than to let the first block begin them."""
        with T.serial(runs * self.vectors.pixels) as vector:
            for channel in range(CHANNELS):
                start = self.arrays["bias"][tile.row(channel)] if self.bias else f32(0.0)
                put(self.sums, self._all(start), self._at(self._sum(tile, vector, channel)))

    def _sum(self, tile: _Tile, vector: Expr, channel: int) -> Expr:
        return tile.sums + vector * self.table_step + channel * self.lanes

    def _make_tables(self, tile: _Tile, unit: Expr, place: Expr) -> None:
        sizes, taps = self.sizes, self.vectors.taps
        tap, word = held(unit // sizes.words), held(unit % sizes.words)
        ky, kx = held(tap // sizes.taps_x), held(tap % sizes.taps_x)
        channels = held(T.min(T.int64(BITS), sizes.channels - word * BITS))
        plane = ((self.group * sizes.words + word) * sizes.taps_x + kx) * sizes.phases + ky % sizes.phases
        put(self.planes, plane * sizes.length + ky // sizes.phases * sizes.out_width, place)
        put(self.counts, _ceil(channels, taps), place)
        weight = self.arrays["weight"]
        with T.serial(CHANNELS) as channel:
            row = held((tile.row(channel) * (sizes.taps_y * sizes.taps_x) + tap) * sizes.channels + word * BITS)
            table = held(place * (self.of_word * self.table_step) + channel * self.lanes)
            with T.If(channels == BITS):
                with T.Then():
                    for at in range(self.of_word):
                        some = range(at * taps, min(at * taps + taps, BITS))
                        self._make_table(table + at * self.table_step, [weight[row + c] for c in some])
                with T.Else(), T.serial(_ceil(channels, taps)) as at:
                    ones = [held(_weight(weight, row, at * taps + c, channels), "float32") for c in range(taps)]
                    self._make_table(table + at * self.table_step, ones)

    def _make_table(self, place: Expr, weights: Sequence[Expr]) -> None:
        """Element i becomes the sum of the weights whose bits are set in i."""
        pattern = T.ramp(0, 1, self.lanes)
        total: Expr | None = None
        for bit, weight in enumerate(weights):
            bits = T.bitwise_and(T.shift_right(pattern, self._all(bit)), self._all(1))
            term = self._all(weight) * T.cast(bits, f"float32x{self.lanes}")
            total = term if total is None else total + term
        put(self.tables, total, self._at(place))

    def _add(self, tile: _Tile, vector: Expr, units: Expr) -> None:
        """Add what the block's tables hold for the spikes of neighbouring vectors to their sums."""
        pixels = range(self.vectors.pixels)
        starts = [self._pixels(vector + at) for at in pixels]
        sums = [[self._vector(self._all(f32(0.0))) for _ in range(CHANNELS)] for _ in pixels]
        with T.serial(units) as unit:
            plane, table = held(self.planes[unit]), held(unit * (self.of_word * self.table_step))
            words = [self._vector(self.arrays["planes"][self._at(start + plane)], "int32") for start in starts]
            with T.serial(self.counts[unit]) as at:
                self._look_up(held(table + at * self.table_step), words, sums)
        for at in pixels:
            for channel in range(CHANNELS):
                place = self._at(self._sum(tile, vector + at, channel))
                put(self.sums, self.sums[place] + self._whole(sums[at][channel]), place)

    def _pixels(self, vector: Expr) -> Expr:
        """Where a vector begins in the first plane of its image; one behind the chunk stands for the last."""
        sizes = self.sizes
        index = held(T.min(self.first + vector, self.end - 1))
        image = sizes.groups * sizes.words * sizes.taps_x * sizes.phases * sizes.length
        return held(index // self.of_image * image + index % self.of_image * self.lanes)

    def _look_up(self, table: Expr, words: list[Buffer], sums: list[list[Buffer]]) -> None:
        """The permutation reads the lowest bits of an index only, so a word is the index until it is shifted."""
        dtype, unsigned = f"float32x{self.lanes}", f"uint32x{self.lanes}"
        for channel in range(CHANNELS):
            patterns = self.tables[self._at(table + channel * self.lanes)]
            for at, word in enumerate(words):
                found = T.call_llvm_pure_intrin(dtype, self.vectors.permute, patterns, self._whole(word))
                if (channel * len(words) + at) % 2:  # the multipliers' adders, which there are beside the plain ones
                    found = found * self._all(self.one)
                total = sums[at][channel]
                put(total, self._whole(total) + found, self._at(0))
        for word in words:
            shifted = T.shift_right(T.cast(self._whole(word), unsigned), self._all(T.uint32(self.vectors.taps)))
            put(word, T.cast(shifted, f"int32x{self.lanes}"), self._at(0))

    def _store(self, tile: _Tile, vector: Expr) -> None:
        """Bring the sums of a vector into the order of y, where the channels of a pixel lie together."""
        sizes, y = self.sizes, self.arrays["y"]
        index = held(self.first + vector)
        pixel = held(index % self.of_image * self.lanes)
        stride = held(sizes.groups * sizes.out_channels)
        start = held((index // self.of_image * sizes.out_pixels + pixel) * stride + tile.first)
        results = self._transposed([self.sums[self._at(self._sum(tile, vector, c))] for c in range(CHANNELS)])
        in_vector = self.lanes // CHANNELS  # pixels
        whole = tirx.And(pixel + self.lanes <= sizes.out_pixels, tile.count == CHANNELS)
        with T.If(whole):
            with T.Then():
                for at in range(self.lanes):
                    first = at % in_vector * CHANNELS
                    value = self._whole(results[at // in_vector])
                    if in_vector > 1:
                        value = tirx.Shuffle([value], list(range(first, first + CHANNELS)))
                    put(y, value, T.ramp(start + at * stride, 1, CHANNELS))
            with T.Else():
                copy = stack(self.lanes * CHANNELS)
                for at, result in enumerate(results):
                    put(copy, self._whole(result), self._at(at * self.lanes))
                there = T.min(T.int64(self.lanes), sizes.out_pixels - pixel)
                with T.serial(there) as at, T.serial(tile.count) as channel:
                    put(y, copy[at * CHANNELS + channel], start + at * stride + channel)

    def _transposed(self, rows: list[Expr]) -> list[Buffer]:
        """Vectors of (pixel, channel) from vectors of pixels: each turn puts one more bit of the channel last."""
        found = [self._vector(row) for row in rows]
        half, lanes = CHANNELS // 2, self.lanes
        merged = [lane for pair in zip(range(lanes), range(lanes, 2 * lanes), strict=True) for lane in pair]
        for _ in range(CHANNELS.bit_length() - 1):
            pairs = [[self._whole(found[at]), self._whole(found[at + half])] for at in range(half)]
            found = [
                self._vector(tirx.Shuffle(pair, part)) for pair in pairs for part in (merged[:lanes], merged[lanes:])
            ]
        return found

    def _vector(self, value: Expr, dtype: str = "float32") -> Buffer:
        register = stack(self.lanes, dtype=dtype)
        put(register, value, self._at(0))
        return register

    def _whole(self, register: Buffer) -> Expr:
        return register[self._at(0)]

    def _at(self, first: Expr | int) -> Expr:
        return T.ramp(first, 1, self.lanes)

    def _all(self, value: Expr | int) -> Expr:
        return T.broadcast(value, self.lanes)


def _weight(weight: Buffer, row: Expr, channel: Expr, channels: Expr) -> Expr:
    return T.if_then_else(channel < channels, weight[row + channel], f32(0.0))


def _ceil(extent: Expr, parts: int | Expr) -> Expr:
    return (extent + parts - 1) // parts
