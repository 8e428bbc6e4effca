"""Gradients of a layer's weights by look-ups: the sum of some gradients for each pattern of spikes, in one register.

Four neighbouring output pixels see 16 patterns of spikes in an input channel. For an output channel, the 16 sums of
their gradients fill a vector, and one permutation of it finds the sums for 16 input channels, under every tap. That
takes an addition for four multiplications and additions, whatever the spikes are. Vectors of 8 hold the patterns of
three pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, fields

from compiler.fused.cpu_cell import stack
from compiler.fused.emit import Buffer, Expr, T, argument, f32, kernel, put, select, tirx
from compiler.fused.spikes.geometry import BITS, Geometry
from compiler.fused.spikes.planes import pixel_pitch, pixel_word_shape, plane_rows
from compiler.fused.spikes.words import held

OUT_CHANNELS = 16  # of a task: a pixel's gradients fill a line of the cache
CHUNK = 64  # tables of an output channel that are used before others: those of a tile fit the first-level cache
AHEAD = 8  # pixel groups: lines of a map are so long that the processor does not fetch what comes next by itself
MULTIPLIED = 3  # one sum in so many uses the multipliers' adders, which the processor has beside the plain ones
TASKS = 32  # that layers of few output channels are cut into, by parts of the chunks with sums of their own
SUMS = 1 << 20  # values that all parts' sums may have together


@dataclass(frozen=True, slots=True)
class _Vectors:
    """What a kind of processor offers."""

    taps: int  # pixels whose patterns index a vector
    outputs: int  # channels whose sums are in registers, for
    inputs: int  # vectors of input channels, or of those at neighbouring taps
    permute: str


_VECTORS = {
    16: _Vectors(4, 8, 3, "llvm.x86.avx512.permvar.sf.512"),
    8: _Vectors(3, 4, 2, "llvm.x86.avx2.permps"),
}


def pattern_taps(lanes: int) -> int:
    """Pixels whose patterns index a vector of so many lanes."""
    return _VECTORS[lanes].taps


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightSizes:
    """The numbers that the kernel takes, in this order: of a layer, of its `pixel_words`, and of the division of work.

    A group of pixels has a table for each output channel. A chunk is a run of such groups, of some maps or a part of
    one; `parts` runs of chunks have sums of their own.
    """

    images: int
    groups: int
    out_channels: int  # of a group
    vectors: int  # that hold the input channels of a group
    taps_y: int
    taps_x: int
    phases: int
    stride_y: int
    out_width: int
    lanes: int  # of a pixel word, all groups together
    group_lanes: int
    line_words: int  # of an image, kernel column and phase
    pitch: int  # pixel groups of a line
    tables: int  # pixel groups of a map
    chunks: int
    chunk_images: int
    pieces: int  # chunks of a map
    piece: int  # pixel groups of a map in a chunk
    parts: int

    @classmethod
    def of(cls, geometry: Geometry, lanes: int) -> WeightSizes:
        """Those of a layer, for vectors of so many lanes."""
        taps = pattern_taps(lanes)
        pitch = pixel_pitch(geometry, taps) // taps
        tables = geometry.out_height * pitch
        pieces = -(-tables // CHUNK)
        together = max(1, CHUNK // tables)
        chunks = -(-geometry.images // together) * pieces
        tasks = geometry.groups * -(-geometry.group_out_channels // OUT_CHANNELS)
        taps_y, taps_x = geometry.kernel
        vectors = -(-geometry.group_channels // lanes)
        weights = geometry.out_channels * taps_y * taps_x * vectors * lanes
        return cls(
            images=geometry.images,
            groups=geometry.groups,
            out_channels=geometry.group_out_channels,
            vectors=vectors,
            taps_y=taps_y,
            taps_x=taps_x,
            phases=plane_rows(geometry)[0],
            stride_y=geometry.stride[0],
            out_width=geometry.out_width,
            lanes=BITS * geometry.words,
            group_lanes=BITS * geometry.words_of_group,
            line_words=pixel_word_shape(geometry, taps)[3],
            pitch=pitch,
            tables=tables,
            chunks=chunks,
            chunk_images=together,
            pieces=pieces,
            piece=-(-tables // pieces),
            parts=max(1, min(chunks, -(-TASKS // tasks), SUMS // weights)),
        )

    def table_memory(self, lanes: int) -> int:
        """Values of the tables that all tasks have at a time."""
        tasks = self.groups * -(-self.out_channels // OUT_CHANNELS) * self.parts
        return tasks * _VECTORS[lanes].outputs * CHUNK * lanes

    def numbers(self) -> tuple[int, ...]:
        """As arguments."""
        return tuple(getattr(self, at.name) for at in fields(self))


def weight_lut_kernel(lanes: int, *, parallel: bool) -> tirx.PrimFunc:
    """D[part, o, ky, kx, c] = sum over the part's pixels of grad[n, oy, ox, o] * spike of c under tap (ky, kx).

    A table's entries are sums of the lower two pixels and of the others; the look-ups of a chunk are added one after
    the other, and then to the part's sums. A pixel without a spike of c does not matter, were its gradient infinite.

    Arguments, as one line each: pixel words i32, see `pixel_words`; grad (images, OH * OW, O) f32; D (parts, O, KH,
    KW, vectors * lanes) f32, of which the channels behind the last are 0; scratch memory of `table_memory` f32. Then
    the numbers of `WeightSizes`, i64, and the number 1.0.
    """
    return kernel("weight_lut", lambda: _Writer(lanes, parallel).write())


def weight_sum_kernel(lanes: int, *, parallel: bool) -> tirx.PrimFunc:
    """The parts added up in order: arguments D (parts, rows, vectors * lanes) and the result (rows, channels)."""
    return kernel("weight_sum", lambda: _write_sum(lanes, parallel))


@dataclass(frozen=True, slots=True)
class _Extents:
    """`WeightSizes` within the kernel."""

    images: Expr
    groups: Expr
    out_channels: Expr
    vectors: Expr
    taps_y: Expr
    taps_x: Expr
    phases: Expr
    stride_y: Expr
    out_width: Expr
    lanes: Expr
    group_lanes: Expr
    line_words: Expr
    pitch: Expr
    tables: Expr
    chunks: Expr
    chunk_images: Expr
    pieces: Expr
    piece: Expr
    parts: Expr


@dataclass(frozen=True, slots=True)
class _Arrays:
    words: Buffer
    grad: Buffer
    sums: Buffer
    one: Expr  # a number that the compiler does not know
    tables: Buffer
    memory: Expr  # where the task has those of the chunk at hand: [image, pixel group, output channel, pattern]


@dataclass(frozen=True, slots=True)
class _Chunk:
    """Some pixel groups, and the output channels whose tables are made of them."""

    group: Expr
    out: Expr  # first channel, within the group
    row: Expr  # of its sums
    image: Expr  # the first
    images: Expr
    begin: Expr  # pixel group within each map
    length: Expr


@dataclass(slots=True)
class _Writer:
    """The loops, from a task to a table."""

    lanes: int
    parallel: bool
    vectors: _Vectors = field(init=False)
    sizes: _Extents = field(init=False)
    arrays: _Arrays = field(init=False)

    def write(self) -> None:
        words, grad = argument("words", [T.int64()], "int32"), argument("grad", [T.int64()])
        sums, tables = argument("sums", [T.int64()]), argument("tables", [T.int64()])
        self.sizes = s = _Extents(*(T.arg(at.name, T.int64()) for at in fields(_Extents)))
        one = T.arg("one", T.float32())
        self.vectors = v = _VECTORS[self.lanes]
        blocks = held(_ceil(s.out_channels, OUT_CHANNELS))
        with _each(s.groups * blocks * s.parts, self.parallel) as task:
            memory = held(task * (v.outputs * CHUNK * self.lanes))
            self.arrays = _Arrays(words, grad, sums, one, tables, memory)
            self._task(held(task // s.parts // blocks), held(task // s.parts % blocks), held(task % s.parts))

    def _task(self, group: Expr, block: Expr, part: Expr) -> None:
        """Some output channels of a group, over the pixels of a part."""
        s, outputs = self.sizes, self.vectors.outputs
        first = held(block * OUT_CHANNELS)
        some = held(T.min(T.int64(OUT_CHANNELS), s.out_channels - first))
        row = held((part * s.groups + group) * s.out_channels)
        length = held(s.taps_y * s.taps_x * s.vectors)
        with T.serial(some * length) as at:
            self._put(self.arrays.sums, self._constant(0.0), ((row + first) * length + at) * self.lanes)
        begin = held(part * s.chunks // s.parts)
        end = held((part + 1) * s.chunks // s.parts)
        with T.serial(end - begin) as index, T.serial(_ceil(some, outputs)) as tile:
            out = held(first + tile * outputs)
            self._chunk(held(begin + index), group, out, held(row + out))

    def _chunk(self, index: Expr, group: Expr, out: Expr, row: Expr) -> None:
        s = self.sizes
        image, begin = held(index // s.pieces * s.chunk_images), held(index % s.pieces * s.piece)
        images = held(T.min(s.chunk_images, s.images - image))
        length = held(T.min(s.piece, s.tables - begin))
        chunk = _Chunk(group, out, row, image, images, begin, length)
        with T.serial(images) as at:
            self._tables(chunk, at)
        with T.serial(s.taps_y) as ky:
            first: Expr = T.int64(0)
            for width, count in self._widths():
                with T.serial(count) as tile:
                    self._tile(chunk, ky, held(first + tile * width), width)
                first = held(first + count * width)

    def _widths(self) -> list[tuple[int, Expr]]:
        """Tiles of each width: as many as can be have the full one, the others one stream less."""
        full = self.vectors.inputs
        streams = held(self.sizes.taps_x * self.sizes.vectors)
        missing = held((full - streams % full) % full)
        narrow = held(select(missing * (full - 1) <= streams, missing, T.int64(0)))
        wide = held((streams - narrow * (full - 1)) // full)
        widths = [(full, wide), (full - 1, narrow)]
        return widths if full == 2 else [*widths, (1, held(streams - narrow * (full - 1) - wide * full))]

    def _tables(self, chunk: _Chunk, at: Expr) -> None:
        """The tables of one map, or a part of it."""
        s, v = self.sizes, self.vectors
        channels = held(s.groups * s.out_channels)
        out = held(chunk.group * s.out_channels + chunk.out)
        some = held(T.min(T.int64(v.outputs), s.out_channels - chunk.out))
        steps = [held(pixel * channels) for pixel in range(v.taps)]
        column = held(chunk.begin % s.pitch * v.taps)
        line = held((chunk.image + at) * (s.tables // s.pitch) + chunk.begin // s.pitch)
        first, left = stack(1, dtype="int64"), stack(1, dtype="int64")
        put(first, (line * s.out_width + column) * channels, 0)
        put(left, s.out_width - column, 0)
        with T.serial(chunk.length) as index:
            there = held(T.min(left[0], T.int64(v.taps)))
            # No pattern has pixels behind a line's last, so that it does not matter whose gradients stand for them.
            pixels = [
                held(first[0] + select(there > pixel, step, T.int64(0)) + out) for pixel, step in enumerate(steps)
            ]
            self._fetch(first[0] + AHEAD * v.taps * channels + out, steps)
            self._entries(
                [self._gradients(pixel, some) for pixel in pixels],
                held(self.arrays.memory + (at * chunk.length + index) * v.outputs * self.lanes),
            )
            put(first, first[0] + there * channels, 0)
            put(left, select(left[0] > there, left[0] - there, s.out_width), 0)

    def _fetch(self, first: Expr, steps: Sequence[Expr]) -> None:
        for step in steps:
            place = T.address_of(self.arrays.grad[T.min(first + step, self.arrays.grad.shape[0] - 1)])
            T.evaluate(T.call_llvm_intrin("void", "llvm.prefetch", place, T.int32(0), T.int32(2), T.int32(1)))

    def _gradients(self, place: Expr, some: Expr) -> Expr:
        """Of a pixel, for all tables; channels beyond the last have the last one's, and nobody stores their sums."""
        outputs = self.vectors.outputs
        found = stack(outputs)
        with T.If(some == outputs):
            with T.Then():
                put(found, self.arrays.grad[T.Ramp(place, 1, outputs)], T.Ramp(0, 1, outputs))
            with T.Else(), T.serial(outputs) as o:
                put(found, self.arrays.grad[place + T.min(T.cast(o, "int64"), some - 1)], o)
        return found[T.Ramp(0, 1, outputs)]

    def _entries(self, gradients: Sequence[Expr], to: Expr) -> None:
        """A table for each output channel: sums of the lower two pixels' patterns and of the upper ones'."""
        outputs, none = self.vectors.outputs, T.Broadcast(f32(0.0), self.vectors.outputs)
        low, high = ([none, *_sums(some)] for some in (gradients[:2], gradients[2:]))
        for o in range(outputs):
            below = T.Shuffle(low, [entry % 4 * outputs + o for entry in range(self.lanes)])
            above = T.Shuffle(high, [entry // 4 * outputs + o for entry in range(self.lanes)])
            self._put(self.arrays.tables, below + above, to + o * self.lanes)

    def _tile(self, chunk: _Chunk, ky: Expr, stream: Expr, inputs: int) -> None:
        """All pixel groups of a chunk; a stream of patterns is a kernel column and a vector of input channels."""
        s, outputs = self.sizes, self.vectors.outputs
        plane = held(s.line_words * s.lanes)
        lines, targets = [], []
        for at in range(inputs):
            kx, vector = held((stream + at) // s.vectors), held((stream + at) % s.vectors * self.lanes)
            phase = kx * s.phases + ky % s.stride_y
            lines.append(held(phase * plane + chunk.group * s.group_lanes + vector))
            targets.append(held((ky * s.taps_x + kx) * s.vectors * self.lanes + vector))
        sums = [[self._kept(self._constant(0.0)) for _ in range(inputs)] for _ in range(outputs)]
        with T.serial(chunk.images) as image:
            maps = held((chunk.image + image) * s.taps_x * s.phases * plane)
            position = held(chunk.begin + ky // s.stride_y * s.pitch)
            table = held(self.arrays.memory + image * chunk.length * (outputs * self.lanes))
            with T.serial(chunk.length) as index:
                patterns = self._patterns(held(position + index), maps, lines)
                self._add(sums, held(table + index * (outputs * self.lanes)), patterns)
        length = held(s.taps_y * s.taps_x * s.vectors * self.lanes)
        for o in range(outputs):
            with T.If(chunk.out + o < s.out_channels), T.Then():
                row = held((chunk.row + o) * length)
                for target, added in zip(targets, sums[o], strict=True):
                    place = held(row + target)
                    self._put(self.arrays.sums, self._load(self.arrays.sums, place) + self._load(added), place)

    def _patterns(self, position: Expr, maps: Expr, lines: Sequence[Expr]) -> list[Buffer]:
        """Of a pixel group in the lowest bits; a permutation ignores those above."""
        taps = self.vectors.taps
        word = held(maps + position // (BITS // taps) * self.sizes.lanes)
        shift = held(T.cast(position % (BITS // taps) * taps, "int32"), "int32")
        return [
            self._kept(
                T.shift_right(self._load(self.arrays.words, word + line), T.Broadcast(shift, self.lanes)), "int32"
            )
            for line in lines
        ]

    def _add(self, sums: Sequence[Sequence[Buffer]], table: Expr, patterns: Sequence[Buffer]) -> None:
        lanes = self.lanes
        for o, row in enumerate(sums):
            entries = self._kept(self._load(self.arrays.tables, table + o * lanes))
            for i, (into, pattern) in enumerate(zip(row, patterns, strict=True)):
                found = T.call_llvm_pure_intrin(
                    f"float32x{lanes}", self.vectors.permute, self._load(entries), self._load(pattern)
                )
                if (o * len(patterns) + i) % MULTIPLIED == 0:
                    found = found * T.Broadcast(self.arrays.one, lanes)
                self._put(into, self._load(into) + found)

    def _constant(self, value: float) -> Expr:
        return T.Broadcast(f32(value), self.lanes)

    def _load(self, buffer: Buffer, at: Expr | int = 0) -> Expr:
        return buffer[T.Ramp(at, 1, self.lanes)]

    def _put(self, buffer: Buffer, value: Expr, at: Expr | int = 0) -> None:
        put(buffer, value, T.Ramp(at, 1, self.lanes))

    def _kept(self, value: Expr, dtype: str = "float32") -> Buffer:
        register = stack(self.lanes, dtype=dtype)
        self._put(register, value)
        return register


def _sums(gradients: Sequence[Expr]) -> Sequence[Expr]:
    """Of the patterns 1, 2 and 3 of two pixels, or of pattern 1 of one."""
    return [*gradients, gradients[0] + gradients[1]] if len(gradients) == 2 else gradients


def _write_sum(lanes: int, parallel: bool) -> None:
    parts, rows, pitch, channels = (T.int64() for _ in range(4))
    sums = argument("sums", [parts, rows, pitch])
    result = argument("result", [rows, channels])
    with _each(rows, parallel) as row, T.serial(pitch // lanes) as vector:
        total = stack(lanes)
        at = T.Ramp(vector * lanes, 1, lanes)
        put(total, sums[0, row, at], T.Ramp(0, 1, lanes))
        with T.serial(parts - 1) as part:
            put(total, total[T.Ramp(0, 1, lanes)] + sums[part + 1, row, at], T.Ramp(0, 1, lanes))
        with T.If((vector + 1) * lanes <= channels):
            with T.Then():
                put(result, total[T.Ramp(0, 1, lanes)], row, at)
            with T.Else(), T.serial(channels - vector * lanes) as rest:
                put(result, total[rest], row, vector * lanes + rest)


def _each(count: Expr, parallel: bool) -> AbstractContextManager[Expr]:
    loop: AbstractContextManager[Expr] = T.parallel(count) if parallel else T.serial(count)
    return loop


def _ceil(extent: Expr, parts: Expr | int) -> Expr:
    return (extent + parts - 1) // parts
