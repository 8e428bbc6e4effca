"""TensorIR kernels of the Grad unit: one stage backwards in time with its pool, and winners of a max pooling."""

# ruff: noqa: PLR0912, PLR0915
# mypy: disable-error-code="untyped-decorator, no-untyped-def"
# A TensorIR function is parsed, not run: it cannot call, so it is long; its lambdas expand in place.

from __future__ import annotations

import functools
from dataclasses import dataclass

from runtime.engines.fp16_expressions import nonzero, not_finite
from runtime.engines.grad_plan import GradNeuron
from runtime.engines.soma_plan import Param, PoolKind, Reset
from runtime.engines.tvm_build import Kernel, T, compiled, rounded, tirx, vector_lanes


@dataclass(frozen=True, slots=True, kw_only=True)
class GradStage:
    """A neuron, then the pool in front of it, backwards; what a kernel is compiled for.

    `eta` is an argument of the kernel, so the neuron's own does not count.
    """

    channels: int
    neuron: GradNeuron | None
    pool: PoolKind | None
    include_pad: bool
    over_spikes: bool  # a maximum goes to the first that spikes, not to the winner
    last: bool  # leaves the gradient of the Soma's input, with its mask


@functools.cache
def grad_stage_kernel(stage: GradStage) -> Kernel:
    """Kernel (given, params, eta, spikes, mask, membrane, first, has_first, geometry, reciprocals, out shape, chosen,
    gradient, gradient mask, dm, bad).

    Shapes: given, spikes, mask and membrane (T, sites, channels), or anything where the neuron needs none; first and
    dm, the gradient of the membrane potential after and at these steps, (sites, channels), a site being (n, y, x)
    of the stage; chosen, winners or spikes, gradient and its mask (T, N, H, W, channels). What lies in no window is
    not written. bad[0] becomes 1 if a value is not finite.
    """
    channels, neuron, pool = stage.channels, stage.neuron, stage.pool
    lanes = vector_lanes(channels)
    fires = neuron is not None and neuron.fire
    scale = neuron is not None and neuron.has_scale
    hides = neuron is not None and neuron.needs_spikes
    hard = neuron is not None and neuron.needs_membrane
    soft = fires and neuron is not None and neuron.reset is Reset.SOFT and not neuron.detach
    checks = neuron is not None or stage.last
    averages, over_spikes, include_pad, last = pool is PoolKind.AVG, stage.over_spikes, stage.include_pad, stage.last

    @T.prim_func(s_tir=True)
    def grad_stage(
        given: T.handle,
        params: T.handle,
        eta: T.handle,
        spikes: T.handle,
        mask: T.handle,
        membrane: T.handle,
        first: T.handle,
        has_first: T.int32,
        geometry: T.handle,
        reciprocals: T.handle,
        out_h: T.int64,
        out_w: T.int64,
        chosen: T.handle,
        gradient: T.handle,
        gradient_mask: T.handle,
        dm: T.handle,
        bad: T.handle,
    ):
        T.func_attr({"tirx.noalias": True})
        TS, SITES, N, H, W, D = T.int64(), T.int64(), T.int64(), T.int64(), T.int64(), T.int64()
        TSP, TMA, TME, SSP, SMA, SME, SF, SD = (
            *(T.int64(), T.int64(), T.int64(), T.int64()),
            *(T.int64(), T.int64(), T.int64(), T.int64()),
        )
        TC, NC, HC, WC, TG, NG, HG, WG = (
            *(T.int64(), T.int64(), T.int64(), T.int64()),
            *(T.int64(), T.int64(), T.int64(), T.int64()),
        )
        GI = T.match_buffer(given, (TS, SITES, channels), "float16", align=4)
        PA = T.match_buffer(params, (9, channels), "float16", align=4)
        ETA = T.match_buffer(eta, (1,), "float16", align=4)
        SP = T.match_buffer(spikes, (TSP, SSP, channels), "uint8", align=4)
        MA = T.match_buffer(mask, (TMA, SMA, channels), "uint8", align=4)
        ME = T.match_buffer(membrane, (TME, SME, channels), "float16", align=4)
        FI = T.match_buffer(first, (SF, channels), "float16", align=4)
        G = T.match_buffer(geometry, (8,), "int64", align=4)
        RE = T.match_buffer(reciprocals, (D,), "float16", align=4)
        CH = T.match_buffer(chosen, (TC, NC, HC, WC, channels), "uint8", align=4)
        OUT = T.match_buffer(gradient, (TS, N, H, W, channels), "float16", align=4)
        OM = T.match_buffer(gradient_mask, (TG, NG, HG, WG, channels), "uint8", align=4)
        DM = T.match_buffer(dm, (SD, channels), "float16", align=4)
        BAD = T.match_buffer(bad, (1,), "int32", align=4)
        for site in T.parallel(SITES):
            a = T.alloc_buffer((lanes,), "float16", scope="local")
            g = T.alloc_buffer((lanes,), "float16", scope="local")
            d = T.alloc_buffer((lanes,), "float16", scope="local")
            part = T.alloc_buffer((lanes,), "float16", scope="local")
            left_over = T.alloc_buffer((lanes,), "uint8", scope="local")
            takes = T.alloc_buffer((lanes,), "uint8", scope="local")
            wrong = T.alloc_buffer((lanes,), "uint16", scope="local")
            n = site // (out_h * out_w)
            oy = site // out_w % out_h
            ox = site % out_w
            # windows have no padding, so they start inside the map
            y0 = oy * G[1]
            x0 = ox * G[5]
            y1 = T.min(y0 + G[0], G[3])
            x1 = T.min(x0 + G[4], G[7])
            valid_h = T.min(y1, H) - y0
            valid_w = T.min(x1, W) - x0
            for b in range(channels // lanes):
                for v in T.vectorized(lanes):
                    wrong[v] = T.uint16(0)
                if neuron is not None:
                    for v in T.vectorized(lanes):
                        d[v] = T.if_then_else(has_first != 0, FI[site, b * lanes + v], T.float16(0))
                for back in range(TS):
                    t = TS - 1 - back
                    for v in T.vectorized(lanes):
                        a[v] = GI[t, site, b * lanes + v]
                    if neuron is not None:
                        for v in T.vectorized(lanes):
                            g[v] = rounded(PA[int(Param.DECAY), b * lanes + v] * d[v])
                        if fires:
                            if hard:
                                for v in T.vectorized(lanes):
                                    a[v] = a[v] + rounded(
                                        g[v] * (PA[int(Param.RESET_VALUE), b * lanes + v] - ME[t, site, b * lanes + v])
                                    )
                            if soft:
                                for v in T.vectorized(lanes):
                                    a[v] = a[v] - rounded(g[v] * PA[int(Param.THRESHOLD), b * lanes + v])
                            for v in T.vectorized(lanes):
                                a[v] = T.Select(
                                    MA[t, site, b * lanes + v] != T.uint8(0), rounded(a[v] * ETA[0]), T.float16(0)
                                )
                            if hides:
                                for v in T.vectorized(lanes):
                                    g[v] = T.Select(SP[t, site, b * lanes + v] != T.uint8(0), T.float16(0), g[v])
                        for v in T.vectorized(lanes):
                            d[v] = g[v] + a[v]
                        for v in T.vectorized(lanes):
                            wrong[v] = wrong[v] | not_finite(d[v])
                        for v in T.vectorized(lanes):
                            a[v] = d[v]
                        if scale:
                            for v in T.vectorized(lanes):
                                a[v] = rounded(a[v] * PA[int(Param.SCALE), b * lanes + v])
                    if checks:
                        for v in T.vectorized(lanes):
                            wrong[v] = wrong[v] | not_finite(a[v])
                    if pool is None:
                        for v in T.vectorized(lanes):
                            OUT[t, n, oy, ox, b * lanes + v] = a[v]
                        if last:
                            for v in T.vectorized(lanes):
                                OM[t, n, oy, ox, b * lanes + v] = T.Cast("uint8", nonzero(a[v]))
                    else:
                        if averages:
                            for v in T.vectorized(lanes):
                                a[v] = rounded(a[v] * RE[(y1 - y0) * (x1 - x0) if include_pad else valid_h * valid_w])
                        for v in T.vectorized(lanes):
                            part[v] = a[v]
                        if over_spikes:
                            for v in T.vectorized(lanes):
                                left_over[v] = T.uint8(1)
                            for v in T.vectorized(lanes):
                                takes[v] = T.uint8(1)
                            for k in range(valid_h * valid_w):
                                for v in T.vectorized(lanes):
                                    takes[v] = T.Select(
                                        CH[t, n, y0 + k // valid_w, x0 + k % valid_w, b * lanes + v] != T.uint8(0),
                                        T.uint8(0),
                                        takes[v],
                                    )
                        for k in range(valid_h * valid_w):
                            y = y0 + k // valid_w
                            x = x0 + k % valid_w
                            if over_spikes:
                                # `takes` is 1 at first only where nothing spikes, and then the first element does
                                for v in T.vectorized(lanes):
                                    takes[v] = T.Select(
                                        tirx.Or(CH[t, n, y, x, b * lanes + v] != T.uint8(0), takes[v] != T.uint8(0)),
                                        left_over[v],
                                        T.uint8(0),
                                    )
                                for v in T.vectorized(lanes):
                                    left_over[v] = left_over[v] - takes[v]
                                for v in T.vectorized(lanes):
                                    part[v] = T.Select(takes[v] != T.uint8(0), a[v], T.float16(0))
                                for v in T.vectorized(lanes):
                                    takes[v] = T.uint8(0)
                            elif not averages:
                                for v in T.vectorized(lanes):
                                    part[v] = T.Select(CH[t, n, y, x, b * lanes + v] != T.uint8(0), a[v], T.float16(0))
                            for v in T.vectorized(lanes):
                                OUT[t, n, y, x, b * lanes + v] = part[v]
                            if last:
                                for v in T.vectorized(lanes):
                                    OM[t, n, y, x, b * lanes + v] = T.Cast("uint8", nonzero(part[v]))
                if neuron is not None:
                    for v in T.vectorized(lanes):
                        DM[site, b * lanes + v] = d[v]
                for v in range(lanes):
                    if wrong[v] != T.uint16(0):
                        BAD[0] = 1

    return compiled(grad_stage)


@functools.cache
def pool_winners_kernel(channels: int, has_bias: bool) -> Kernel:
    """Kernel (x, pre_bias, geometry, out shape, winners); what lies in no window is not written.

    Shapes: x, winners (maps, H, W, channels).
    """
    lanes = vector_lanes(channels)

    @T.prim_func(s_tir=True)
    def pool_winners(
        x: T.handle, pre_bias: T.handle, geometry: T.handle, out_h: T.int64, out_w: T.int64, winners: T.handle
    ):
        T.func_attr({"tirx.noalias": True})
        N, H, W = T.int64(), T.int64(), T.int64()
        X = T.match_buffer(x, (N, H, W, channels), "float16", align=4)
        PB = T.match_buffer(pre_bias, (channels,), "float16", align=4)
        G = T.match_buffer(geometry, (8,), "int64", align=4)
        WIN = T.match_buffer(winners, (N, H, W, channels), "uint8", align=4)
        for line in T.parallel(N * out_h):
            best = T.alloc_buffer((lanes,), "float16", scope="local")
            value = T.alloc_buffer((lanes,), "float16", scope="local")
            winner = T.alloc_buffer((lanes,), "int32", scope="local")
            n = line // out_h
            y0 = line % out_h * G[1]
            valid_h = T.min(T.min(y0 + G[0], G[3]), H) - y0
            for ox in range(out_w):
                x0 = ox * G[5]
                valid_w = T.min(T.min(x0 + G[4], G[7]), W) - x0
                for b in range(channels // lanes):
                    for v in T.vectorized(lanes):
                        winner[v] = 0
                    for k in range(valid_h * valid_w):
                        for v in T.vectorized(lanes):
                            value[v] = X[n, y0 + k // valid_w, x0 + k % valid_w, b * lanes + v]
                        if has_bias:
                            for v in T.vectorized(lanes):
                                value[v] = value[v] + PB[b * lanes + v]
                        for v in T.vectorized(lanes):
                            winner[v] = T.Select(tirx.And(k != 0, value[v] > best[v]), T.Cast("int32", k), winner[v])
                        for v in T.vectorized(lanes):
                            best[v] = T.Select(tirx.Or(k == 0, value[v] > best[v]), value[v], best[v])
                    for k in range(valid_h * valid_w):
                        for v in T.vectorized(lanes):
                            WIN[n, y0 + k // valid_w, x0 + k % valid_w, b * lanes + v] = T.Cast(
                                "uint8", winner[v] == T.Cast("int32", k)
                            )

    return compiled(pool_winners)
