"""Results of a CPU kernel as bits: spikes, and where their gradients count."""

from __future__ import annotations

import platform
from collections.abc import Callable

from compiler.fused.array_cell import present
from compiler.fused.body import Flags, Index, Membranes, pooled, reached, store_result
from compiler.fused.cpu_cell import CpuCell, stack
from compiler.fused.emit import Buffer, Expr, T, f32, put, select, tirx
from compiler.fused.population import Results
from compiler.fused.spikes.geometry import BITS

FEWEST_LANES = 8  # their bits fill the smallest integer
IS_X86 = platform.machine().lower() in ("x86_64", "amd64")


def part_dtype(lanes: int) -> str:
    """Element type of the parts of words: one bit for each lane of a vector."""
    return f"int{lanes}"


def write_results(cell: CpuCell, results: Results, t: Index, m: Membranes) -> None:
    """Write what is asked for of a step whose membrane potentials are m."""
    if results & (Results.Y | Results.WORDS):
        spikes = pooled(cell, m)
        if Results.Y in results:
            store_result(cell, t, spikes)
        if Results.WORDS in results:
            _store(cell, present(cell.arrays.words), t, spikes)
    if Results.MASK in results:
        _store(cell, present(cell.arrays.mask), t, reached(cell, m))


def clear_last_words(cell: CpuCell) -> None:
    """Set the last word of the cell's results to 0 if it holds absent channels; nothing else writes their bits.

    The cell: all columns of a run, of one vector.
    """
    for bits in (cell.arrays.words, cell.arrays.mask):
        if bits is None:
            continue
        parts = BITS // bits.dtype.bits
        last = bits.shape[-1] - parts
        with T.If(cell.grid.channels % BITS != 0), T.Then(), cell.steps() as t, cell.each(), T.serial(parts) as part:
            put(bits, T.cast(T.int32(0), bits.dtype), *cell.output(t, 0)[:-1], last + part)


def _store(cell: CpuCell, bits: Buffer, t: Index, flags: Flags) -> None:
    width, channel = bits.dtype.bits, cell.place.channel
    last = channel + cell.lanes.width - 1
    where = [*cell.output(t, 0)[:-1], last // width]
    if cell.lanes.width == 1:
        bit = T.shift_left(T.cast(flags(0), "int32"), T.cast(channel % width, "int32"))
        put(bits, bits[tuple(where)] | T.cast(bit, bits.dtype), *where)
    else:  # the last vector may begin within a part, whose other bits stand in a part that is complete
        gone = T.cast(width - 1 - last % width, "uint32")
        part = T.shift_right(T.cast(gathered(flags, width, x86=IS_X86), "uint32"), gone)
        put(bits, T.cast(part, bits.dtype), *where)


def gathered(flags: Flags, lanes: int, *, x86: bool) -> Expr:
    """The flags of a vector as the lowest bits of an i32; on x86 by instructions that every such CPU has for this."""
    if x86 and lanes == 16:
        marks = _marks(flags, lanes, "int8", lambda _: (T.int8(-1), T.int8(0)))
        return _call("llvm.x86.sse2.pmovmskb.128", marks, 0, lanes)  # one instruction of AVX-512 in the end
    if x86 and lanes == 8:
        marks = _marks(flags, lanes, "float32", lambda _: (f32(-1.0), f32(0.0)))
        low, high = (_call("llvm.x86.sse.movmsk.ps", marks, first, 4) for first in (0, 4))
        return low | T.shift_left(high, T.int32(4))
    bits = _marks(flags, lanes, "int32", lambda lane: (T.shift_left(T.int32(1), T.cast(lane, "int32")), T.int32(0)))
    return _call(f"llvm.vector.reduce.or.v{lanes}i32", bits, 0, lanes)


def _marks(flags: Flags, lanes: int, dtype: str, marks_of: Callable[[Index], tuple[Expr, Expr]]) -> Buffer:
    """One of two marks for each flag."""
    marks = stack(lanes, dtype=dtype)
    with T.vectorized(lanes) as lane:
        put(marks, select(flags(lane) > f32(0.0), *marks_of(lane)), lane)
    return marks


def _call(name: str, marks: Buffer, first: int, lanes: int) -> Expr:
    return tirx.call_llvm_pure_intrin("int32", name, marks[T.ramp(first, 1, lanes)])
