"""Golden Weight Update Engine: gradients in sub-LUTs, spikes as addresses."""

from __future__ import annotations

import numpy as np

from runtime.engines.geometry import UPDATE_SUB_LUT_ENTRIES, UPDATE_SUB_LUTS, WINDOWS_PER_PATTERN, Window
from runtime.engines.golden_forward import adder_tree
from runtime.engines.soma_plan import F16, U8

GRADIENTS_PER_SUB_LUT = WINDOWS_PER_PATTERN // UPDATE_SUB_LUTS


def update_patterns(spikes: U8, window: Window) -> U8:
    """Gather what each tap sees at eight neighbouring output columns."""
    batch, height, width, channels = spikes.shape
    assert window.covers(height, width)
    groups = -(-window.out_w // WINDOWS_PER_PATTERN)
    out = np.zeros((batch, window.out_h, groups, window.taps, channels), np.uint8)
    for tap in range(window.taps):
        ky, kx = divmod(tap, window.kernel_w)
        rows = slice(ky, ky + (window.out_h - 1) * window.stride_h + 1, window.stride_h)
        for column in range(window.out_w):
            group, bit = divmod(column, WINDOWS_PER_PATTERN)
            out[:, :, group, tap] |= spikes[:, rows, column * window.stride_w + kx] << np.uint8(bit)
    return out


def program_update(gradients: F16) -> F16:
    """Every subset sum of four gradients; one that is not in the subset adds nothing.

    Shapes: gradients (T, 8, cols) -> (T, 2, 16, cols).
    """
    steps, _, columns = gradients.shape
    lut = np.zeros((steps, UPDATE_SUB_LUTS, UPDATE_SUB_LUT_ENTRIES, columns), np.float16)
    for sub, index, bit in np.ndindex(UPDATE_SUB_LUTS, UPDATE_SUB_LUT_ENTRIES, GRADIENTS_PER_SUB_LUT):
        if index >> bit & 1:
            lut[:, sub, index] = lut[:, sub, index] + gradients[:, sub * GRADIENTS_PER_SUB_LUT + bit]
    return lut


def step_tree(leaves: F16, update_rows: int) -> F16:
    """Adder tree over the time steps, the first axis. Shapes: (T, ..., cols) -> (..., cols)."""
    assert len(leaves) <= update_rows
    return adder_tree(np.moveaxis(leaves, 0, -2), 1 << (update_rows - 1).bit_length())


def accumulate_update(g: F16, patterns: U8, psum: F16, init: bool, update_rows: int) -> None:
    """Eight windows at a time: program the sub-LUTs, look up every tap of every channel, add the time steps."""
    steps, samples, out_h, out_w, columns = g.shape
    by_step = patterns.reshape(steps, samples, *patterns.shape[1:])
    groups, taps, channels = by_step.shape[3:]
    assert (by_step.shape[2], groups) == (out_h, -(-out_w // WINDOWS_PER_PATTERN))
    assert psum.shape == (taps, channels, columns)
    filled = np.zeros((steps, samples, out_h, groups * WINDOWS_PER_PATTERN, columns), np.float16)
    filled[:, :, :, :out_w] = g
    if init:
        psum[...] = 0
    for n, oy, q in np.ndindex(samples, out_h, groups):
        window = slice(q * WINDOWS_PER_PATTERN, (q + 1) * WINDOWS_PER_PATTERN)
        lut = program_update(filled[:, n, oy, window])
        pattern = by_step[:, n, oy, q]
        step = np.arange(steps)[:, None, None]
        sums = lut[step, 0, pattern & 15] + lut[step, 1, pattern >> 4]
        psum[...] = psum + step_tree(sums, update_rows)


def accumulate_update_fc(g: F16, spikes: U8, psum: F16, init: bool, update_rows: int) -> None:
    """Two samples at a time: a sub-LUT exports its gradient or +0."""
    samples = g.shape[1]
    assert (spikes.shape[:2], psum.shape) == (g.shape[:2], (spikes.shape[2], g.shape[2]))
    if init:
        psum[...] = 0
    exports = np.where(spikes[..., None], g[:, :, None], np.float16(0))
    absent = np.zeros_like(exports[:, 0])
    for n in range(0, samples, 2):
        pair = exports[:, n] + (exports[:, n + 1] if n + 1 < samples else absent)
        psum[...] = psum + step_tree(pair, update_rows)
