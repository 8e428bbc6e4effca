"""The spikes of each tile listed by input channel: what the weight's gradient by events walks along."""

from __future__ import annotations

from functools import partial

from compiler.fused.cpu_cell import stack
from compiler.fused.emit import Buffer, Expr, T, argument, kernel, put, select, tirx
from compiler.fused.spikes.geometry import BITS
from compiler.fused.spikes.weight_tiles import Index, Tile, TileGrid, ceil, dealt, integers
from compiler.fused.spikes.words import held

AT_ONCE = 8  # list entries that are written without a branch, spikes or not


def event_lists_kernel(lanes: int, parallel: bool) -> tirx.PrimFunc:
    """Places of the spikes by tile, group and channel of the group; -1 ends a channel.

    Arguments: words (images, H, W, words); scratch for each task: masks (tasks, chunks, words * 32), places and
    pixels (tasks, chunks * 32 + 1); lists (tiles, entries) i16, starts (tiles, groups) i32: where a group's lists begin
    in its tile; then i64: images, `TileGrid`, y, x, sy, sx of the phase, channels of a group, f32 values of a place.
    """
    return kernel("event_lists", partial(_write_lists, lanes, parallel))


def _write_lists(lanes: int, parallel: bool) -> None:
    pixel_count, words, tasks, chunks, channels, slots, tiles, entries, groups = (T.int64() for _ in range(9))
    bits = argument("words", [pixel_count, words], "int32")
    masks = argument("masks", [tasks, chunks, channels], "int32")
    places, pixels = argument("places", [tasks, slots], "int16"), argument("pixels", [tasks, slots], "int32")
    lists, starts = argument("lists", [tiles, entries], "int16"), argument("starts", [tiles, groups], "int32")
    images, *sizes = integers("images", *TileGrid._fields)
    height, width, y, x, sy, sx, of_group, unit = integers("height", "width", "y", "x", "sy", "sx", "of_group", "unit")
    grid = TileGrid(*sizes)
    with dealt(tasks, parallel) as task, T.serial((task + 1) * tiles // tasks - task * tiles // tasks) as at:
        number = held(task * tiles // tasks + at)
        tile = Tile(number, grid, images)
        with T.serial(tile.images) as m, T.serial(tile.rows) as r:
            first = held((m * tile.rows + r) * tile.columns)
            place = held((m * grid.lines + r) * grid.pitch)
            line = held(((tile.image + m) * height + (tile.row + r) * sy + y) * width + tile.column * sx + x)
            with T.serial(tile.columns) as c:
                put(places, T.cast((place + c) * unit, "int16"), task, first + c)
                put(pixels, T.cast(line + c * sx, "int32"), task, first + c)
        count = held(tile.images * tile.rows * tile.columns)
        with T.serial(ceil(count, BITS)) as chunk, T.serial(words) as word:
            members = held(T.min(T.int64(BITS), count - chunk * BITS))
            _transpose(bits, pixels, masks, (task, chunk, word), members, lanes)
        end = stack(1, dtype="int64")
        put(end, T.int64(0), 0)
        with T.serial(groups) as group:
            put(starts, T.cast(end[0], "int32"), number, group)
            with T.serial(of_group) as channel:
                with T.serial(ceil(count, BITS)) as chunk:
                    mask = masks[task, chunk, group * (channels // groups) + channel]
                    _append(mask, places, task, chunk, lists, number, end)
                put(lists, T.int16(-1), number, end[0])
                put(end, end[0] + 1, 0)


def _transpose(
    bits: Buffer, pixels: Buffer, masks: Buffer, at: tuple[Expr, Expr, Expr], members: Expr, lanes: int
) -> None:
    """For each channel of a word a mask of the pixels that fired, of up to 32 pixels."""
    task, chunk, word = at
    fired, parts = stack(BITS, dtype="int32"), range(0, BITS, lanes)
    for part in parts:
        put(fired, T.broadcast(T.int32(0), lanes), T.ramp(part, 1, lanes))
    with T.serial(members) as member:
        pixel = held(pixels[task, chunk * BITS + member], "int32")
        spikes = T.broadcast(held(bits[T.cast(pixel, "int64"), word], "int32"), lanes)
        mark = T.broadcast(held(T.shift_left(T.int32(1), T.cast(member, "int32")), "int32"), lanes)
        for part in parts:
            channel = T.shift_left(T.broadcast(T.int32(1), lanes), T.ramp(T.int32(part), 1, lanes))
            here = T.ramp(part, 1, lanes)
            none = T.broadcast(T.int32(0), lanes)
            put(fired, fired[here] | select(spikes & channel != none, mark, none), here)
    for part in parts:
        put(masks, fired[T.ramp(part, 1, lanes)], task, chunk, T.ramp(word * BITS + part, 1, lanes))


def _append(mask: Expr, places: Buffer, task: Expr, chunk: Expr, lists: Buffer, tile: Expr, end: Buffer) -> None:
    """The first entries are written whether there are that many or not: a branch for each would be mispredicted."""
    left = stack(1, dtype="int32")
    put(left, mask, 0)
    count = held(T.cast(T.popcount(left[0]), "int64"))

    def entry(at: Index) -> None:
        bit = T.call_llvm_pure_intrin("int32", "llvm.cttz.i32", left[0], T.bool(False))
        put(lists, places[task, chunk * BITS + T.cast(bit, "int64")], tile, end[0] + at)
        put(left, left[0] & (left[0] - 1), 0)

    for at in range(AT_ONCE):
        entry(at)
    with T.serial(count - AT_ONCE) as rest:
        entry(AT_ONCE + rest)
    put(end, end[0] + count, 0)
