"""TensorIR kernels of the Forward Engine: LUT programming, window patterns, look-up and accumulation."""

# ruff: noqa: B023, PLR0912
# mypy: disable-error-code="untyped-decorator, no-untyped-def"
# A TensorIR function is parsed, not run: it cannot call, so it is long; its lambdas expand in place.

from __future__ import annotations

import functools
from collections.abc import Callable

from runtime.engines.adder_tree import pairwise
from runtime.engines.fp16_expressions import LANES
from runtime.engines.geometry import TAPS_PER_PE
from runtime.engines.tvm_build import Buffer, Expr, Kernel, T, compiled, tirx, vector_lanes

BLOCK = 16  # PE rows summed in one pass over a chunk of pixels; a tree of 64 is a tree of such trees
CHUNK = 128  # pixels whose partial trees stay in the nearest cache
PATTERNS = 512  # of nine taps
MAX_ROWS = 64
WIDE = 32  # patterns of one native vector


@functools.cache
def program_conv_kernel(cols: int) -> Kernel:
    """Kernel (weights, lut); the columns are fixed."""
    lanes = vector_lanes(cols)

    @T.prim_func(s_tir=True)
    def program_conv(weights: T.handle, lut: T.handle):
        T.func_attr({"tirx.noalias": True})
        R = T.int64()
        W = T.match_buffer(weights, (R, 9, cols), "float16", align=4)
        L = T.match_buffer(lut, (R, 3, 8, cols), "float16", align=4)
        for r in range(R):
            for s in T.unroll(3):
                for b in range(cols // lanes):
                    for v in T.vectorized(lanes):
                        L[r, s, 0, b * lanes + v] = T.float16(0)
                    for v in T.vectorized(lanes):
                        L[r, s, 1, b * lanes + v] = L[r, s, 0, b * lanes + v] + W[r, 3 * s, b * lanes + v]
                    for j in T.unroll(2):
                        for v in T.vectorized(lanes):
                            L[r, s, 2 + j, b * lanes + v] = L[r, s, j, b * lanes + v] + W[r, 3 * s + 1, b * lanes + v]
                    for j in T.unroll(4):
                        for v in T.vectorized(lanes):
                            L[r, s, 4 + j, b * lanes + v] = L[r, s, j, b * lanes + v] + W[r, 3 * s + 2, b * lanes + v]

    return compiled(program_conv)


@functools.cache
def channel_indices_kernel(kernel_h: int, kernel_w: int, rows: int) -> Kernel:
    """Kernel (spikes, patterns, stride_h, stride_w, first): at most nine taps, so a PE per channel."""
    vectors = rows // WIDE

    def pattern(spike: Callable[[int, int], Expr]) -> Expr:
        bits = [T.Cast("uint16", spike(*divmod(tap, kernel_w))) << T.uint16(tap) for tap in range(kernel_h * kernel_w)]
        return functools.reduce(T.bitwise_or, bits)

    @T.prim_func(s_tir=True)
    def channel_indices(spikes: T.handle, patterns: T.handle, stride_h: T.int64, stride_w: T.int64, first: T.int64):
        T.func_attr({"tirx.noalias": True})
        N, HI, WI, C, HO, WO = T.int64(), T.int64(), T.int64(), T.int64(), T.int64(), T.int64()
        X = T.match_buffer(spikes, (N, HI, WI, C), "uint8", align=4)
        IDX = T.match_buffer(patterns, (N, HO, WO, rows), "uint16", align=4)
        for line in T.parallel(N * HO):
            n = line // HO
            y = line % HO * stride_h
            for ox in range(WO):
                x = ox * stride_w
                for b in range(vectors):
                    for v in T.vectorized(WIDE):
                        IDX[n, line % HO, ox, b * WIDE + v] = pattern(
                            lambda ky, kx: X[n, y + ky, x + kx, first + b * WIDE + v]
                        )
                for c in range(vectors * WIDE, rows):
                    IDX[n, line % HO, ox, c] = pattern(lambda ky, kx: X[n, y + ky, x + kx, first + c])

    return compiled(channel_indices)


@functools.cache
def piece_indices_kernel() -> Kernel:
    """Kernel (spikes, patterns, kernel_h, kernel_w, stride_h, stride_w, first_piece, pieces): any kernel."""

    @T.prim_func(s_tir=True)
    def piece_indices(
        spikes: T.handle,
        patterns: T.handle,
        kernel_h: T.int64,
        kernel_w: T.int64,
        stride_h: T.int64,
        stride_w: T.int64,
        first_piece: T.int64,
        pieces: T.int64,
    ):
        T.func_attr({"tirx.noalias": True})
        N = T.int64()
        HI = T.int64()
        WI = T.int64()
        C = T.int64()
        HO = T.int64()
        WO = T.int64()
        R = T.int64()
        X = T.match_buffer(spikes, (N, HI, WI, C), "uint8", align=4)
        IDX = T.match_buffer(patterns, (N, HO, WO, R), "uint16", align=4)
        for line in T.parallel(N * HO):
            wide = T.alloc_buffer((MAX_ROWS,), "uint16", scope="local")
            for x in range(WO):
                first = first_piece // pieces
                channels = (first_piece + R - 1) // pieces + 1 - first
                for piece in range(pieces):
                    for c in range(channels):
                        wide[c] = T.uint16(0)
                    for bit in range(T.min(TAPS_PER_PE, kernel_h * kernel_w - piece * TAPS_PER_PE)):
                        tap = piece * TAPS_PER_PE + bit
                        for c in range(channels):
                            wide[c] = wide[c] | T.shift_left(
                                T.Cast(
                                    "uint16",
                                    X[
                                        line // HO,
                                        line % HO * stride_h + tap // kernel_w,
                                        x * stride_w + tap % kernel_w,
                                        first + c,
                                    ],
                                ),
                                T.Cast("uint16", bit),
                            )
                    for c in range(channels):
                        row = (first + c) * pieces + piece - first_piece
                        if tirx.And(row >= 0, row < R):
                            IDX[line // HO, line % HO, x, row] = wide[c]

    return compiled(piece_indices)


@functools.cache
def accumulate_kernel(rows: int, expand: bool, whole: bool) -> Kernel:
    """Kernel (lut, patterns, psum, init) over pixels; the PE rows are fixed.

    `expand` first forms (L0 + L1) + L2 for all 512 patterns of each row, which pays over many pixels.
    `whole` promises columns in multiples of 16.
    """
    full = rows // BLOCK
    rest = rows % BLOCK
    blocks = full + (rest > 0)
    entries = PATTERNS if expand else 24

    def pe_sum(table: Buffer, row: Expr, pattern: Expr, v: Expr) -> Expr:
        index = T.Cast("int32", pattern)
        if expand:
            return table[row, index, v]
        first, second, third = (table[row, 8 * s + T.bitwise_and(T.shift_right(index, 3 * s), 7), v] for s in range(3))
        return (first + second) + third

    @T.prim_func(s_tir=True)
    def accumulate(lut: T.handle, patterns: T.handle, psum: T.handle, init: T.int32):
        T.func_attr({"tirx.noalias": True})
        P = T.int64()
        C = T.int64()
        L = T.match_buffer(lut, (rows, 24, C), "float16", align=4)
        IDX = T.match_buffer(patterns, (P, rows), "uint16", align=4)
        S = T.match_buffer(psum, (P, C), "float16", align=4)
        table = T.alloc_buffer((rows, entries, LANES), "float16")
        for cb in range((C + LANES - 1) // LANES):
            for r in T.parallel(rows):
                own = T.alloc_buffer((24, LANES), "float16", scope="local")
                pair = T.alloc_buffer((LANES,), "float16", scope="local")
                for e in range(24):
                    for v in range(LANES):
                        own[e, v] = T.if_then_else(cb * LANES + v < C, L[r, e, cb * LANES + v], T.float16(0))
                if expand:
                    for i in range(64):
                        for v in T.vectorized(LANES):
                            pair[v] = own[i % 8, v] + own[8 + i // 8, v]
                        for k in T.unroll(8):
                            for v in T.vectorized(LANES):
                                table[r, k * 64 + i, v] = pair[v] + own[16 + k, v]
                else:
                    for e in range(24):
                        for v in T.vectorized(LANES):
                            table[r, e, v] = own[e, v]
            for chunk in T.parallel((P + CHUNK - 1) // CHUNK):
                part = T.alloc_buffer((blocks, CHUNK, LANES), "float16")
                base = T.alloc_buffer((LANES,), "float16", scope="local")
                start = chunk * CHUNK
                count = T.min(P - start, T.int64(CHUNK))
                for b in range(full):
                    for p in range(count):
                        for v in T.vectorized(LANES):
                            part[b, p, v] = pairwise(
                                lambda r: pe_sum(table, b * BLOCK + r, IDX[start + p, b * BLOCK + r], v),
                                BLOCK,
                            )
                if rest > 0:
                    for p in range(count):
                        for v in T.vectorized(LANES):
                            part[full, p, v] = pairwise(
                                lambda r: pe_sum(table, full * BLOCK + r, IDX[start + p, full * BLOCK + r], v),
                                rest,
                            )
                for p in range(count):
                    if whole:
                        for v in T.vectorized(LANES):
                            base[v] = T.if_then_else(init == 0, S[start + p, cb * LANES + v], T.float16(0))
                    else:
                        for v in range(LANES):
                            base[v] = T.if_then_else(
                                tirx.And(init == 0, cb * LANES + v < C),
                                S[start + p, cb * LANES + v],
                                T.float16(0),
                            )
                    for v in T.vectorized(LANES):
                        base[v] = base[v] + pairwise(lambda b: part[b, p, v], blocks)
                    if whole:
                        for v in T.vectorized(LANES):
                            S[start + p, cb * LANES + v] = base[v]
                    else:
                        for v in range(T.min(C - cb * LANES, T.int64(LANES))):
                            S[start + p, cb * LANES + v] = base[v]

    return compiled(accumulate)


@functools.cache
def accumulate_fc_kernel(rows: int) -> Kernel:
    """Kernel (lut, spikes, psum, init); the rows of the array are fixed."""

    @T.prim_func(s_tir=True)
    def accumulate_fc(lut: T.handle, spikes: T.handle, psum: T.handle, init: T.int32):
        T.func_attr({"tirx.noalias": True})
        G = T.int64()
        N = T.int64()
        C = T.int64()
        L = T.match_buffer(lut, (G, rows, 3, C), "float16", align=4)
        X = T.match_buffer(spikes, (N, G * rows * 3), "uint8", align=4)
        S = T.match_buffer(psum, (N, C), "float16", align=4)
        table = T.alloc_buffer((G, rows, 8, LANES), "float16")
        for cb in range((C + LANES - 1) // LANES):
            for g in T.parallel(G):
                own = T.alloc_buffer((6, LANES), "float16", scope="local")
                for r in range(rows):
                    for s in range(3):
                        for v in range(LANES):
                            own[2 * s, v] = T.float16(0)
                            own[2 * s + 1, v] = T.if_then_else(
                                cb * LANES + v < C, L[g, r, s, cb * LANES + v], T.float16(0)
                            )
                    for i in T.unroll(8):
                        for v in T.vectorized(LANES):
                            table[g, r, i, v] = (own[i % 2, v] + own[2 + i // 2 % 2, v]) + own[4 + i // 4, v]
            for n in T.parallel(N):
                base = T.alloc_buffer((LANES,), "float16", scope="local")
                index = T.alloc_buffer((rows,), "int32", scope="local")
                for v in range(LANES):
                    base[v] = T.if_then_else(
                        tirx.And(init == 0, cb * LANES + v < C), S[n, cb * LANES + v], T.float16(0)
                    )
                for g in range(G):
                    for r in range(rows):
                        index[r] = (
                            T.Cast("int32", X[n, (g * rows + r) * 3])
                            + 2 * T.Cast("int32", X[n, (g * rows + r) * 3 + 1])
                            + 4 * T.Cast("int32", X[n, (g * rows + r) * 3 + 2])
                        )
                    for v in T.vectorized(LANES):
                        base[v] = base[v] + pairwise(lambda r: table[g, r, index[r], v], rows)
                for v in range(LANES):
                    if cb * LANES + v < C:
                        S[n, cb * LANES + v] = base[v]

    return compiled(accumulate_fc)
