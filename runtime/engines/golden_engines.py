"""The golden engines: the definition that the fast ones must equal bit for bit."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from runtime.engines import (
    golden_backward,
    golden_forward,
    golden_grad,
    golden_gradient,
    golden_sgd,
    golden_soma,
    golden_update,
)
from runtime.engines.geometry import GradWindow, Window
from runtime.engines.grad_plan import GradPlan, GradResult, KeptStage
from runtime.engines.protocol import U16
from runtime.engines.sgd_rule import Sgd, SgdResult
from runtime.engines.soma_plan import F16, U8, Pool, SomaPlan, SomaResult


@dataclass(frozen=True, slots=True, kw_only=True)
class GoldenEngines:
    """Plain NumPy float16 in the order of the hardware; overflow gives inf or NaN silently."""

    array_rows: int  # PE rows of the Forward Engine, a power of two
    dense_rows: int  # PE rows of the Backward Engine, a power of two
    update_rows: int  # PE rows of the Weight Update Engine

    def program_conv(self, weights: F16) -> F16:
        """See `Engines`."""
        with np.errstate(all="ignore"):
            return golden_forward.program_conv(weights)

    def indices(self, spikes: U8, window: Window, first_piece: int, rows: int) -> U16:
        """See `Engines`."""
        return golden_forward.indices(spikes, window, first_piece, rows)

    def accumulate(self, lut: F16, indices: U16, psum: F16, init: bool) -> None:
        """See `Engines`."""
        with np.errstate(all="ignore"):
            golden_forward.accumulate(lut, indices, psum, init, self.array_rows)

    def program_fc(self, weights: F16) -> F16:
        """See `Engines`."""
        return weights.copy()

    def accumulate_fc(self, lut: F16, spikes: U8, psum: F16, init: bool) -> None:
        """See `Engines`."""
        with np.errstate(all="ignore"):
            golden_forward.accumulate_fc(lut, spikes, psum, init, self.array_rows)

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
        assert 0 <= first_kernel_row <= window.kernel_h - kernel_rows
        with np.errstate(all="ignore"):
            golden_backward.accumulate_dense(x, weights, window, kernel_rows, psum, init, self.dense_rows)

    def soma(self, x: F16 | U8, plan: SomaPlan, params: F16, state: tuple[F16 | None, ...], probe: bool) -> SomaResult:
        """See `Engines`."""
        with np.errstate(all="ignore"):
            return golden_soma.soma(x, plan, params, state, probe)

    def pool_winners(self, x: F16, pre_bias: F16 | None, pool: Pool) -> U8:
        """See `Engines`."""
        with np.errstate(all="ignore"):
            return golden_grad.pool_winners(x, pre_bias, pool)

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
        with np.errstate(all="ignore"):
            golden_gradient.accumulate_gradient(x, x_mask, weights, out_mask, window, psum, init, self.dense_rows)

    def accumulate_fc_gradient(self, x: F16, weights: F16, psum: F16, init: bool) -> None:
        """See `Engines`."""
        with np.errstate(all="ignore"):
            golden_gradient.accumulate_fc_gradient(x, weights, psum, init, self.dense_rows)

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
        with np.errstate(all="ignore"):
            return golden_grad.grad(psum, plan, params, kept, carry, winners, height, width)

    def accumulate_outer(self, x: F16, g: F16, window: Window, psum: F16, init: bool) -> None:
        """See `Engines`."""
        with np.errstate(all="ignore"):
            golden_gradient.accumulate_outer(x, g, window, psum, init, self.dense_rows)

    def update_patterns(self, spikes: U8, window: Window) -> U8:
        """See `Engines`."""
        return golden_update.update_patterns(spikes, window)

    def accumulate_update(self, g: F16, patterns: U8, psum: F16, init: bool) -> None:
        """See `Engines`."""
        with np.errstate(all="ignore"):
            golden_update.accumulate_update(g, patterns, psum, init, self.update_rows)

    def accumulate_update_fc(self, g: F16, spikes: U8, psum: F16, init: bool) -> None:
        """See `Engines`."""
        with np.errstate(all="ignore"):
            golden_update.accumulate_update_fc(g, spikes, psum, init, self.update_rows)

    def sgd(self, weight: F16, gradient: F16, momentum: F16 | None, rule: Sgd) -> SgdResult:
        """See `Engines`."""
        with np.errstate(all="ignore"):
            return golden_sgd.sgd(weight, gradient, momentum, rule)
