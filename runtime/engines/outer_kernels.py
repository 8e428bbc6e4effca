"""TensorIR kernel of the Backward Engine's weight gradients on real inputs."""

# ruff: noqa: PLR0912
# mypy: disable-error-code="untyped-decorator, no-untyped-def"
# A TensorIR function is parsed, not run: it cannot call, so it is long; its lambdas expand in place.

from __future__ import annotations

import functools

from runtime.engines.fp16_expressions import LANES, f16, f32, nonzero
from runtime.engines.tvm_build import Kernel, T, compiled, tirx


@functools.cache
def accumulate_outer_kernel() -> Kernel:
    """Kernel (x, g, psum, kernel_w, stride_h, stride_w, init): a strip has 16 columns of one row of the kernel."""

    @T.prim_func(s_tir=True)
    def accumulate_outer(
        x: T.handle,
        g: T.handle,
        psum: T.handle,
        kernel_w: T.int64,
        stride_h: T.int64,
        stride_w: T.int64,
        init: T.int32,
    ):
        T.func_attr({"tirx.noalias": True})
        BX, HI, WI, R, K = T.int64(), T.int64(), T.int64(), T.int64(), T.int64()
        B, HO, WO, C = T.int64(), T.int64(), T.int64(), T.int64()
        X = T.match_buffer(x, (BX, HI, WI, R), "float16", align=4)
        G = T.match_buffer(g, (B, HO, WO, C), "float16", align=4)
        S = T.match_buffer(psum, (K, R, C), "float16", align=4)
        for strip in T.parallel((C + LANES - 1) // LANES * (K // kernel_w)):
            acc = T.alloc_buffer((kernel_w * R, LANES), "float16")
            sums = T.alloc_buffer((kernel_w * R, LANES), "float16")
            own = T.alloc_buffer((LANES,), "float16", scope="local")
            first = strip % ((C + LANES - 1) // LANES) * LANES
            ky = strip // ((C + LANES - 1) // LANES)
            for i in range(kernel_w * R):
                for v in range(LANES):
                    sums[i, v] = T.if_then_else(
                        tirx.And(init == 0, first + v < C), S[ky * kernel_w + i // R, i % R, first + v], T.float16(0)
                    )
            for b in range(B):
                for i in range(kernel_w * R):
                    for v in T.vectorized(LANES):
                        acc[i, v] = T.float16(0)
                for oy in range(HO):
                    for ox in range(WO):
                        if first + LANES <= C:
                            for v in T.vectorized(LANES):
                                own[v] = G[b, oy, ox, first + v]
                        else:
                            for v in range(LANES):
                                own[v] = T.if_then_else(first + v < C, G[b, oy, ox, first + v], T.float16(0))
                        for kx in range(kernel_w):
                            for r in range(R):
                                for v in T.vectorized(LANES):
                                    acc[kx * R + r, v] = T.Select(
                                        nonzero(own[v]),
                                        f16(
                                            f32(acc[kx * R + r, v])
                                            + f32(
                                                f16(
                                                    f32(X[b % BX, oy * stride_h + ky, ox * stride_w + kx, r])
                                                    * f32(own[v])
                                                )
                                            )
                                        ),
                                        acc[kx * R + r, v],
                                    )
                for i in range(kernel_w * R):
                    for v in T.vectorized(LANES):
                        sums[i, v] = sums[i, v] + acc[i, v]
            for i in range(kernel_w * R):
                for v in range(T.min(C - first, T.int64(LANES))):
                    S[ky * kernel_w + i // R, i % R, first + v] = sums[i, v]

    return compiled(accumulate_outer)
