"""Lays the weights of a layer out for the forward pass by events: a row for each tap and input channel."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from compiler.fused.cpu_cell import stack
from compiler.fused.emit import Buffer, Expr, T, argument, kernel, put, tirx
from compiler.fused.spikes.words import held


class RowSizes(NamedTuple):
    """Numbers that the kernel takes first, in this order; channels and outputs are those of one group."""

    groups: Expr | int
    channels: Expr | int
    outputs: Expr | int
    kernel_rows: Expr | int
    kernel_columns: Expr | int
    blocks: Expr | int
    chunks: Expr | int
    chunk: Expr | int


def forward_rows_kernel(name: str, *, lanes: int, vectors: int, parallel: bool) -> tirx.PrimFunc:
    """rows[g, b, k, ky, kx, c, o] = weight[g * outputs + b * width + o, ky, kx, k * chunk + c].

    width is vectors * lanes. Outputs beyond a group's last one repeat it; rows of channels that do not exist are not
    written. Arguments: `RowSizes`, weight, rows. Shapes: weight (groups * outputs, kernel rows, kernel columns,
    channels), rows (groups, blocks, chunks, kernel rows, kernel columns, chunk, width), both flat.
    """

    def body() -> None:
        sizes = RowSizes(*(T.arg(name, T.int64()) for name in RowSizes._fields))
        weight, rows = argument("weight", [T.int64()]), argument("rows", [T.int64()])
        taps = held(sizes.kernel_rows * sizes.kernel_columns)
        tasks = sizes.groups * sizes.blocks * sizes.chunks * taps
        with T.parallel(tasks) if parallel else T.serial(tasks) as task:
            tap, chunk = held(task % taps), held(task // taps % sizes.chunks)
            block = held(task // (taps * sizes.chunks))
            group, first = held(block // sizes.blocks), held(block % sizes.blocks * (vectors * lanes))
            before = held(chunk * sizes.chunk)
            step = held(taps * sizes.channels)
            source = held(group * sizes.outputs * step + tap * sizes.channels + before)
            rest = held(sizes.outputs - 1 - first)  # outputs beyond the block's first one
            part = _Part(weight, rows, lanes, vectors, source + first * step, step, rest, task * sizes.chunk)
            part.write(held(T.min(sizes.chunk, sizes.channels - before)))

    return kernel(name, body)


@dataclass(frozen=True, slots=True)
class _Part:
    """One tap of one chunk and block."""

    weight: Buffer
    rows: Buffer
    lanes: int
    vectors: int
    source: Expr  # the first output's weights
    step: Expr  # from one output to the next
    rest: Expr
    target: Expr  # number of the first row

    def write(self, channels: Expr) -> None:
        lanes, width = self.lanes, self.vectors * self.lanes
        whole = held(channels // lanes)
        with T.serial(self.vectors) as vector:
            with T.serial(whole) as square:
                self._square(held(vector * lanes), held(square * lanes))
            with T.serial(channels - whole * lanes) as channel, T.serial(lanes) as lane:
                value = self.weight[self._of(vector * lanes + lane) + whole * lanes + channel]
                put(self.rows, value, (self.target + whole * lanes + channel) * width + vector * lanes + lane)

    def _of(self, output: Expr) -> Expr:
        return self.source + T.min(output, self.rest) * self.step

    def _square(self, output: Expr, channel: Expr) -> None:
        """As many outputs as channels, turned over in registers."""
        lanes, width = self.lanes, self.vectors * self.lanes
        values = []
        for lane in range(lanes):
            index = held(self._of(output + lane) + channel)
            values.append(_register(self.weight[T.ramp(index, T.int64(1), lanes)], lanes))
        target = held((self.target + channel) * width + output)
        for lane, value in enumerate(transposed(values)):
            put(self.rows, value, T.ramp(target + lane * width, T.int64(1), lanes))


def transposed(rows: list[Expr]) -> list[Expr]:
    """The columns of a square of vectors, whose side is a power of two.

    Squares of two, then four... rows and columns exchange the two quarters off their diagonals.
    """
    lanes, side = len(rows), 1
    while side < lanes:
        upper = [lane + lanes - side if lane & side else lane for lane in range(lanes)]
        lower = [lane + lanes if lane & side else lane + side for lane in range(lanes)]
        for first in (row for row in range(lanes) if not row & side):
            pair = [rows[first], rows[first + side]]
            rows[first], rows[first + side] = (_shuffled(pair, places) for places in (upper, lower))
        side *= 2
    return rows


def _shuffled(pair: list[Expr], places: list[int]) -> Expr:
    shuffled = tirx.Shuffle(pair, [tirx.IntImm("int32", place) for place in places])
    return _register(shuffled, len(places))


def _register(value: Expr, lanes: int) -> Expr:
    buffer = stack(lanes)
    put(buffer, value, T.ramp(0, 1, lanes))
    return buffer[T.ramp(0, 1, lanes)]
