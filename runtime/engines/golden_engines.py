"""The golden engines: the definition that the fast ones must equal bit for bit."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from runtime.engines import golden_backward, golden_forward, golden_soma
from runtime.engines.geometry import Window
from runtime.engines.protocol import U16
from runtime.engines.soma_plan import F16, U8, SomaPlan, SomaResult


@dataclass(frozen=True, slots=True, kw_only=True)
class GoldenEngines:
    """Plain NumPy float16 in the order of the hardware; overflow gives inf or NaN silently."""

    array_rows: int  # PE rows of the Forward Engine, a power of two
    dense_rows: int  # PE rows of the Backward Engine, a power of two

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
