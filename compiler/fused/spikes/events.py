"""Kernels that list, pixel by pixel, what is not zero: spikes from words, or gradients with their values."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from compiler.fused.cpu_cell import stack
from compiler.fused.emit import Buffer, Expr, T, argument, f32, kernel, put, tirx
from compiler.fused.spikes.geometry import BITS
from compiler.fused.spikes.words import held

SPARE = 16  # events beyond a run's last one that may be overwritten, so that whole vectors can be stored


class ListSizes(NamedTuple):
    """Numbers that the kernels take first, in this order.

    pixels: of all images. run: pixels whose events follow each other. columns: words, or channels, of one group and
    pixel. chunk: columns that share a list. room: the most events that a list can have of one pixel.
    """

    pixels: Expr | int
    run: Expr | int
    groups: Expr | int
    columns: Expr | int
    chunks: Expr | int
    chunk: Expr | int
    room: Expr | int


def list_kernel(name: str, *, lanes: int, values: bool, parallel: bool) -> tirx.PrimFunc:
    """Lists of the channels of each pixel that are not zero: one list for each group and chunk of its channels.

    An event is the number pixel * C + c of channel c, counted from the chunk's first, with C channels to a chunk. Those
    of a pixel stand from bounds[group, chunk, pixel, 0] to before bounds[group, chunk, pixel, 1], in rising order, and
    those of its neighbour follow, if both are of the same run. With `values` events are read from numbers and these are
    kept beside them; otherwise the source is words, whose channels are 32 to a column.

    Arguments: `ListSizes`, source, bounds, events and, with them, values.
    Shapes, all of them flat: source i32 (pixels, groups * columns) words or f32 numbers; bounds i32 (groups, chunks,
    pixels, 2); events i32 and values f32 (groups, chunks, ceil(pixels / run), run * room + SPARE), used from the front.
    """

    assert lanes <= SPARE

    def body() -> None:
        sizes = ListSizes(*(T.arg(name, T.int64()) for name in ListSizes._fields))
        source = argument("source", [T.int64()], "float32" if values else "int32")
        bounds, events = (argument(name, [T.int64()], "int32") for name in ("bounds", "events"))
        kept = argument("values", [T.int64()]) if values else None
        reader: _Reader = _Numbers(source, events, lanes, kept) if kept is not None else _Words(source, events, lanes)
        runs, lists = held((sizes.pixels + sizes.run - 1) // sizes.run), held(sizes.groups * sizes.chunks)
        # All lists of the same pixels after each other, since these lie together in memory.
        with T.parallel(lists * runs) if parallel else T.serial(lists * runs) as task:
            _list(sizes, reader, bounds, held(task % lists), held(task // lists), runs)

    return kernel(name, body)


def _list(sizes: ListSizes, reader: _Reader, bounds: Buffer, index: Expr, run: Expr, runs: Expr) -> None:
    """One run of one list."""
    before = held(index % sizes.chunks * sizes.chunk)
    columns, skipped = held(T.min(sizes.chunk, sizes.columns - before)), held(index // sizes.chunks * sizes.columns)
    first, at = held(run * sizes.run), stack(1, dtype="int32")
    put(at, T.cast((index * runs + run) * (sizes.run * sizes.room + SPARE), "int32"), 0)
    with T.serial(T.min(sizes.run, sizes.pixels - first)) as place:
        pixel = held(first + place)
        bound = held((index * sizes.pixels + pixel) * 2)
        column = held(pixel * sizes.groups * sizes.columns + skipped + before)
        put(bounds, at[0], bound)
        reader.fill(at, column, columns, held(pixel * sizes.chunk * reader.channels))
        put(bounds, at[0], bound + 1)


class _Reader(Protocol):
    """What the source is made of."""

    def fill(self, at: Buffer, first: Expr, count: Expr, event: Expr) -> None:
        """Append what is not zero of so many columns; `event` is the number of the first one's first channel."""

    @property
    def channels(self) -> int:
        """Of a column."""


@dataclass(frozen=True, slots=True)
class _Words:
    words: Buffer
    events: Buffer
    lanes: int

    @property
    def channels(self) -> int:
        return BITS

    def fill(self, at: Buffer, first: Expr, count: Expr, event: Expr) -> None:
        lanes = self.lanes
        with T.serial(count) as column:
            word = held(T.cast(self.words[first + column], "uint32"), "uint32")
            for shift in range(0, BITS, lanes):
                some = T.bitwise_and(T.shift_right(word, T.uint32(shift)), T.uint32((1 << lanes) - 1))
                bits = T.shift_right(T.broadcast(some, lanes), T.ramp(T.uint32(0), T.uint32(1), lanes))
                fired = T.bitwise_and(bits, T.broadcast(T.uint32(1), lanes)) != T.broadcast(T.uint32(0), lanes)
                spikes = held(T.cast(T.popcount(some), "int32"), "int32")
                numbers = _numbers(event + column * BITS + shift, lanes)
                put(self.events, _packed(numbers, fired, lanes), T.ramp(at[0], T.int32(1), lanes))
                put(at, at[0] + spikes, 0)


@dataclass(frozen=True, slots=True)
class _Numbers:
    numbers: Buffer
    events: Buffer
    lanes: int
    values: Buffer

    @property
    def channels(self) -> int:
        return 1

    def fill(self, at: Buffer, first: Expr, count: Expr, event: Expr) -> None:
        lanes = self.lanes
        with self._vectors(first, count) as (channel, value):
            # By the bits without the sign: LLVM would compare as if there were nothing but numbers.
            bits = T.reinterpret(f"int32x{lanes}", value)
            there = T.shift_left(bits, T.broadcast(T.int32(1), lanes)) != T.broadcast(T.int32(0), lanes)
            ones = T.cast(there, f"int32x{lanes}")
            some = held(T.call_llvm_pure_intrin("int32", f"llvm.vector.reduce.add.v{lanes}i32", ones), "int32")
            place = T.ramp(at[0], T.int32(1), lanes)
            put(self.events, _packed(_numbers(event + channel, lanes), there, lanes), place)
            put(self.values, T.reinterpret(f"float32x{lanes}", _packed(bits, there, lanes)), place)
            put(at, at[0] + some, 0)

    @contextmanager
    def _vectors(self, first: Expr, count: Expr) -> Iterator[tuple[Expr, Expr]]:
        lanes, value = self.lanes, stack(self.lanes)
        with T.serial((count + lanes - 1) // lanes) as vector:
            channel = held(vector * lanes)
            with T.If(count - channel >= lanes):
                with T.Then():
                    put(value, self.numbers[_ramp(first + channel, lanes)], _all(lanes))
                with T.Else():  # such a load takes several times as long
                    put(value, load(self.numbers, first + channel, lanes, valid=count - channel), _all(lanes))
            yield channel, value[_all(lanes)]


def load(buffer: Buffer, index: Expr, lanes: int, *, valid: Expr) -> Expr:
    """A vector of f32 whose first `valid` lanes are read; the others are 0."""
    some, zeros = _first(valid, lanes), T.broadcast(f32(0.0), lanes)
    # Not as a pure call: those may be moved across stores.
    return tirx.call_llvm_intrin(f"float32x{lanes}", "llvm.masked.load", T.address_of(buffer[index]), some, zeros)


def store(buffer: Buffer, value: Expr, index: Expr, lanes: int, *, valid: Expr) -> None:
    """Write the first `valid` lanes of a vector."""
    address = T.address_of(buffer[index])
    T.evaluate(tirx.call_llvm_intrin("void", "llvm.masked.store", value, address, _first(valid, lanes)))


def _packed(value: Expr, chosen: Expr, lanes: int) -> Expr:
    """The chosen lanes of i32, moved to the front; where this is no instruction, LLVM cannot do it with f32."""
    rest = T.broadcast(T.int32(0), lanes)
    return T.call_llvm_pure_intrin(f"int32x{lanes}", "llvm.experimental.vector.compress", value, chosen, rest)


def _numbers(first: Expr, lanes: int) -> Expr:
    return T.ramp(T.cast(first, "int32"), T.int32(1), lanes)


def _first(count: Expr, lanes: int) -> Expr:
    return T.ramp(T.int32(0), T.int32(1), lanes) < T.broadcast(T.cast(count, "int32"), lanes)


def _ramp(first: Expr, lanes: int) -> Expr:
    return T.ramp(first, T.int64(1), lanes)


def _all(lanes: int) -> Expr:
    return T.ramp(0, 1, lanes)
