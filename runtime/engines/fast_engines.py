"""The fast engines: compiled kernels over whole grid iterations, equal to the golden ones bit for bit."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from runtime.engines import fast_grad, fast_training
from runtime.engines.dense_kernels import accumulate_dense_kernel
from runtime.engines.fp16_expressions import LANES
from runtime.engines.geometry import GradWindow, Window
from runtime.engines.grad_plan import GradPlan, GradResult, KeptStage
from runtime.engines.lut_kernels import (
    MAX_ROWS,
    accumulate_fc_kernel,
    accumulate_kernel,
    channel_indices_kernel,
    piece_indices_kernel,
    program_conv_kernel,
)
from runtime.engines.protocol import U16
from runtime.engines.sgd_rule import Sgd, SgdResult
from runtime.engines.soma_kernels import NO_POOL, pool_geometry, stage_kernel
from runtime.engines.soma_plan import F16, U8, Neuron, Pool, SomaPlan, SomaResult, StageProbe
from runtime.engines.tvm_build import writeable

EXPAND_FROM = 300  # pixels above which forming all 512 sums of a PE is cheaper than adding per pixel


@dataclass(frozen=True, slots=True, kw_only=True)
class FastEngines:
    """TVM kernels on all cores. Absent PE rows are not added: x + 0 = x, and no accumulator is ever -0."""

    array_rows: int
    dense_rows: int
    update_rows: int

    def program_conv(self, weights: F16) -> F16:
        """See `Engines`."""
        rows, _, cols = weights.shape
        lut = np.empty((rows, 3, 8, cols), np.float16)
        program_conv_kernel(cols)(writeable(weights), lut)
        return lut

    def indices(self, spikes: U8, window: Window, first_piece: int, rows: int) -> U16:
        """See `Engines`."""
        batch, height, width, channels = spikes.shape
        assert rows <= MAX_ROWS
        assert window.covers(height, width)
        assert first_piece + rows <= channels * window.pieces
        patterns = np.empty((batch, window.out_h, window.out_w, rows), np.uint16)
        if window.pieces == 1:
            channel_indices_kernel(window.kernel_h, window.kernel_w, rows)(
                writeable(spikes), patterns, window.stride_h, window.stride_w, first_piece
            )
            return patterns
        piece_indices_kernel()(
            writeable(spikes),
            patterns,
            window.kernel_h,
            window.kernel_w,
            window.stride_h,
            window.stride_w,
            first_piece,
            window.pieces,
        )
        return patterns

    def accumulate(self, lut: F16, indices: U16, psum: F16, init: bool) -> None:
        """See `Engines`."""
        rows, cols = lut.shape[0], lut.shape[3]
        assert rows <= self.array_rows
        pixels = psum.size // cols
        accumulate_kernel(rows, pixels >= EXPAND_FROM, cols % LANES == 0)(
            lut.reshape(rows, 24, cols), indices.reshape(pixels, rows), psum.reshape(pixels, cols), int(init)
        )

    def program_fc(self, weights: F16) -> F16:
        """See `Engines`."""
        return weights.copy()

    def accumulate_fc(self, lut: F16, spikes: U8, psum: F16, init: bool) -> None:
        """See `Engines`."""
        assert lut.shape[1] == self.array_rows
        accumulate_fc_kernel(self.array_rows)(lut, writeable(spikes), psum, int(init))

    def accumulate_dense(
        self,
        x: F16,
        weights: F16,
        window: Window,
        first_kernel_row: int,
        kernel_rows: int,
        psum: F16,
        init: bool,
    ) -> None:
        """See `Engines`."""
        taps, channels, cols = weights.shape
        assert 0 <= first_kernel_row <= window.kernel_h - kernel_rows
        assert channels <= self.dense_rows
        assert taps == kernel_rows * window.kernel_w
        assert window.covers(x.shape[1], x.shape[2], kernel_rows)
        assert psum.shape[1:3] == (window.out_h, window.out_w)
        accumulate_dense_kernel(channels, cols)(
            writeable(x),
            writeable(weights),
            psum,
            window.kernel_w,
            window.stride_h,
            window.stride_w,
            int(init),
        )

    def soma(self, x: F16 | U8, plan: SomaPlan, params: F16, state: tuple[F16 | None, ...], probe: bool) -> SomaResult:
        """See `Engines`."""
        assert params.shape[0] == len(state) == len(plan.neurons)
        bad = np.zeros(1, np.int32)
        values: F16 | U8 = writeable(x)
        probes: list[StageProbe] = []
        states: list[F16] = []
        for neuron, pool in ((plan.stage1, plan.pool1), (plan.stage2, plan.pool2)):
            if neuron is not None:
                k = len(probes)
                result, last = _stage(values, pool, neuron, writeable(params[k]), state[k], probe, bad)
                probes.append(result)
                states.append(last)
                values = result.membrane if result.spikes is None else result.spikes
            elif pool is not None:
                values = _pooled_spikes(values, pool, bad)
        return SomaResult(
            spikes=values.astype(np.uint8, copy=False) if plan.spiking else None,
            membrane=None if plan.spiking else values.astype(np.float16, copy=False),
            state=tuple(states),
            finite=not bad[0],
            probes=tuple(probes) if probe else (),
        )

    def pool_winners(self, x: F16, pre_bias: F16 | None, pool: Pool) -> U8:
        """See `Engines`."""
        return fast_grad.pool_winners(x, pre_bias, pool)

    def accumulate_gradient(
        self,
        x: F16,
        x_mask: U8 | None,
        weights: F16,
        out_mask: U8 | None,
        window: GradWindow,
        psum: F16,
        init: bool,
    ) -> None:
        """See `Engines`."""
        fast_training.accumulate_gradient(x, weights, out_mask, window, psum, init, self.dense_rows)

    def accumulate_fc_gradient(self, x: F16, weights: F16, psum: F16, init: bool) -> None:
        """See `Engines`."""
        fast_training.accumulate_fc_gradient(x, weights, psum, init, self.dense_rows)

    def grad(
        self,
        psum: F16,
        plan: GradPlan,
        params: F16,
        kept: tuple[KeptStage, ...],
        carry: tuple[F16 | None, ...],
        winners: U8 | None,
        height: int,
        width: int,
    ) -> GradResult:
        """See `Engines`."""
        return fast_grad.grad(psum, plan, params, kept, carry, winners, height, width)

    def accumulate_outer(self, x: F16, g: F16, window: Window, psum: F16, init: bool) -> None:
        """See `Engines`."""
        fast_training.accumulate_outer(x, g, window, psum, init, self.dense_rows)

    def update_patterns(self, spikes: U8, window: Window) -> U8:
        """See `Engines`."""
        return fast_training.update_patterns(spikes, window)

    def accumulate_update(self, g: F16, patterns: U8, psum: F16, init: bool) -> None:
        """See `Engines`."""
        fast_training.accumulate_update(g, patterns, psum, init, self.update_rows)

    def accumulate_update_fc(self, g: F16, spikes: U8, psum: F16, init: bool) -> None:
        """See `Engines`."""
        fast_training.accumulate_update_fc(g, spikes, psum, init, self.update_rows)

    def sgd(self, weight: F16, gradient: F16, momentum: F16 | None, rule: Sgd) -> SgdResult:
        """See `Engines`."""
        return fast_training.sgd(weight, gradient, momentum, rule)


def _stage(
    x: F16 | U8,
    pool: Pool | None,
    neuron: Neuron,
    params: F16,
    state: F16 | None,
    probe: bool,
    bad: np.ndarray[tuple[int], np.dtype[np.int32]],
) -> tuple[StageProbe, F16]:
    steps, batch, height, width, channels = x.shape
    out_h, out_w = (height, width) if pool is None else (pool.out_h, pool.out_w)
    sites, unused = batch * out_h * out_w, (1, 1, channels)
    shape = (steps, batch, out_h, out_w, channels)
    keeps = probe or not neuron.fire
    spikes = np.empty((steps, sites, channels) if neuron.fire else unused, np.uint8)
    membrane = np.empty((steps, sites, channels) if keeps else unused, np.float16)
    mask = np.empty((steps, sites, channels) if probe else unused, np.uint8)
    last = np.empty((sites, channels), np.float16)
    geometry, reciprocals = NO_POOL if pool is None else pool_geometry(pool)
    stage_kernel(x.dtype.name, channels, neuron, pool and pool.kind, pool is not None and pool.include_pad, probe)(
        x,
        params,
        np.empty((1, channels), np.float16) if state is None else writeable(state).reshape(sites, channels),
        int(state is not None),
        geometry,
        reciprocals,
        out_h,
        out_w,
        spikes,
        membrane,
        mask,
        last,
        bad,
    )
    result = StageProbe(
        spikes=spikes.reshape(shape) if neuron.fire else None,
        membrane=membrane.reshape(shape) if keeps else membrane,
        mask=mask.reshape(shape) if probe else mask,
    )
    return result, last.reshape(shape[1:])


def _pooled_spikes(x: F16 | U8, pool: Pool, bad: np.ndarray[tuple[int], np.dtype[np.int32]]) -> U8:
    steps, batch, _, _, channels = x.shape
    assert x.dtype == np.uint8, "only spikes are pooled without a neuron"
    sites = batch * pool.out_h * pool.out_w
    spikes = np.empty((steps, sites, channels), np.uint8)
    geometry, reciprocals = pool_geometry(pool)
    nothing = np.empty((1, channels), np.float16)
    stage_kernel("uint8", channels, None, pool.kind, pool.include_pad, False)(
        x,
        np.empty((9, channels), np.float16),
        nothing,
        0,
        geometry,
        reciprocals,
        pool.out_h,
        pool.out_w,
        spikes,
        nothing.reshape(1, 1, channels),
        np.empty((1, 1, channels), np.uint8),
        nothing,
        bad,
    )
    return spikes.reshape(steps, batch, pool.out_h, pool.out_w, channels)
