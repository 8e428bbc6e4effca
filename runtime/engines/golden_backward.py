"""Golden Backward Engine in dense mode: one FP16 multiplier and adder per PE, then the adder tree."""

from __future__ import annotations

import numpy as np

from runtime.engines.geometry import Window
from runtime.engines.golden_forward import accumulate_tree
from runtime.engines.soma_plan import F16


def accumulate_dense(
    x: F16, weights: F16, window: Window, kernel_rows: int, psum: F16, init: bool, dense_rows: int
) -> None:
    """Multiply, round, add, round: tap after tap; then add the channels."""
    taps, channels, cols = weights.shape
    assert taps == kernel_rows * window.kernel_w
    assert (x.shape[-1], psum.shape[-1]) == (channels, cols)
    assert window.covers(x.shape[1], x.shape[2], kernel_rows)
    acc = np.zeros((x.shape[0], window.out_h, window.out_w, channels, cols), np.float16)
    for tap in range(taps):
        ky, kx = divmod(tap, window.kernel_w)
        rows = slice(ky, ky + (window.out_h - 1) * window.stride_h + 1, window.stride_h)
        columns = slice(kx, kx + (window.out_w - 1) * window.stride_w + 1, window.stride_w)
        product = x[:, rows, columns, :, None] * weights[tap]
        acc = acc + product
    accumulate_tree(acc, dense_rows, psum, init)
