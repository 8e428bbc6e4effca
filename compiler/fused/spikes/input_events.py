"""Lays the weights of a layer out for its input's gradient by events: a row for each tap and output channel."""

from __future__ import annotations

from compiler.fused.emit import T, argument, kernel, put, tirx
from compiler.fused.spikes.event_sums import slot
from compiler.fused.spikes.events import load
from compiler.fused.spikes.forward_events import RowSizes
from compiler.fused.spikes.words import held


def input_rows_kernel(name: str, *, lanes: int, vectors: int, stride: int, parallel: bool) -> tirx.PrimFunc:
    """rows[g, b, k, ky, slot(kx), o, c] = weight[g * outputs + k * chunk + o, ky, kx, b * width + c].

    width is vectors * lanes; `slot` is that of columns with this stride. Channels beyond a group's last one are 0; rows
    of outputs that do not exist are not written. Arguments: `RowSizes`, weight, rows. Shapes: weight (groups * outputs,
    kernel rows, kernel columns, channels), rows (groups, blocks, chunks, kernel rows, slots, chunk, width), both flat.
    """

    def body() -> None:
        sizes = RowSizes(*(T.arg(name, T.int64()) for name in RowSizes._fields))
        weight, rows = argument("weight", [T.int64()]), argument("rows", [T.int64()])
        taps, width = held(sizes.kernel_rows * sizes.kernel_columns), vectors * lanes
        slots = held((sizes.kernel_columns + stride - 1) // stride * stride)
        tasks = sizes.groups * sizes.blocks * sizes.chunks * taps
        with T.parallel(tasks) if parallel else T.serial(tasks) as task:
            tap, part = held(task % taps), held(task // taps)
            row, column = held(tap // sizes.kernel_columns), held(tap % sizes.kernel_columns)
            chunk, block = held(part % sizes.chunks), held(part // sizes.chunks)
            group, before = held(block // sizes.blocks), held(block % sizes.blocks * width)
            output = held(chunk * sizes.chunk)
            source = held(((group * sizes.outputs + output) * taps + tap) * sizes.channels + before)
            at = held(slot(column, sizes.kernel_columns, stride))
            target = held(((part * sizes.kernel_rows + row) * slots + at) * sizes.chunk * width)
            with T.serial(T.min(sizes.chunk, sizes.outputs - output)) as index:
                first = held(source + index * taps * sizes.channels)
                for vector in range(vectors):
                    valid = sizes.channels - before - vector * lanes
                    value = load(weight, first + vector * lanes, lanes, valid=valid)
                    put(rows, value, T.ramp(target + index * width + vector * lanes, T.int64(1), lanes))

    return kernel(name, body)
