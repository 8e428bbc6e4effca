"""TensorIR kernels of the Weight Update Engine: spike patterns, and weight gradients of spiking layers."""

# ruff: noqa: B023, PLR0912
# mypy: disable-error-code="untyped-decorator, no-untyped-def"
# A TensorIR function is parsed, not run: it cannot call, so it is long; its lambdas expand in place.

from __future__ import annotations

import functools
from collections.abc import Callable

from runtime.engines.adder_tree import pairwise
from runtime.engines.fp16_expressions import LANES, positive_zero
from runtime.engines.geometry import UPDATE_SUB_LUT_ENTRIES, WINDOWS_PER_PATTERN
from runtime.engines.tvm_build import Buffer, Expr, Kernel, T, compiled, tirx

WIDE = 32  # patterns of one native vector
PATTERNS = 1 << WINDOWS_PER_PATTERN
ENTRIES = UPDATE_SUB_LUT_ENTRIES
CHUNK = 32  # inputs of a linear layer that a thread takes at once


@functools.cache
def accumulate_update_kernel(steps: int, expand: bool) -> Kernel:
    """Kernel (g, patterns, psum, channel_chunk, init); the time steps are fixed.

    A strip has 16 columns of a chunk of channels, whose sums it keeps side by side. `expand` forms
    L0[low] + L1[high] for all 256 patterns of eight windows, which pays over many channels.
    Shapes: patterns (T, N, out_h, q, taps, C).
    """
    entries = PATTERNS if expand else 2 * ENTRIES

    def pe_sum(table: Buffer, t: int, pattern: Expr, v: Expr) -> Expr:
        index = T.Cast("int32", pattern)
        if expand:
            return table[t, index, v]
        return table[t, T.bitwise_and(index, 15), v] + table[t, ENTRIES + T.shift_right(index, 4), v]

    @T.prim_func(s_tir=True)
    def accumulate_update(g: T.handle, patterns: T.handle, psum: T.handle, channel_chunk: T.int64, init: T.int32):
        T.func_attr({"tirx.noalias": True})
        N, HO, WO, C, Q, K, CH = T.int64(), T.int64(), T.int64(), T.int64(), T.int64(), T.int64(), T.int64()
        G = T.match_buffer(g, (steps, N, HO, WO, C), "float16", align=4)
        P = T.match_buffer(patterns, (steps, N, HO, Q, K, CH), "uint8", align=4)
        S = T.match_buffer(psum, (K, CH, C), "float16", align=4)
        for strip in T.parallel((C + LANES - 1) // LANES * ((CH + channel_chunk - 1) // channel_chunk)):
            table = T.alloc_buffer((steps, entries, LANES), "float16")
            sums = T.alloc_buffer((K, channel_chunk, LANES), "float16")
            near = T.alloc_buffer((steps, K * channel_chunk + 64), "uint8")
            own = T.alloc_buffer((WINDOWS_PER_PATTERN, LANES), "float16", scope="local")
            lut = T.alloc_buffer((2 * ENTRIES, LANES), "float16", scope="local")
            first = strip % ((C + LANES - 1) // LANES) * LANES
            channel = strip // ((C + LANES - 1) // LANES) * channel_chunk
            channels = T.min(CH - channel, channel_chunk)
            whole = first + LANES <= C
            for tap in range(K):
                for c in range(channels):
                    for v in range(LANES):
                        sums[tap, c, v] = T.if_then_else(
                            tirx.And(init == 0, first + v < C), S[tap, channel + c, first + v], T.float16(0)
                        )
            for n in range(N):
                for oy in range(HO):
                    for q in range(Q):
                        for t in range(steps):
                            for tap in range(K):
                                for c in range(channels):
                                    near[t, tap * channel_chunk + c] = P[t, n, oy, q, tap, channel + c]
                            for j in range(WINDOWS_PER_PATTERN):
                                ox = q * WINDOWS_PER_PATTERN + j
                                if tirx.And(whole, ox < WO):
                                    for v in T.vectorized(LANES):
                                        own[j, v] = G[t, n, oy, ox, first + v]
                                else:
                                    for v in range(LANES):
                                        own[j, v] = T.if_then_else(
                                            tirx.And(ox < WO, first + v < C), G[t, n, oy, ox, first + v], T.float16(0)
                                        )
                            for s in T.unroll(2):
                                for v in T.vectorized(LANES):
                                    lut[s * ENTRIES, v] = T.float16(0)
                                for v in T.vectorized(LANES):
                                    lut[s * ENTRIES + 1, v] = lut[s * ENTRIES, v] + own[4 * s, v]
                                for i in T.unroll(2):
                                    for v in T.vectorized(LANES):
                                        lut[s * ENTRIES + 2 + i, v] = lut[s * ENTRIES + i, v] + own[4 * s + 1, v]
                                for i in T.unroll(4):
                                    for v in T.vectorized(LANES):
                                        lut[s * ENTRIES + 4 + i, v] = lut[s * ENTRIES + i, v] + own[4 * s + 2, v]
                                for i in T.unroll(8):
                                    for v in T.vectorized(LANES):
                                        lut[s * ENTRIES + 8 + i, v] = lut[s * ENTRIES + i, v] + own[4 * s + 3, v]
                            if expand:
                                for high in range(ENTRIES):
                                    for low in T.unroll(ENTRIES):
                                        for v in T.vectorized(LANES):
                                            table[t, high * ENTRIES + low, v] = lut[low, v] + lut[ENTRIES + high, v]
                            else:
                                for i in range(2 * ENTRIES):
                                    for v in T.vectorized(LANES):
                                        table[t, i, v] = lut[i, v]
                        for tap in range(K):
                            for c in range(channels):
                                for v in T.vectorized(LANES):
                                    sums[tap, c, v] = sums[tap, c, v] + pairwise(
                                        lambda t: pe_sum(table, t, near[t, tap * channel_chunk + c], v), steps
                                    )
            for tap in range(K):
                for c in range(channels):
                    for v in range(T.min(C - first, T.int64(LANES))):
                        S[tap, channel + c, first + v] = sums[tap, c, v]

    return compiled(accumulate_update)


@functools.cache
def update_patterns_kernel() -> Kernel:
    """Kernel (spikes, patterns, kernel_w, stride_h, stride_w, out_w)."""

    @T.prim_func(s_tir=True)
    def update_patterns(
        spikes: T.handle, patterns: T.handle, kernel_w: T.int64, stride_h: T.int64, stride_w: T.int64, out_w: T.int64
    ):
        T.func_attr({"tirx.noalias": True})
        N, HI, WI, C, HO, Q, K = T.int64(), T.int64(), T.int64(), T.int64(), T.int64(), T.int64(), T.int64()
        X = T.match_buffer(spikes, (N, HI, WI, C), "uint8", align=4)
        P = T.match_buffer(patterns, (N, HO, Q, K, C), "uint8", align=4)
        for line in T.parallel(N * HO):
            own = T.alloc_buffer((WIDE,), "uint8", scope="local")
            b = line // HO
            for q in range(Q):
                windows = T.min(out_w - q * WINDOWS_PER_PATTERN, T.int64(WINDOWS_PER_PATTERN))
                for tap in range(K):
                    y = line % HO * stride_h + tap // kernel_w
                    x = q * WINDOWS_PER_PATTERN * stride_w + tap % kernel_w
                    for cb in range(C // WIDE):
                        for v in T.vectorized(WIDE):
                            own[v] = T.uint8(0)
                        for j in range(windows):
                            for v in T.vectorized(WIDE):
                                own[v] = own[v] | X[b, y, x + j * stride_w, cb * WIDE + v] << T.Cast("uint8", j)
                        for v in T.vectorized(WIDE):
                            P[b, line % HO, q, tap, cb * WIDE + v] = own[v]
                    for c in range(C // WIDE * WIDE, C):
                        own[0] = T.uint8(0)
                        for j in range(windows):
                            own[0] = own[0] | X[b, y, x + j * stride_w, c] << T.Cast("uint8", j)
                        P[b, line % HO, q, tap, c] = own[0]

    return compiled(update_patterns)


@functools.cache
def accumulate_update_fc_kernel(steps: int, filled: bool) -> Kernel:
    """Kernel (g, spikes, psum, init); the time steps are fixed, `filled` if no row of the tree is absent.

    An absent row is an addition of +0, which is left out but for the sign of a zero.
    """

    def tree(leaf: Callable[[int], Expr]) -> Expr:
        return pairwise(leaf, steps) if filled else pairwise(leaf, steps) + positive_zero()

    @T.prim_func(s_tir=True)
    def accumulate_update_fc(g: T.handle, spikes: T.handle, psum: T.handle, init: T.int32):
        T.func_attr({"tirx.noalias": True})
        N, C, CH = T.int64(), T.int64(), T.int64()
        G = T.match_buffer(g, (steps, N, C), "float16", align=4)
        X = T.match_buffer(spikes, (steps, N, CH), "uint8", align=4)
        S = T.match_buffer(psum, (CH, C), "float16", align=4)
        table = T.alloc_buffer(((C + LANES - 1) // LANES, (N + 1) // 2, steps, 4, LANES), "float16")
        index = T.alloc_buffer(((N + 1) // 2, CH, steps), "int32")
        for i in T.parallel((C + LANES - 1) // LANES * ((N + 1) // 2)):
            own = T.alloc_buffer((4, LANES), "float16", scope="local")
            cb = i // ((N + 1) // 2)
            pair = i % ((N + 1) // 2)
            for t in range(steps):
                for v in range(LANES):
                    own[0, v] = T.float16(0)
                    own[1, v] = T.if_then_else(cb * LANES + v < C, G[t, 2 * pair, cb * LANES + v], T.float16(0))
                    own[2, v] = T.float16(0)
                    own[3, v] = T.if_then_else(
                        tirx.And(cb * LANES + v < C, 2 * pair + 1 < N), G[t, 2 * pair + 1, cb * LANES + v], T.float16(0)
                    )
                for e in T.unroll(4):
                    for v in T.vectorized(LANES):
                        table[cb, pair, t, e, v] = own[e % 2, v] + own[2 + e // 2, v]
        for pair in T.parallel((N + 1) // 2):
            for c in range(CH):
                for t in range(steps):
                    index[pair, c, t] = T.Cast("int32", X[t, 2 * pair, c]) + T.if_then_else(
                        2 * pair + 1 < N, 2 * T.Cast("int32", X[t, 2 * pair + 1, c]), T.int32(0)
                    )
        for i in T.parallel((C + LANES - 1) // LANES * ((CH + CHUNK - 1) // CHUNK)):
            base = T.alloc_buffer((LANES,), "float16", scope="local")
            cb = i % ((C + LANES - 1) // LANES)
            start = i // ((C + LANES - 1) // LANES) * CHUNK
            for c in range(start, T.min(start + CHUNK, CH)):
                for v in range(LANES):
                    base[v] = T.if_then_else(
                        tirx.And(init == 0, cb * LANES + v < C), S[c, cb * LANES + v], T.float16(0)
                    )
                for pair in range((N + 1) // 2):
                    for v in T.vectorized(LANES):
                        base[v] = base[v] + tree(lambda t: table[cb, pair, t, index[pair, c, t], v])
                for v in range(T.min(C - cb * LANES, T.int64(LANES))):
                    S[c, cb * LANES + v] = base[v]

    return compiled(accumulate_update_fc)
