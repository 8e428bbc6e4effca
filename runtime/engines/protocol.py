"""The functional contract of the simulated machine's engines; golden and fast fulfil it bit for bit."""

from __future__ import annotations

from typing import Protocol

import numpy as np
import numpy.typing as npt

from runtime.engines.geometry import Window
from runtime.engines.soma_plan import F16, U8, SomaPlan, SomaResult

U16 = npt.NDArray[np.uint16]


class Engines(Protocol):
    """Forward Engine, Backward Engine in dense mode, and Soma unit, over C-contiguous arrays, channels last.

    Every operation is one FP16 operation, rounded to nearest even; every accumulator starts at +0. B merges
    time and sample, time major. NaN payloads are not part of the contract.
    Source: sections 3.2.1 and 3.2.3; the orders of addition are stated per method.
    """

    @property
    def array_rows(self) -> int:
        """PE rows of the Forward Engine, which its adder trees span."""
        ...

    @property
    def dense_rows(self) -> int:
        """PE rows of the Backward Engine."""
        ...

    def program_conv(self, weights: F16) -> F16:
        """Sub-LUT entries of a grid iteration: ((0 + b0*w[3s]) + b1*w[3s+1]) + b2*w[3s+2] at index b2b1b0.

        Only set bits add. PE row j holds piece (first_piece + j) % pieces of channel
        (first_piece + j) // pieces.
        Shapes: weights (rows, 9, cols) -> (rows, 3, 8, cols), rows <= 64.
        """
        ...

    def indices(self, spikes: U8, window: Window, first_piece: int, rows: int) -> U16:
        """Nine-bit window patterns that address the sub-LUTs: bits 3s..3s+2 are the index of sub-LUT s.

        Bit i is tap i of the PE's piece; the same for every column block.
        Shapes: spikes (B, Hin, Win, C) -> (B, out_h, out_w, rows).
        """
        ...

    def accumulate(self, lut: F16, indices: U16, psum: F16, init: bool) -> None:
        """psum = psum + tree over rows of (L0 + L1) + L2, in place; +0 instead of psum if `init`.

        The tree adds neighbours (row 0 + row 1, row 2 + row 3, ...), level by level, absent rows being +0.
        Shapes: psum (B, out_h, out_w, cols).
        """
        ...

    def program_fc(self, weights: F16) -> F16:
        """Sub-LUTs as weight buffers. Shapes: weights (groups, array_rows, 3, cols) -> the same."""
        ...

    def accumulate_fc(self, lut: F16, spikes: U8, psum: F16, init: bool) -> None:
        """For each group in order: psum = psum + tree over rows of (e0 + e1) + e2, in place.

        e is the weight of sub-LUT i % 3 in row i // 3 where input i of the group spikes, else +0.
        Shapes: spikes (B, groups * array_rows * 3), psum (B, cols).
        """
        ...

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
        """Backward Engine on real values, a horizontal band of the kernel; in place.

        PE of channel c: acc = acc + round(w * x) over the band's taps in raster order; then a tree over the
        16 rows as in `accumulate`, then psum + tree. x holds what the band needs: its row 0 lies under the
        band's first kernel row for output row 0.
        Shapes: x (B, Hin, Win, C <= 16), weights (kernel_rows * kernel_w, C, cols),
        psum (B, out_h, out_w, cols).
        """
        ...

    def soma(self, x: F16 | U8, plan: SomaPlan, params: F16, state: tuple[F16 | None, ...], probe: bool) -> SomaResult:
        """Neurons and pooling over all steps of a tile; per stage, every line one rounded operation:

        x = x + pre_bias, pool, x = x * scale, x = x + bias (each if the stage has it);
        m_t = decay * v_{t-1} (rounded) + x_t; s_t = m_t >= threshold (or >);
        v_t = reset_value | m_t - threshold | m_t where s_t, else m_t; v_{-1} = state, or initial where None.
        A pool's average sums valid elements in raster order from +0 and multiplies by the FP16 reciprocal.

        Shapes: x (T, N, h, w, c), uint8 for spikes; params (neurons, 9, c), rows as in `Param`;
        state (N, h', w', c) per neuron.
        """
        ...
