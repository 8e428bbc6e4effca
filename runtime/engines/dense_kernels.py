"""TensorIR kernel of the Backward Engine in dense mode."""

# ruff: noqa: B023
# mypy: disable-error-code="untyped-decorator, no-untyped-def"
# A TensorIR function is parsed, not run: it cannot call, so it is long; its lambdas expand in place.

from __future__ import annotations

import functools

from runtime.engines.adder_tree import pairwise
from runtime.engines.tvm_build import Kernel, T, compiled, rounded, vector_lanes


@functools.cache
def accumulate_dense_kernel(channels: int, cols: int) -> Kernel:
    """Kernel (x, weights, psum, kernel_w, stride_h, stride_w, init); channels and columns are fixed."""
    lanes = vector_lanes(cols)

    @T.prim_func(s_tir=True)
    def accumulate_dense(
        x: T.handle,
        weights: T.handle,
        psum: T.handle,
        kernel_w: T.int64,
        stride_h: T.int64,
        stride_w: T.int64,
        init: T.int32,
    ):
        T.func_attr({"tirx.noalias": True})
        N = T.int64()
        HI = T.int64()
        WI = T.int64()
        K = T.int64()
        HO = T.int64()
        WO = T.int64()
        X = T.match_buffer(x, (N, HI, WI, channels), "float16", align=4)
        W = T.match_buffer(weights, (K, channels, cols), "float16", align=4)
        S = T.match_buffer(psum, (N, HO, WO, cols), "float16", align=4)
        for line in T.parallel(N * HO):
            acc = T.alloc_buffer((channels, lanes), "float16", scope="local")
            base = T.alloc_buffer((lanes,), "float16", scope="local")
            for ox in range(WO):
                for b in range(cols // lanes):
                    for c in range(channels):
                        for v in T.vectorized(lanes):
                            acc[c, v] = T.float16(0)
                        for tap in range(K):
                            for v in T.vectorized(lanes):
                                acc[c, v] = acc[c, v] + rounded(
                                    X[
                                        line // HO,
                                        line % HO * stride_h + tap // kernel_w,
                                        ox * stride_w + tap % kernel_w,
                                        c,
                                    ]
                                    * W[tap, c, b * lanes + v]
                                )
                    for v in T.vectorized(lanes):
                        base[v] = T.if_then_else(init == 0, S[line // HO, line % HO, ox, b * lanes + v], T.float16(0))
                    for v in T.vectorized(lanes):
                        S[line // HO, line % HO, ox, b * lanes + v] = base[v] + pairwise(lambda c: acc[c, v], channels)

    return compiled(accumulate_dense)
