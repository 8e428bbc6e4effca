"""Kernels between spikes as numbers and spikes as bits: what a stage keeps of spikes takes one bit each."""

from __future__ import annotations

from enum import StrEnum
from functools import partial

from compiler.fused.emit import Buffer, Expr, T, argument, f32, kernel, put, select, tirx
from compiler.fused.population import Activation

BITS = 8  # spikes in a byte, the first one in the lowest bit
BLOCK = 64  # bytes that one turn of the loop writes or reads
CHUNK = 256  # blocks that a thread takes at once


class PackName(StrEnum):
    """The kernels and their arguments: any count of spikes (count,) and ceil(count / 8) bytes.

    pack     S, B: bit i % 8 of byte i // 8 is 1 where S[i] > 0; bits beyond the count are 0
    expand   B, S: 1 or 0 for each bit
    """

    PACK = "pack"
    EXPAND = "expand"


def pack_kernel(name: PackName, activation: Activation) -> tirx.PrimFunc:
    """One kernel for spikes of that type."""
    return kernel(name, partial(_write, name, str(activation)))


def _write(name: PackName, dtype: str) -> None:
    count, length = T.int64(), T.int64()
    if name is PackName.PACK:
        spikes, packed = argument("spikes", [count], dtype), argument("bits", [length], "uint8")
    else:
        packed, spikes = argument("bits", [length], "uint8"), argument("spikes", [count], dtype)
    whole = count // (BITS * BLOCK)  # blocks without the last bytes
    block_of = _pack_block if name is PackName.PACK else _expand_block
    with T.parallel(_chunks(whole)) as chunk, T.serial(T.min(T.int64(CHUNK), whole - chunk * CHUNK)) as block:
        block_of(spikes, packed, (chunk * CHUNK + block) * BLOCK)
    if name is PackName.PACK:
        _pack_rest(spikes, packed, whole * BLOCK, count)
    else:
        with T.serial(count - whole * BLOCK * BITS) as rest:
            index = whole * BLOCK * BITS + rest
            put(spikes, _spike(packed[index // BITS], index % BITS, dtype), index)


def _chunks(blocks: Expr) -> Expr:
    return (blocks + CHUNK - 1) // CHUNK


def _pack_block(spikes: Buffer, packed: Buffer, first: Expr) -> None:
    with T.vectorized(BLOCK) as lane:
        byte = T.uint8(0)
        for bit in range(BITS):
            byte = byte | _bit(spikes[(first + lane) * BITS + bit], bit)
        put(packed, byte, first + lane)


def _expand_block(spikes: Buffer, packed: Buffer, first: Expr) -> None:
    with T.serial(BLOCK // 2) as pair, T.vectorized(2 * BITS) as lane:
        byte = packed[first + pair * 2 + lane // BITS]
        put(spikes, _spike(byte, lane % BITS, spikes.dtype), (first + pair * 2) * BITS + lane)


def _pack_rest(spikes: Buffer, packed: Buffer, first: Expr, count: Expr) -> None:
    with T.serial((count + BITS - 1) // BITS - first) as rest:
        put(packed, T.uint8(0), first + rest)
        with T.serial(T.min(T.int64(BITS), count - (first + rest) * BITS)) as bit:
            put(packed, packed[first + rest] | _bit(spikes[(first + rest) * BITS + bit], bit), first + rest)


def _bit(spike: Expr, bit: Expr | int) -> Expr:
    return select(f32(spike) > f32(0.0), T.shift_left(T.uint8(1), T.cast(bit, "uint8")), T.uint8(0))


def _spike(byte: Expr, bit: Expr, dtype: str) -> Expr:
    fired = T.bitwise_and(T.shift_right(T.cast(byte, "int32"), T.cast(bit, "int32")), T.int32(1))
    return T.cast(T.cast(fired, "float32"), dtype)
