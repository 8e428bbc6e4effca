"""Kernels between averages of spikes as numbers, the channels last, and the bits of their counts as words."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum

from compiler.fused.cpu_cell import stack
from compiler.fused.emit import Buffer, Expr, T, argument, f32, kernel, put, select, tirx
from compiler.fused.spikes.counts import Counts
from compiler.fused.spikes.events import load, store
from compiler.fused.spikes.geometry import BITS
from compiler.fused.spikes.words import held


class CountWordName(StrEnum):
    """The kernels and their arguments. A row is the channels of one pixel.

    X f32 (rows * channels,) holds k / pixels with whole k; W int32 (planes, rows * ceil(channels / 32)), bit b of
    plane i being bit i of the count k. S int64 (parts, planes + 1): a part is a run of rows that one thread treats;
    afterwards S[0] sums up all parts.

    pack_counts     X, W, S, channels: S counts the ones of each plane; its last column is not 0 if a value was no
                    whole k from 0 to pixels, divided by pixels
    expand_counts   W, X, channels, parts
    """

    PACK = "pack_counts"
    EXPAND = "expand_counts"


def count_word_kernel(name: CountWordName, counts: Counts, *, parallel: bool) -> tirx.PrimFunc:
    """One kernel for averages of so many pixels."""
    writer = _Writer(counts, parallel)
    return kernel(name, writer.pack if name is CountWordName.PACK else writer.expand)


@dataclass(frozen=True, slots=True)
class _Writer:
    counts: Counts
    parallel: bool

    def pack(self) -> None:
        count, length, parts, planes = T.int64(), T.int64(), T.int64(), self.counts.planes
        x, words = argument("x", [count]), argument("words", [planes, length], "int32")
        sums = argument("sums", [parts, planes + 1], "int64")
        channels = held(T.arg("channels", T.int64()))
        with self._parts(count // channels, parts) as (part, first, last):
            ones, wrong, value = stack(planes, dtype="int32"), stack(BITS, dtype="int32"), stack(BITS)
            for plane in range(planes):
                put(ones, T.int32(0), plane)
            put(wrong, _all_lanes(0), _LANES)
            with _words(channels, first, last) as (word, start, valid):
                with T.If(valid >= BITS):
                    with T.Then():
                        put(value, x[_ramp(start)], _LANES)
                    with T.Else():  # such a load takes several times as long
                        put(value, load(x, start, BITS, valid=valid), _LANES)
                numbers = self._numbers(value[_LANES], wrong)
                for plane in range(planes):
                    bits = held(_any(select(_fired(numbers, 1 << plane), _bits(), _all_lanes(0))), "int32")
                    put(words, bits, plane, word)
                    put(ones, ones[plane] + T.call_llvm_pure_intrin("int32", "llvm.ctpop.i32", bits), plane)
            for plane in range(planes):
                put(sums, T.cast(ones[plane], "int64"), part, plane)
            put(sums, T.cast(T.shift_right(T.cast(_any(wrong[_LANES]), "uint32"), T.uint32(31)), "int64"), part, planes)
        with T.serial(parts - 1) as part:
            for column in range(planes + 1):
                put(sums, sums[0, column] + sums[part + 1, column], 0, column)

    def expand(self) -> None:
        count, length = T.int64(), T.int64()
        words, x = argument("words", [self.counts.planes, length], "int32"), argument("x", [count])
        channels = held(T.arg("channels", T.int64()))
        value = stack(BITS)
        parts = T.arg("parts", T.int64())
        with (
            self._parts(count // channels, parts) as (_, first, last),
            _words(channels, first, last) as (word, start, valid),
        ):
            number = _all_lanes(0)
            for plane in range(self.counts.planes):
                there = T.broadcast(held(words[plane, word], "int32"), BITS) & _bits()
                number = number | select(there != _all_lanes(0), _all_lanes(1 << plane), _all_lanes(0))
            put(value, T.cast(number, _VECTOR) * T.broadcast(f32(1.0 / self.counts.pixels), BITS), _LANES)
            with T.If(valid >= BITS):
                with T.Then():
                    put(x, value[_LANES], _ramp(start))
                with T.Else():
                    store(x, value[_LANES], start, BITS, valid=valid)

    def _numbers(self, value: Expr, wrong: Buffer) -> Buffer:
        """The counts; of all that are none, `wrong` gathers negative numbers."""
        pixels, numbers = self.counts.pixels, stack(BITS, dtype="int32")
        scaled = value * T.broadcast(f32(float(pixels)), BITS)
        # Limited, since what other numbers are as integers nobody says; all beyond 0 and `pixels` are found below.
        limited = T.max(T.min(scaled, T.broadcast(f32(pixels + 1.0), BITS)), T.broadcast(f32(-1.0), BITS))
        put(numbers, T.cast(limited, f"int32x{BITS}"), _LANES)
        found = numbers[_LANES]
        beyond = found | (_all_lanes(pixels) - found)
        whole = T.cast(found, _VECTOR) == scaled
        put(wrong, wrong[_LANES] | select(whole, beyond, _all_lanes(-1)), _LANES)
        return numbers

    @contextmanager
    def _parts(self, rows: Expr, parts: Expr) -> Iterator[tuple[Expr, Expr, Expr]]:
        """The statement inside for each part: its number, its first row, and the one after its last."""
        length = held((rows + parts - 1) // parts)
        with T.parallel(parts) if self.parallel else T.serial(parts) as part:
            first = held(T.min(part * length, rows))
            yield part, first, held(T.min(first + length, rows))


@contextmanager
def _words(channels: Expr, first: Expr, last: Expr) -> Iterator[tuple[Expr, Expr, Expr]]:
    """The statement inside for each word of the rows: its place, that of its first value, how many values are left."""
    columns = held((channels + BITS - 1) // BITS)
    with T.serial(last - first) as index, T.serial(columns) as column:
        row = held(first + index)
        yield held(row * columns + column), held(row * channels + column * BITS), held(channels - column * BITS)


def _fired(numbers: Buffer, bit: int) -> Expr:
    return (numbers[_LANES] & _all_lanes(bit)) != _all_lanes(0)


def _any(vector: Expr) -> Expr:
    """The bits that any lane has."""
    return T.call_llvm_pure_intrin("int32", f"llvm.vector.reduce.or.v{BITS}i32", vector)


def _all_lanes(value: int) -> Expr:
    return T.broadcast(T.int32(value), BITS)


def _bits() -> Expr:
    """1 << lane."""
    return T.shift_left(_all_lanes(1), _LANES)


def _ramp(first: Expr) -> Expr:
    return T.ramp(first, T.int64(1), BITS)


_VECTOR = f"float32x{BITS}"
_LANES = T.ramp(0, 1, BITS)  # each lane of a vector on the stack
