"""The functional contract of the simulated machine's engines; golden and fast fulfil it bit for bit."""

from __future__ import annotations

from typing import Protocol

import numpy as np
import numpy.typing as npt

from runtime.engines.geometry import GradWindow, Window
from runtime.engines.grad_plan import GradPlan, GradResult, KeptStage
from runtime.engines.sgd_rule import Sgd, SgdResult
from runtime.engines.soma_plan import F16, U8, Pool, SomaPlan, SomaResult

U16 = npt.NDArray[np.uint16]


class Engines(Protocol):
    """The three engines with their Soma, Grad and SGD units, over C-contiguous arrays, channels last.

    Every operation is one FP16 operation, rounded to nearest even; every accumulator starts at +0. B merges
    time and sample, time major. NaN payloads are not part of the contract.
    Source: sections 3.2.1 to 3.2.3; the orders of addition are stated per method.
    """

    @property
    def array_rows(self) -> int:
        """PE rows of the Forward Engine, which its adder trees span."""
        ...

    @property
    def dense_rows(self) -> int:
        """PE rows of the Backward Engine."""
        ...

    @property
    def update_rows(self) -> int:
        """PE rows of the Weight Update Engine, each with the gradients of one time step."""
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

    def pool_winners(self, x: F16, pre_bias: F16 | None, pool: Pool) -> U8:
        """One-hot first maximum of x + pre_bias per window, as the Soma's max pooling selects it; 0 in no window.

        Shapes: x (T, N, h, w, c), pre_bias (c,) -> the shape of x; windows as in `GradPlan`.
        """
        ...

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
        """Input gradient of a convolution, the spatial part of equation 2.4, where out_mask is 1; in place.

        PE of row r and column c: acc = acc + round(w * x) over the taps that hit the region, in raster order of
        the window over x (of the kernel rotated by 180 degrees), inputs of x_mask 0 skipped; then a tree over
        dense_rows as in `accumulate`, then psum + tree. Where out_mask is 0 psum stays, or is +0 if `init`.
        Without out_mask every output is computed; without x_mask it is equation 3.2 of x, with which a given one
        must agree.
        Shapes: x, x_mask (B, Hin, Win, R <= dense_rows), weights (kernel_h * kernel_w, C, R) not rotated,
        out_mask, psum (B, out_h, out_w, C).
        Source: section 3.2.3, equations 3.1 (out_mask) and 3.2 (x_mask).
        """
        ...

    def accumulate_fc_gradient(self, x: F16, weights: F16, psum: F16, init: bool) -> None:
        """Input gradient of a linear layer without sparsity: psum = psum + tree over dense_rows of +0 + round(w * x).

        Shapes: x (B, R <= dense_rows), weights (P, C, R) for P positions of C channels, psum (B, P, C).
        """
        ...

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
        """Neurons and pooling backwards over all steps of a tile, from the last step to the first.

        Per neuron, every line one rounded operation; dm_{T} = carry, or +0 where None:
        g = decay * dm_{t+1}
        ds = given_t + g * (reset_value - m_t) | given_t - g * threshold | given_t (hard, soft, none or detached)
        e = ds * eta where mask_t, else +0
        dm_t = keep + e, keep = +0 where s_t and the reset is hard, else g; dm_t = given_t + g without spikes
        result_t = dm_t * scale, or dm_t
        An average hands round(g * FP16(1 / divisor)) to every valid element of its window. A maximum hands g to
        one: of spikes the first that spikes, or the first; of real values that in `winners`. Others get +0.

        Shapes: psum (T, N, h, w, c), the gradient of the layer's output; params (neurons, 9, c), rows as in
        `Param`; kept per neuron in forward order, after the source if the plan `keeps_source`; carry
        (N, h', w', c) per neuron; winners (T, N, height, width, c), for a maximum in pool1.
        Source: equations 2.4 (ds) and 2.5 (dm).
        """
        ...

    def accumulate_outer(self, x: F16, g: F16, window: Window, psum: F16, init: bool) -> None:
        """Weight gradient on real inputs, equation 2.7 for the encoding layer; in place.

        For b in order: per tap, input channel and column acc = acc + round(x * g) over the output positions in
        raster order, those with g = 0 skipped; then psum = psum + acc. Sample b of x is b % Bx.
        Shapes: x (Bx, Hin, Win, R <= dense_rows), g (B, out_h, out_w, C), psum (taps, R, C).
        """
        ...

    def update_patterns(self, spikes: U8, window: Window) -> U8:
        """Patterns of eight neighbouring windows: bit j is the spike that tap (ky, kx) of output column 8q + j sees.

        Bits of columns beyond out_w are 0.
        Shapes: spikes (B, Hin, Win, C) -> (B, out_h, ceil(out_w / 8), taps, C).
        """
        ...

    def accumulate_update(self, g: F16, patterns: U8, psum: F16, init: bool) -> None:
        """Weight gradient of a convolution on spikes, equation 2.7; in place.

        For sample, row and eight columns in order: two sub-LUTs a PE hold (((0 + b0*g0) + b1*g1) + b2*g2) +
        b3*g3 at index b3b2b1b0, only set bits add; PE = L0[low nibble] + L1[high nibble]; a tree over
        update_rows as in `accumulate`, filled up with +0 to a power of two; psum[tap, c] = psum[tap, c] + tree.
        Shapes: g (T <= update_rows, N, out_h, out_w, cols), patterns (T * N, out_h, q, taps, C),
        psum (taps, C, cols).
        Source: section 3.2.2, figure 3.4.
        """
        ...

    def accumulate_update_fc(self, g: F16, spikes: U8, psum: F16, init: bool) -> None:
        """Weight gradient of a linear layer: for sample pairs in order, psum = psum + tree over rows of e0 + e1.

        e is the gradient of its sample if the input spikes, else +0; an absent sample is +0.
        Shapes: g (T <= update_rows, N, cols), spikes (T, N, C), psum (C, cols).
        """
        ...

    def sgd(self, weight: F16, gradient: F16, momentum: F16 | None, rule: Sgd) -> SgdResult:
        """One step, each line rounded to FP16, a product with an f32 constant first to f32:

        b = gradient + decay_constant * w (if there is weight decay), else gradient
        b = momentum_constant * buffer + b (if there is momentum), the new momentum
        w' = w - step_constant * b
        Shapes: 1-D, all the same.
        """
        ...
