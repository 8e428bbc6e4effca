"""TensorIR kernel of one Soma stage: pooling, neuron update over all steps, gradient mask."""

# ruff: noqa: PLR0912, PLR0915
# mypy: disable-error-code="untyped-decorator, no-untyped-def"
# A TensorIR function is parsed, not run: it cannot call, so it is long; its lambdas expand in place.

from __future__ import annotations

import functools

import numpy as np

from runtime.engines.fp16_expressions import not_finite
from runtime.engines.soma_plan import F16, Compare, Neuron, Param, Pool, PoolKind, Reset
from runtime.engines.tvm_build import Buffer, Expr, Kernel, T, compiled, rounded, tirx, vector_lanes

Int64 = np.ndarray[tuple[int], np.dtype[np.int64]]
NO_POOL: tuple[Int64, F16] = (np.zeros(8, np.int64), np.zeros(1, np.float16))


@functools.cache
def pool_geometry(pool: Pool) -> tuple[Int64, F16]:
    """The numbers of a pool in the order in which the kernel reads them, and its reciprocals."""
    axes = [
        *(pool.kernel_h, pool.stride_h, pool.top, pool.limit_h),
        *(pool.kernel_w, pool.stride_w, pool.left, pool.limit_w),
    ]
    return np.array(axes, np.int64), pool.reciprocals()


@functools.cache
def stage_kernel(
    dtype: str, channels: int, neuron: Neuron | None, pool: PoolKind | None, include_pad: bool, probe: bool
) -> Kernel:
    """Kernel (x, params, first, given, geometry, reciprocals, out shape, spikes, membrane, mask, last, bad).

    x is (T, N, h, w, channels) of `dtype`; first and last are the states before and after, (sites, channels),
    a site being (n, y, x) of the output; spikes, membrane and mask are (T, sites, channels), or anything
    where they are not wanted. `given` 0 starts from the initial value. bad[0] becomes 1 if a value is not
    finite. Without a neuron the pooled spikes are the output.
    """
    lanes = vector_lanes(channels)
    pre_bias = neuron is not None and neuron.has_pre_bias
    scale = neuron is not None and neuron.has_scale
    bias = neuron is not None and neuron.has_bias
    fires = neuron is not None and neuron.fire
    keeps = neuron is not None and (probe or not neuron.fire)

    def reaches(m: Expr, threshold: Expr) -> Expr:
        return m >= threshold if neuron is not None and neuron.compare is Compare.GE else m > threshold

    def after_spike(m: Expr, params: Buffer, c: Expr) -> Expr:
        assert neuron is not None
        match neuron.reset:
            case Reset.HARD:
                return params[int(Param.RESET_VALUE), c]
            case Reset.SOFT:
                return m - params[int(Param.THRESHOLD), c]
            case Reset.NONE:
                return m

    @T.prim_func(s_tir=True)
    def stage(
        x: T.handle,
        params: T.handle,
        first: T.handle,
        given: T.int32,
        geometry: T.handle,
        reciprocals: T.handle,
        out_h: T.int64,
        out_w: T.int64,
        spikes: T.handle,
        membrane: T.handle,
        mask: T.handle,
        last: T.handle,
        bad: T.handle,
    ):
        T.func_attr({"tirx.noalias": True})
        TS = T.int64()
        N = T.int64()
        H = T.int64()
        W = T.int64()
        D = T.int64()
        SF, SL, SSP, SME, SMA = T.int64(), T.int64(), T.int64(), T.int64(), T.int64()
        TSP, TME, TMA = T.int64(), T.int64(), T.int64()
        X = T.match_buffer(x, (TS, N, H, W, channels), dtype, align=4)
        PA = T.match_buffer(params, (9, channels), "float16", align=4)
        FI = T.match_buffer(first, (SF, channels), "float16", align=4)
        G = T.match_buffer(geometry, (8,), "int64", align=4)
        RE = T.match_buffer(reciprocals, (D,), "float16", align=4)
        SP = T.match_buffer(spikes, (TSP, SSP, channels), "uint8", align=4)
        ME = T.match_buffer(membrane, (TME, SME, channels), "float16", align=4)
        MA = T.match_buffer(mask, (TMA, SMA, channels), "uint8", align=4)
        LA = T.match_buffer(last, (SL, channels), "float16", align=4)
        BAD = T.match_buffer(bad, (1,), "int32", align=4)
        for site in T.parallel(N * out_h * out_w):
            a = T.alloc_buffer((lanes,), "float16", scope="local")
            e = T.alloc_buffer((lanes,), "float16", scope="local")
            m = T.alloc_buffer((lanes,), "float16", scope="local")
            last_v = T.alloc_buffer((lanes,), "float16", scope="local")
            wrong = T.alloc_buffer((lanes,), "uint16", scope="local")
            n = site // (out_h * out_w)
            oy = site // out_w % out_h
            ox = site % out_w
            y0 = G[2] + oy * G[1]
            x0 = G[6] + ox * G[5]
            y1 = T.min(y0 + G[0], G[3])
            x1 = T.min(x0 + G[4], G[7])
            top = T.max(y0, T.int64(0))
            left = T.max(x0, T.int64(0))
            valid_h = T.min(y1, H) - top
            valid_w = T.min(x1, W) - left
            for b in range(channels // lanes):
                for v in T.vectorized(lanes):
                    wrong[v] = T.uint16(0)
                if neuron is not None:
                    for v in T.vectorized(lanes):
                        last_v[v] = T.if_then_else(
                            given != 0, FI[site, b * lanes + v], PA[int(Param.INITIAL), b * lanes + v]
                        )
                for t in range(TS):
                    if pool is None:
                        for v in T.vectorized(lanes):
                            a[v] = T.Cast("float16", X[t, n, oy, ox, b * lanes + v])
                        if pre_bias:
                            for v in T.vectorized(lanes):
                                a[v] = a[v] + PA[int(Param.PRE_BIAS), b * lanes + v]
                    else:
                        for v in T.vectorized(lanes):
                            a[v] = T.float16(0)
                        for k in range(valid_h * valid_w):
                            for v in T.vectorized(lanes):
                                e[v] = T.Cast("float16", X[t, n, top + k // valid_w, left + k % valid_w, b * lanes + v])
                            if pre_bias:
                                for v in T.vectorized(lanes):
                                    e[v] = e[v] + PA[int(Param.PRE_BIAS), b * lanes + v]
                            for v in T.vectorized(lanes):
                                wrong[v] = wrong[v] | not_finite(e[v])
                            if pool is PoolKind.AVG:
                                for v in T.vectorized(lanes):
                                    a[v] = a[v] + e[v]
                            else:
                                for v in T.vectorized(lanes):
                                    a[v] = T.Select(tirx.Or(k == 0, e[v] > a[v]), e[v], a[v])
                        if pool is PoolKind.AVG:
                            for v in T.vectorized(lanes):
                                a[v] = rounded(a[v] * RE[(y1 - y0) * (x1 - x0) if include_pad else valid_h * valid_w])
                    if scale:
                        for v in T.vectorized(lanes):
                            a[v] = rounded(a[v] * PA[int(Param.SCALE), b * lanes + v])
                    if bias:
                        for v in T.vectorized(lanes):
                            a[v] = a[v] + PA[int(Param.BIAS), b * lanes + v]
                    for v in T.vectorized(lanes):
                        wrong[v] = wrong[v] | not_finite(a[v])
                    if neuron is None:
                        for v in T.vectorized(lanes):
                            SP[t, site, b * lanes + v] = T.Cast("uint8", a[v])
                    else:
                        for v in T.vectorized(lanes):
                            m[v] = rounded(PA[int(Param.DECAY), b * lanes + v] * last_v[v]) + a[v]
                        for v in T.vectorized(lanes):
                            wrong[v] = wrong[v] | not_finite(m[v])
                        for v in T.vectorized(lanes):
                            last_v[v] = m[v]
                        if fires:
                            for v in T.vectorized(lanes):
                                SP[t, site, b * lanes + v] = T.Cast(
                                    "uint8", reaches(m[v], PA[int(Param.THRESHOLD), b * lanes + v])
                                )
                            for v in T.vectorized(lanes):
                                last_v[v] = T.Select(
                                    reaches(m[v], PA[int(Param.THRESHOLD), b * lanes + v]),
                                    after_spike(m[v], PA, b * lanes + v),
                                    m[v],
                                )
                        if keeps:
                            for v in T.vectorized(lanes):
                                ME[t, site, b * lanes + v] = m[v]
                        if probe:
                            for v in T.vectorized(lanes):
                                MA[t, site, b * lanes + v] = T.Cast(
                                    "uint8",
                                    tirx.And(
                                        PA[int(Param.TH_L), b * lanes + v] < m[v],
                                        m[v] < PA[int(Param.TH_R), b * lanes + v],
                                    ),
                                )
                if neuron is not None:
                    for v in T.vectorized(lanes):
                        LA[site, b * lanes + v] = last_v[v]
                for v in range(lanes):
                    if wrong[v] != T.uint16(0):
                        BAD[0] = 1

    return compiled(stage)
