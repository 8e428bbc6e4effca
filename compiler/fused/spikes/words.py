"""Kernels between spikes as numbers, the channels last, and spikes as words."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum

from compiler.fused.cpu_cell import stack
from compiler.fused.emit import Buffer, Expr, T, argument, kernel, put, select, tirx
from compiler.fused.population import Activation
from compiler.fused.spikes.geometry import BITS

FEW = 8  # channels from which a row fills a vector better than neighbouring rows do
LANES = 16  # rows of few channels, or words, that one turn of a loop treats
_ONE = {Activation.F32: ("int32", 0x3F800000), Activation.BF16: ("int16", 0x3F80)}  # the bits of 1.0


class WordName(StrEnum):
    """The kernels and their arguments. A row is one group's channels of one pixel.

    X (rows * channels,) holds the values' bits as integers of their size, W int32 (rows * ceil(channels / 32),).
    S int64 (parts, 2): a part is a run of rows that one thread treats; afterwards S[0] sums up all parts.

    pack     X, W, S, channels: S counts the ones; its second column is not 0 if a value was neither 0 nor 1
    expand   W, X, channels, parts: 1 or 0 for each bit
    count    W, S: S counts the ones; its second column is 0
    """

    PACK = "pack"
    EXPAND = "expand"
    COUNT = "count"


def word_kernel(name: WordName, activation: Activation, width: int, *, parallel: bool) -> tirx.PrimFunc:
    """One kernel for values of that type. `width`: the `pack_width` of the channels; `count` does not depend on it."""
    writer = _Writer(activation, width, parallel)
    bodies = {WordName.PACK: writer.pack, WordName.EXPAND: writer.expand, WordName.COUNT: writer.count}
    return kernel(name, bodies[name])


def pack_width(channels: int) -> int:
    """What a kernel is compiled for: a row's channels where they are few, else the lanes that hold a word's."""
    return channels if channels < FEW else 1 << (min(channels, BITS) - 1).bit_length()


@dataclass(frozen=True, slots=True)
class _Writer:
    activation: Activation
    width: int
    parallel: bool

    def pack(self) -> None:
        dtype, one = _ONE[self.activation]
        count, length, parts = T.int64(), T.int64(), T.int64()
        x, words = argument("x", [count], dtype), argument("words", [length], "int32")
        sums = argument("sums", [parts, 2], "int64")
        channels = held(T.arg("channels", T.int64()))
        packer = _Packer(x, words, sums, channels, one)
        with self._runs(count // channels, parts) as (part, first, last):
            put(sums, T.int64(0), part, 0)
            put(sums, T.int64(0), part, 1)
            if self.width < FEW:
                packer.few(self.width, part, first, last)
            else:
                packer.many(self.width, part, first, last)
        _total(sums)

    def expand(self) -> None:
        dtype, one = _ONE[self.activation]
        count, length = T.int64(), T.int64()
        words, x = argument("words", [length], "int32"), argument("x", [count], dtype)
        channels = held(T.arg("channels", T.int64()))
        expander = _Expander(words, x, channels, one)
        with self._runs(count // channels, T.arg("parts", T.int64())) as (_, first, last):
            if self.width < FEW:
                expander.few(self.width, first, last)
            else:
                expander.many(first, last)

    def count(self) -> None:
        length, parts = T.int64(), T.int64()
        words, sums = argument("words", [length], "int32"), argument("sums", [parts, 2], "int64")
        with self._runs(length, parts) as (part, first, last):
            ones = _zeros(LANES, "int32")
            blocks = held((last - first) // LANES)
            with T.serial(blocks) as block:
                bits = _popcount(words[_ramp(first + block * LANES, LANES)], LANES)
                put(ones, ones[_all(LANES)] + bits, _all(LANES))
            put(sums, T.cast(_reduced("add", ones[_all(LANES)], LANES, "int32"), "int64"), part, 0)
            put(sums, T.int64(0), part, 1)
            with T.serial(last - first - blocks * LANES) as rest:
                bits = _popcount(words[first + blocks * LANES + rest], 1)
                put(sums, sums[part, 0] + T.cast(bits, "int64"), part, 0)
        _total(sums)

    @contextmanager
    def _runs(self, rows: Expr, parts: Expr) -> Iterator[tuple[Expr, Expr, Expr]]:
        """The statement inside for each part: its number, its first row, and the one after its last."""
        length = held((rows + parts * LANES - 1) // (parts * LANES) * LANES)
        with T.parallel(parts) if self.parallel else T.serial(parts) as part:
            first = held(T.min(part * length, rows))
            yield part, first, held(T.min(first + length, rows))


@dataclass(frozen=True, slots=True)
class _Packer:
    """Packs the rows of one part.

    Ones are found by the bits of 1.0; what the other values are beside a sign is gathered for the check.
    """

    x: Buffer
    words: Buffer
    sums: Buffer
    channels: Expr
    one: int

    def few(self, channels: int, part: Expr, first: Expr, last: Expr) -> None:
        """Rows in the lanes."""
        wrong, ones = _zeros(LANES, self.x.dtype), _zeros(LANES, "int32")
        blocks = held((last - first) // LANES)
        with T.serial(blocks) as block:
            row = held(first + block * LANES)
            word = _zeros(LANES, "int32")
            for channel in range(channels):
                value = self.x[T.ramp(row * channels + channel, channels, LANES)]
                bit = self._fired(value, _vector(1 << channel, LANES, "int32"), wrong, LANES)
                put(word, word[_all(LANES)] | bit, _all(LANES))
            put(self.words, word[_all(LANES)], _ramp(row, LANES))
            put(ones, ones[_all(LANES)] + _popcount(word[_all(LANES)], LANES), _all(LANES))
        self._add(part, _reduced("add", ones[_all(LANES)], LANES, "int32"), wrong, LANES)
        self._slow(part, held(first + blocks * LANES), last)

    def many(self, width: int, part: Expr, first: Expr, last: Expr) -> None:
        """A word's channels in the lanes; beyond a row's end they read its neighbour, whose values count as much."""
        wrong, ones = _zeros(width, self.x.dtype), stack(1, dtype="int32")
        columns = held((self.channels + BITS - 1) // BITS)
        over = (columns - 1) * BITS + width - self.channels
        rows = self.x.shape[0] // self.channels
        safe = held(T.max(first, T.min(last, rows - (over + self.channels - 1) // self.channels)))
        put(ones, T.int32(0), 0)
        with T.serial(safe - first) as row, T.serial(columns) as column:
            value = self.x[_ramp((first + row) * self.channels + column * BITS, width)]
            bits = _reduced("or", self._fired(value, _bits(width), wrong, width), width, "int32")
            word = held(T.bitwise_and(bits, self._valid(column)), "int32")
            put(self.words, word, (first + row) * columns + column)
            put(ones, ones[0] + _popcount(word, 1), 0)
        self._add(part, ones[0], wrong, width)
        self._slow(part, safe, last)

    def _slow(self, part: Expr, first: Expr, last: Expr) -> None:
        """Rows too near to the end of the array for a vector."""
        wrong, word = _zeros(1, self.x.dtype), stack(1, dtype="int32")
        columns = held((self.channels + BITS - 1) // BITS)
        with T.serial(last - first) as row, T.serial(columns) as column:
            put(word, T.int32(0), 0)
            with T.serial(T.min(T.int64(BITS), self.channels - column * BITS)) as lane:
                value = self.x[(first + row) * self.channels + column * BITS + lane]
                bit = self._fired(value, T.shift_left(T.int32(1), T.cast(lane, "int32")), wrong, 1)
                put(word, word[0] | bit, 0)
            put(self.words, word[0], (first + row) * columns + column)
            put(self.sums, self.sums[part, 0] + T.cast(_popcount(word[0], 1), "int64"), part, 0)
        self._add(part, T.int32(0), wrong, 1)

    def _fired(self, value: Expr, bit: Expr, wrong: Buffer, lanes: int) -> Expr:
        dtype = self.x.dtype
        one, unsigned = value == _vector(self.one, lanes, dtype), T.shift_left(value, _vector(1, lanes, dtype))
        put(wrong, wrong[_all(lanes)] | select(one, _vector(0, lanes, dtype), unsigned), _all(lanes))
        return select(one, bit, _vector(0, lanes, "int32"))

    def _valid(self, column: Expr) -> Expr:
        """The bits of a word that stand for channels."""
        missing = T.max(T.int64(0), (column + 1) * BITS - self.channels)
        return T.cast(T.shift_right(T.uint32(2**BITS - 1), T.cast(missing, "uint32")), "int32")

    def _add(self, part: Expr, ones: Expr, wrong: Buffer, lanes: int) -> None:
        put(self.sums, self.sums[part, 0] + T.cast(ones, "int64"), part, 0)
        found = _reduced("or", wrong[_all(lanes)], lanes, self.x.dtype)
        put(self.sums, self.sums[part, 1] | T.cast(found, "int64"), part, 1)


@dataclass(frozen=True, slots=True)
class _Expander:
    """Expands the rows of one part."""

    words: Buffer
    x: Buffer
    channels: Expr
    one: int

    def few(self, channels: int, first: Expr, last: Expr) -> None:
        """Rows in the lanes."""
        blocks = held((last - first) // LANES)
        with T.serial(blocks) as block:
            row = held(first + block * LANES)
            for channel in range(channels):
                fired = (self.words[_ramp(row, LANES)] & _vector(1 << channel, LANES, "int32")) != self._zero(LANES)
                put(self.x, self._value(fired, LANES), T.ramp(row * channels + channel, channels, LANES))
        with T.serial(last - first - blocks * LANES) as rest:
            row = held(first + blocks * LANES + rest)
            self._slow(row * channels, self.words[row], T.int64(channels))

    def many(self, first: Expr, last: Expr) -> None:
        """A word's channels in the lanes."""
        columns = held((self.channels + BITS - 1) // BITS)
        with T.serial(last - first) as row, T.serial(columns) as column:
            word = held(self.words[(first + row) * columns + column], "int32")
            start = held((first + row) * self.channels + column * BITS)
            with T.If(self.channels - column * BITS >= BITS):
                with T.Then():
                    fired = (_vector(word, BITS, "int32") & _bits(BITS)) != self._zero(BITS)
                    put(self.x, self._value(fired, BITS), _ramp(start, BITS))
                with T.Else():
                    self._slow(start, word, self.channels - column * BITS)

    def _slow(self, start: Expr, word: Expr, channels: Expr) -> None:
        with T.serial(channels) as lane:
            fired = T.bitwise_and(T.shift_right(word, T.cast(lane, "int32")), T.int32(1)) != T.int32(0)
            put(self.x, self._value(fired, 1), start + lane)

    def _zero(self, lanes: int) -> Expr:
        return _vector(0, lanes, "int32")

    def _value(self, fired: Expr, lanes: int) -> Expr:
        return select(fired, _vector(self.one, lanes, self.x.dtype), _vector(0, lanes, self.x.dtype))


def held(value: Expr, dtype: str = "int64") -> Expr:
    """The value in a register: TVM would put its terms into every address and simplify each for seconds."""
    register = stack(1, dtype=dtype)
    put(register, value, 0)
    return register[0]


def _total(sums: Buffer) -> None:
    with T.serial(sums.shape[0] - 1) as part:
        put(sums, sums[0, 0] + sums[part + 1, 0], 0, 0)
        put(sums, sums[0, 1] | sums[part + 1, 1], 0, 1)


def _zeros(lanes: int, dtype: str) -> Buffer:
    buffer = stack(lanes, dtype=dtype)
    put(buffer, _vector(0, lanes, dtype), _all(lanes))
    return buffer


def _vector(value: Expr | int, lanes: int, dtype: str) -> Expr:
    scalar = T.cast(T.int32(value), dtype) if isinstance(value, int) else value
    return scalar if lanes == 1 else T.broadcast(scalar, lanes)


def _ramp(first: Expr, lanes: int) -> Expr:
    return T.ramp(first, T.int64(1), lanes)


def _all(lanes: int) -> Expr | int:
    """Each lane of a vector on the stack."""
    return 0 if lanes == 1 else T.ramp(0, 1, lanes)


def _bits(lanes: int) -> Expr:
    """1 << lane."""
    return T.shift_left(_vector(1, lanes, "int32"), T.ramp(0, 1, lanes))


def _popcount(words: Expr, lanes: int) -> Expr:
    vector, suffix = ("int32", "i32") if lanes == 1 else (f"int32x{lanes}", f"v{lanes}i32")
    return T.call_llvm_pure_intrin(vector, f"llvm.ctpop.{suffix}", words)


def _reduced(operation: str, vector: Expr, lanes: int, dtype: str) -> Expr:
    """One value of all lanes."""
    if lanes == 1:
        return vector
    bits = dtype.removeprefix("int")
    return T.call_llvm_pure_intrin(dtype, f"llvm.vector.reduce.{operation}.v{lanes}i{bits}", vector)
