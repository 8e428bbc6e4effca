"""The weight's gradient by events: where an input fired, the gradient of each output that it met is added.

The inputs are cut into tiles. A first kernel lists the spikes of each tile by input channel. A second one holds a
tile's gradient in the first-level cache, bordered by zeros, and walks each list with the sums of all taps in registers:

sum[c, ky, kx, :] += grad[place of the spike - offset of the tap, :]

With a stride, inputs of one phase (position + padding modulo the stride) meet outputs by the same taps, next to each
other: each phase is a layer of stride 1. Tiles and the order of all sums depend on the sizes alone, so threads do not
change the result.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

from compiler.fused.cpu_cell import stack
from compiler.fused.emit import Buffer, Expr, T, argument, f32, kernel, put, select, tirx
from compiler.fused.spikes.weight_tiles import Index, Tile, TileGrid, dealt, integers
from compiler.fused.spikes.words import held


def weight_events_kernel(taps: tuple[int, int], parts: int, lanes: int, parallel: bool) -> tirx.PrimFunc:
    """Sums for a phase with these taps, over `parts` vectors of output channels.

    Arguments: grad (images, OH, OW, O); lists and starts; scratch tile (tasks, values of a tile's gradient); sums
    (splits, groups * blocks of a group, channels of a group, taps, parts * lanes), each split of a run of tiles, task
    split * groups * blocks + block; then i64: `TileGrid`, top, left of the phase.
    """
    return kernel("weight_events", partial(_Sums(taps, parts, lanes).write, parallel))


def weight_of_sums_kernel(taps: tuple[int, int], width: int, lanes: int, parallel: bool) -> tirx.PrimFunc:
    """The splits added, in the weight's order.

    Arguments: sums (splits, groups * blocks, channels of a group, taps, width), grad_weight (O, KH, KW, C / groups);
    then i64: groups, ky, kx, sy, sx of the phase.
    """
    return kernel("weight_of_sums", partial(_Weight(taps, width, lanes).write, parallel))


@dataclass(frozen=True, slots=True)
class _Sums:
    taps: tuple[int, int]
    parts: int
    lanes: int

    @property
    def width(self) -> int:
        return self.parts * self.lanes

    def write(self, parallel: bool) -> None:
        images, height, width, channels, tiles, entries, groups, tasks, size, blocks, of_group, splits = (
            T.int64() for _ in range(12)
        )
        grad = argument("grad", [images, height, width, channels])
        lists, starts = argument("lists", [tiles, entries], "int16"), argument("starts", [tiles, groups], "int32")
        local = argument("tile", [tasks, size])
        sums = argument("sums", [splits, blocks, of_group, self.taps[0] * self.taps[1], self.width])
        grid = TileGrid(*integers(*TileGrid._fields))
        top, left = integers("top", "left")
        out_channels, blocks_of_group = held(channels // groups), held(blocks // groups)
        with dealt(tasks, parallel) as task:
            split, block = held(task // blocks), held(task % blocks)
            group, first = held(block // blocks_of_group), held(block % blocks_of_group * self.width)
            with T.serial(of_group) as channel:
                for at in range(self.taps[0] * self.taps[1]):
                    for lane in self._ramps(0):
                        put(sums, T.broadcast(f32(0.0), self.lanes), split, block, channel, at, lane)
            with T.serial((split + 1) * tiles // splits - split * tiles // splits) as at:
                number = held(split * tiles // splits + at)
                tile = Tile(number, grid, images)
                filled = held(T.min(T.int64(self.width), out_channels - first))
                self._load(grad, local, task, tile, grid, (top, left), group * out_channels + first, filled)
                where = held(T.cast(starts[number, group], "int64"))
                self._walk(lists, number, where, local, task, grid.pitch, sums, (split, block), of_group)

    def _ramps(self, first: Index) -> list[Expr]:
        return [T.ramp(first + part * self.lanes, 1, self.lanes) for part in range(self.parts)]

    def _load(
        self, grad: Buffer, local: Buffer, task: Expr, tile: Tile, grid: TileGrid,
        corner: tuple[Expr, Expr], channel: Expr, filled: Expr,
    ) -> None:  # fmt: skip
        """The tile's gradient, zeros where there are no outputs or no such channels."""
        channel, column = held(channel), held(corner[1] + tile.column)
        with T.serial(tile.images) as m, T.serial(grid.lines) as r:
            image, line = held(tile.image + m), held(corner[0] + tile.row + r)
            there = tirx.And(line >= 0, line < grad.shape[1])
            first = held(select(there, T.min(T.max(-column, T.int64(0)), grid.pitch), grid.pitch))
            end = held(select(there, T.max(T.min(grid.pitch, grad.shape[2] - column), first), grid.pitch))
            base = held((m * grid.lines + r) * grid.pitch * self.width)
            for begin, stop in ((T.int64(0), first), (end, grid.pitch)):
                with T.serial(stop - begin) as at:
                    for to in self._ramps(base + (begin + at) * self.width):
                        put(local, T.broadcast(f32(0.0), self.lanes), task, to)
            with T.serial(end - first) as at:
                pixel, to = held(column + first + at), held(base + (first + at) * self.width)
                with T.If(filled == self.width):
                    with T.Then():
                        for source, target in zip(self._ramps(channel), self._ramps(to), strict=True):
                            put(local, grad[image, line, pixel, source], task, target)
                    with T.Else(), T.serial(self.width) as lane:
                        value = T.if_then_else(lane < filled, grad[image, line, pixel, channel + lane], f32(0.0))
                        put(local, value, task, to + lane)

    def _walk(
        self, lists: Buffer, tile: Expr, start: Expr, local: Buffer, task: Expr, pitch: Expr,
        sums: Buffer, place: tuple[Expr, Expr], channels: Expr,
    ) -> None:  # fmt: skip
        """Add each channel's spikes up in registers, then to the sums."""
        down, across = self.taps
        total = stack(down * across * self.width)
        rows = [held(pitch * (row * self.width)) for row in range(down)]
        entry, at = stack(1, dtype="int64"), stack(1, dtype="int64")
        put(at, start, 0)

        def step() -> None:
            put(entry, T.cast(lists[tile, at[0]], "int64"), 0)
            put(at, at[0] + 1, 0)

        with T.serial(channels) as channel:
            step()
            with T.If(entry[0] >= 0), T.Then():
                for tap in range(down * across):
                    for here in self._ramps(tap * self.width):
                        put(total, T.broadcast(f32(0.0), self.lanes), here)
                with T.While(entry[0] >= 0):  # an end that no counter foretells: the compiler must not unroll this
                    for row in range(down):
                        base = held(entry[0] + rows[row])
                        for column in range(across):
                            tap = (down - 1 - row) * across + across - 1 - column
                            sources = self._ramps(base + column * self.width)
                            for here, source in zip(self._ramps(tap * self.width), sources, strict=True):
                                put(total, total[here] + local[task, source], here)
                    step()
                for tap in range(down * across):
                    for here, lane in zip(self._ramps(tap * self.width), self._ramps(0), strict=True):
                        put(sums, sums[*place, channel, tap, lane] + total[here], *place, channel, tap, lane)


@dataclass(frozen=True, slots=True)
class _Weight:
    taps: tuple[int, int]
    width: int
    lanes: int

    def write(self, parallel: bool) -> None:
        splits, blocks, channels, out_channels, height, breadth = (T.int64() for _ in range(6))
        sums = argument("sums", [splits, blocks, channels, self.taps[0] * self.taps[1], self.width])
        weight = argument("grad_weight", [out_channels, height, breadth, channels])
        groups, ky, kx, sy, sx = integers("groups", "ky", "kx", "sy", "sx")
        of_group, blocks_of_group = held(out_channels // groups), held(blocks // groups)
        whole = held(channels // self.lanes)
        with dealt(blocks, parallel) as block, T.serial(self.taps[0] * self.taps[1]) as tap:
            y, x = held(ky + tap // self.taps[1] * sy), held(kx + tap % self.taps[1] * sx)
            with T.serial(self.width // self.lanes) as part:
                begin = held(block % blocks_of_group * self.width + part * self.lanes)
                first = held(block // blocks_of_group * of_group + begin)
                filled = held(T.max(T.min(T.int64(self.lanes), of_group - begin), T.int64(0)))
                with T.serial(whole) as square:
                    self._square(sums, weight, (block, square * self.lanes, tap, part), (first, y, x), filled)
                with T.serial(channels - whole * self.lanes) as rest, T.serial(filled) as lane:
                    channel, total = whole * self.lanes + rest, stack(1)
                    put(total, f32(0.0), 0)
                    with T.serial(splits) as split:
                        put(total, total[0] + sums[split, block, channel, tap, part * self.lanes + lane], 0)
                    put(weight, total[0], first + lane, y, x, channel)

    def _square(
        self, sums: Buffer, weight: Buffer, source: tuple[Expr, Expr, Expr, Expr],
        target: tuple[Expr, Expr, Expr], filled: Expr,
    ) -> None:  # fmt: skip
        """As many channels as lanes, transposed in registers: one at a time takes longer than some layers' sums."""
        lanes, (block, channel, tap, part) = self.lanes, source
        own, other = stack(lanes * lanes), stack(lanes * lanes)
        rows = [T.ramp(row * lanes, 1, lanes) for row in range(lanes)]
        here = T.ramp(part * lanes, 1, lanes)
        for row in range(lanes):
            put(own, sums[0, block, channel + row, tap, here], rows[row])
        with T.serial(sums.shape[0] - 1) as split:
            for row in range(lanes):
                put(own, own[rows[row]] + sums[split + 1, block, channel + row, tap, here], rows[row])
        for distance in (2**bit for bit in range(lanes.bit_length() - 1)):
            for low in (row for row in range(lanes) if not row & distance):
                high = low | distance
                pair = [own[rows[low]], own[rows[high]]]
                evens = [at if not at & distance else lanes + at - distance for at in range(lanes)]
                odds = [at + distance if not at & distance else lanes + at for at in range(lanes)]
                first, second = (tirx.Shuffle(pair, [T.int32(at) for at in order]) for order in (evens, odds))
                put(other, first, rows[low])
                put(other, second, rows[high])
            own, other = other, own
        for row in range(lanes):
            with T.If(filled > row), T.Then():
                put(weight, own[rows[row]], target[0] + row, *target[1:], T.ramp(channel, 1, lanes))
