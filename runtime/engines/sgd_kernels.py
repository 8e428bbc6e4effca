"""TensorIR kernel of the SGD unit."""

# ruff: noqa: PLR0912, PLR0915
# mypy: disable-error-code="untyped-decorator, no-untyped-def"
# A TensorIR function is parsed, not run: it cannot call, so it is long.

from __future__ import annotations

import functools

from runtime.engines.fp16_expressions import LANES, f16, f32, not_finite
from runtime.engines.tvm_build import Kernel, T, compiled, tirx

CHUNK = 4096  # weights that a thread takes at once


@functools.cache
def sgd_kernel(has_decay: bool, has_momentum: bool) -> Kernel:
    """Kernel (weight, gradient, momentum, constants, new weight, new momentum, counts).

    Shapes: momentum arrays (1,) if there is none; constants (3,) f32: step, decay, momentum; counts (chunks, 3):
    changed, lost, not finite.
    """

    @T.prim_func(s_tir=True)
    def sgd(
        weight: T.handle,
        gradient: T.handle,
        momentum: T.handle,
        constants: T.handle,
        new_weight: T.handle,
        new_momentum: T.handle,
        counts: T.handle,
    ):
        T.func_attr({"tirx.noalias": True})
        N, M, CHUNKS = T.int64(), T.int64(), T.int64()
        W = T.match_buffer(weight, (N,), "float16", align=4)
        G = T.match_buffer(gradient, (N,), "float16", align=4)
        B = T.match_buffer(momentum, (M,), "float16", align=4)
        C = T.match_buffer(constants, (3,), "float32", align=4)
        NW = T.match_buffer(new_weight, (N,), "float16", align=4)
        NB = T.match_buffer(new_momentum, (M,), "float16", align=4)
        COUNTS = T.match_buffer(counts, (CHUNKS, 3), "int32", align=4)
        for chunk in T.parallel(CHUNKS):
            w = T.alloc_buffer((LANES,), "float16", scope="local")
            b = T.alloc_buffer((LANES,), "float16", scope="local")
            new = T.alloc_buffer((LANES,), "float16", scope="local")
            exact = T.alloc_buffer((LANES,), "float32", scope="local")
            wrong = T.alloc_buffer((LANES,), "uint16", scope="local")
            changed = T.alloc_buffer((LANES,), "int32", scope="local")
            lost = T.alloc_buffer((LANES,), "int32", scope="local")
            for v in T.vectorized(LANES):
                wrong[v] = T.uint16(0)
            for v in T.vectorized(LANES):
                changed[v] = 0
            for v in T.vectorized(LANES):
                lost[v] = 0
            for block in range(T.min(T.int64(CHUNK // LANES), (N - chunk * CHUNK + LANES - 1) // LANES)):
                i = chunk * CHUNK + block * LANES
                # lanes behind the end hold +0, which counts as neither
                if i + LANES <= N:
                    for v in T.vectorized(LANES):
                        w[v] = W[i + v]
                    for v in T.vectorized(LANES):
                        b[v] = G[i + v]
                else:
                    for v in range(LANES):
                        w[v] = T.if_then_else(i + v < N, W[i + v], T.float16(0))
                        b[v] = T.if_then_else(i + v < N, G[i + v], T.float16(0))
                for v in T.vectorized(LANES):
                    wrong[v] = wrong[v] | not_finite(b[v])
                if has_decay:
                    for v in T.vectorized(LANES):
                        b[v] = f16(f32(b[v]) + f32(f16(C[1] * f32(w[v]))))
                if has_momentum:
                    if i + LANES <= N:
                        for v in T.vectorized(LANES):
                            b[v] = f16(f32(f16(C[2] * f32(B[i + v]))) + f32(b[v]))
                        for v in T.vectorized(LANES):
                            NB[i + v] = b[v]
                    else:
                        for v in range(N - i):
                            b[v] = f16(f32(f16(C[2] * f32(B[i + v]))) + f32(b[v]))
                            NB[i + v] = b[v]
                for v in T.vectorized(LANES):
                    exact[v] = C[0] * f32(b[v])
                for v in T.vectorized(LANES):
                    new[v] = f16(f32(w[v]) - f32(f16(exact[v])))
                for v in T.vectorized(LANES):
                    wrong[v] = wrong[v] | not_finite(b[v]) | not_finite(new[v])
                for v in T.vectorized(LANES):
                    changed[v] = changed[v] + T.Cast("int32", f32(new[v]) != f32(w[v]))
                for v in T.vectorized(LANES):
                    lost[v] = lost[v] + T.Cast(
                        "int32",
                        tirx.And(
                            exact[v] != T.float32(0),
                            T.reinterpret("uint16", new[v]) == T.reinterpret("uint16", w[v]),
                        ),
                    )
                if i + LANES <= N:
                    for v in T.vectorized(LANES):
                        NW[i + v] = new[v]
                else:
                    for v in range(N - i):
                        NW[i + v] = new[v]
            for k in range(3):
                COUNTS[chunk, k] = 0
            for v in range(LANES):
                COUNTS[chunk, 0] = COUNTS[chunk, 0] + changed[v]
                COUNTS[chunk, 1] = COUNTS[chunk, 1] + lost[v]
                COUNTS[chunk, 2] = COUNTS[chunk, 2] + T.Cast("int32", T.shift_right(wrong[v], T.uint16(15)))

    return compiled(sgd)
