"""Golden Forward Engine: LUT programming, window patterns, look-ups and the adder tree in NumPy float16."""

from __future__ import annotations

import numpy as np

from runtime.engines.geometry import SUB_LUT_ENTRIES, SUB_LUTS, TAPS_PER_PE, Window
from runtime.engines.protocol import U16
from runtime.engines.soma_plan import F16, U8


def adder_tree(leaves: F16, array_rows: int) -> F16:
    """Pairwise sum over the last but one axis, which is filled up with +0 to the rows of the array.

    Shapes: (..., rows, cols) -> (..., cols).
    """
    rows = leaves.shape[-2]
    assert rows <= array_rows
    assert array_rows & (array_rows - 1) == 0
    level = np.zeros((*leaves.shape[:-2], array_rows, leaves.shape[-1]), np.float16)
    level[..., :rows, :] = leaves
    while level.shape[-2] > 1:
        level = level[..., 0::2, :] + level[..., 1::2, :]
    return level[..., 0, :]


def accumulate_tree(leaves: F16, array_rows: int, psum: F16, init: bool) -> None:
    """psum = psum + tree, or +0 + tree."""
    tree = adder_tree(leaves, array_rows)
    psum[...] = (np.zeros_like(psum) if init else psum) + tree


def program_conv(weights: F16) -> F16:
    """Every subset sum of three taps; a tap that is not in the subset adds nothing."""
    rows, _, cols = weights.shape
    lut = np.zeros((rows, SUB_LUTS, SUB_LUT_ENTRIES, cols), np.float16)
    for sub in range(SUB_LUTS):
        for index in range(SUB_LUT_ENTRIES):
            for bit in range(3):
                if index >> bit & 1:
                    lut[:, sub, index] = lut[:, sub, index] + weights[:, 3 * sub + bit]
    return lut


def indices(spikes: U8, window: Window, first_piece: int, rows: int) -> U16:
    """Gather nine spikes per PE row and output position."""
    batch, height, width, _ = spikes.shape
    assert window.covers(height, width)
    out = np.zeros((batch, window.out_h, window.out_w, rows), np.uint16)
    for row in range(rows):
        channel, piece = divmod(first_piece + row, window.pieces)
        for bit in range(TAPS_PER_PE):
            tap = piece * TAPS_PER_PE + bit
            if tap >= window.taps:
                continue
            ky, kx = divmod(tap, window.kernel_w)
            y = slice(ky, ky + (window.out_h - 1) * window.stride_h + 1, window.stride_h)
            x = slice(kx, kx + (window.out_w - 1) * window.stride_w + 1, window.stride_w)
            out[..., row] |= spikes[:, y, x, channel].astype(np.uint16) << bit
    return out


def accumulate(lut: F16, patterns: U16, psum: F16, init: bool, array_rows: int) -> None:
    """Look up three partial sums per PE, add them, and add the PEs of a column."""
    rows = lut.shape[0]
    assert patterns.shape == (*psum.shape[:-1], rows)
    leaves = np.zeros((*psum.shape[:-1], rows, psum.shape[-1]), np.float16)
    for row in range(rows):
        pattern = patterns[..., row]
        first, second, third = (lut[row, sub][pattern >> 3 * sub & 7] for sub in range(SUB_LUTS))
        leaves[..., row, :] = (first + second) + third
    accumulate_tree(leaves, array_rows, psum, init)


def accumulate_fc(lut: F16, spikes: U8, psum: F16, init: bool, array_rows: int) -> None:
    """A sub-LUT exports its weight or +0."""
    groups, rows, subs, cols = lut.shape
    assert rows == array_rows
    assert spikes.shape[1] == groups * rows * subs
    gates = spikes.reshape(-1, groups, rows, subs, 1).astype(np.bool_)
    for group in range(groups):
        exports = np.where(gates[:, group], lut[group], np.float16(0))
        assert exports.shape == (spikes.shape[0], rows, subs, cols)
        leaves = (exports[:, :, 0] + exports[:, :, 1]) + exports[:, :, 2]
        accumulate_tree(leaves, array_rows, psum, init and group == 0)
