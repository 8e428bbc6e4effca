"""TensorIR kernels of the Backward Engine's input gradients: sparse convolution and linear layer."""

# ruff: noqa: B023, PLR0912, PLR0915
# mypy: disable-error-code="untyped-decorator, no-untyped-def"
# A TensorIR function is parsed, not run: it cannot call, so it is long; its lambdas expand in place.

from __future__ import annotations

import functools

from runtime.engines.adder_tree import pairwise
from runtime.engines.fp16_expressions import LANES, f16, f32, nonzero, positive_zero
from runtime.engines.tvm_build import Kernel, T, compiled, tirx


@functools.cache
def accumulate_gradient_kernel(dense_rows: int, masked: bool) -> Kernel:
    """Kernel (x, weights, out_mask, psum, kernel_h, kernel_w, stride_h, stride_w, top, left, init).

    Each input pixel gets the list of its rows that are not zero. Taps follow in raster order, and in each the rows
    of its list: sums of different rows do not wait for each other. A vector is 16 columns of one output.
    Shapes: out_mask (sites, C), not read unless `masked`.
    """

    @T.prim_func(s_tir=True)
    def accumulate_gradient(
        x: T.handle,
        weights: T.handle,
        out_mask: T.handle,
        psum: T.handle,
        kernel_h: T.int64,
        kernel_w: T.int64,
        stride_h: T.int64,
        stride_w: T.int64,
        top: T.int64,
        left: T.int64,
        init: T.int32,
    ):
        T.func_attr({"tirx.noalias": True})
        N, HI, WI, R, K = T.int64(), T.int64(), T.int64(), T.int64(), T.int64()
        HO, WO, C, M, MC = T.int64(), T.int64(), T.int64(), T.int64(), T.int64()
        X = T.match_buffer(x, (N, HI, WI, R), "float16", align=4)
        W = T.match_buffer(weights, (K, C, R), "float16", align=4)
        OM = T.match_buffer(out_mask, (M, MC), "uint8", align=4)
        S = T.match_buffer(psum, (N, HO, WO, C), "float16", align=4)
        table = T.alloc_buffer(((C + LANES - 1) // LANES, K, R, LANES), "float32")
        count = T.alloc_buffer((N, HI, WI), "int32")
        # one place more than rows, for what is written behind the end of a full list
        row = T.alloc_buffer((N, HI, WI, R + 1), "int32")
        value = T.alloc_buffer((N, HI, WI, R + 1), "float32")
        for i in T.parallel((C + LANES - 1) // LANES * K):
            for r in range(R):
                for v in range(LANES):
                    c = i // K * LANES + v
                    table[i // K, i % K, r, v] = T.if_then_else(c < C, f32(W[i % K, c, r]), T.float32(0))
        for i in T.parallel(N * HI):
            b = i // HI
            iy = i % HI
            for ix in range(WI):
                end = T.int32(0)
                for r in range(R):
                    row[b, iy, ix, end] = T.Cast("int32", r)
                    value[b, iy, ix, end] = f32(X[b, iy, ix, r])
                    end = end + T.Cast("int32", nonzero(X[b, iy, ix, r]))
                count[b, iy, ix] = end
        for line in T.parallel(N * HO):
            acc = T.alloc_buffer((dense_rows, LANES), "float16", scope="local")
            base = T.alloc_buffer((LANES,), "float16", scope="local")
            wanted = T.alloc_buffer((LANES,), "uint8", scope="local")
            b = line // HO
            oy = line % HO
            y0 = (T.max(oy + top - kernel_h + 1, T.int64(0)) + stride_h - 1) // stride_h
            y1 = T.min(T.max(oy + top + stride_h, T.int64(0)) // stride_h, HI)
            for ox in range(WO):
                x0 = (T.max(ox + left - kernel_w + 1, T.int64(0)) + stride_w - 1) // stride_w
                x1 = T.min(T.max(ox + left + stride_w, T.int64(0)) // stride_w, WI)
                for cb in range((C + LANES - 1) // LANES):
                    first = cb * LANES
                    any_wanted = T.uint8(0)
                    if first + LANES <= C:
                        for v in T.vectorized(LANES):
                            base[v] = S[b, oy, ox, first + v]
                        if masked:
                            for v in T.vectorized(LANES):
                                wanted[v] = OM[line * WO + ox, first + v]
                    else:
                        for v in range(LANES):
                            base[v] = T.if_then_else(first + v < C, S[b, oy, ox, first + v], T.float16(0))
                        if masked:
                            for v in range(LANES):
                                wanted[v] = T.if_then_else(first + v < C, OM[line * WO + ox, first + v], T.uint8(0))
                    if init != 0:
                        for v in T.vectorized(LANES):
                            base[v] = T.float16(0)
                    if masked:
                        for v in range(LANES):
                            any_wanted = any_wanted | wanted[v]
                    if tirx.Or(not masked, any_wanted != T.uint8(0)):
                        for r in range(dense_rows):
                            for v in T.vectorized(LANES):
                                acc[r, v] = T.float16(0)
                        for iy in range(y0, y1):
                            for ix in range(x0, x1):
                                tap = (oy + top - iy * stride_h) * kernel_w + ox + left - ix * stride_w
                                for i in range(count[b, iy, ix]):
                                    r = row[b, iy, ix, i]
                                    for v in T.vectorized(LANES):
                                        acc[r, v] = f16(
                                            f32(acc[r, v]) + f32(f16(value[b, iy, ix, i] * table[cb, tap, r, v]))
                                        )
                        if masked:
                            for v in T.vectorized(LANES):
                                base[v] = T.Select(
                                    wanted[v] != T.uint8(0),
                                    base[v] + pairwise(lambda r: acc[r, v], dense_rows),
                                    base[v],
                                )
                        else:
                            for v in T.vectorized(LANES):
                                base[v] = base[v] + pairwise(lambda r: acc[r, v], dense_rows)
                    if first + LANES <= C:
                        for v in T.vectorized(LANES):
                            S[b, oy, ox, first + v] = base[v]
                    else:
                        for v in range(C - first):
                            S[b, oy, ox, first + v] = base[v]

    return compiled(accumulate_gradient)


@functools.cache
def accumulate_fc_gradient_kernel(dense_rows: int) -> Kernel:
    """Kernel (x, weights, psum, init) over the columns of all positions of a map.

    A product of -0 counts as +0 to a PE. Here the partial sum takes that addition of +0: it decides the sign of a
    zero only where all the others are zeros.
    Shapes: x (B, R), weights (P * C, R), psum (B, P * C).
    """

    @T.prim_func(s_tir=True)
    def accumulate_fc_gradient(x: T.handle, weights: T.handle, psum: T.handle, init: T.int32):
        T.func_attr({"tirx.noalias": True})
        B, R, C = T.int64(), T.int64(), T.int64()
        X = T.match_buffer(x, (B, R), "float16", align=4)
        W = T.match_buffer(weights, (C, R), "float16", align=4)
        S = T.match_buffer(psum, (B, C), "float16", align=4)
        for cb in T.parallel((C + LANES - 1) // LANES):
            own = T.alloc_buffer((dense_rows, LANES), "float32", scope="local")
            leaf = T.alloc_buffer((dense_rows, LANES), "float16", scope="local")
            base = T.alloc_buffer((LANES,), "float16", scope="local")
            for r in range(R):
                for v in range(LANES):
                    own[r, v] = T.if_then_else(cb * LANES + v < C, f32(W[cb * LANES + v, r]), T.float32(0))
            for r in range(dense_rows):
                for v in T.vectorized(LANES):
                    leaf[r, v] = T.float16(0)
            for b in range(B):
                for r in range(R):
                    for v in T.vectorized(LANES):
                        leaf[r, v] = f16(f32(X[b, r]) * own[r, v])
                for v in range(LANES):
                    base[v] = T.if_then_else(
                        tirx.And(init == 0, cb * LANES + v < C), S[b, cb * LANES + v], T.float16(0)
                    )
                for v in T.vectorized(LANES):
                    base[v] = (base[v] + positive_zero()) + pairwise(lambda r: leaf[r, v], dense_rows)
                for v in range(LANES):
                    if cb * LANES + v < C:
                        S[b, cb * LANES + v] = base[v]

    return compiled(accumulate_fc_gradient)
