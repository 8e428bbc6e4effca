"""The training side of the fast engines: arrays and plans laid out for the kernels."""

from __future__ import annotations

import numpy as np

from runtime.engines.fp16_expressions import LANES
from runtime.engines.geometry import WINDOWS_PER_PATTERN, GradWindow, Window
from runtime.engines.gradient_kernels import accumulate_fc_gradient_kernel, accumulate_gradient_kernel
from runtime.engines.outer_kernels import accumulate_outer_kernel
from runtime.engines.sgd_kernels import CHUNK, sgd_kernel
from runtime.engines.sgd_rule import Sgd, SgdResult
from runtime.engines.soma_plan import F16, U8
from runtime.engines.tvm_build import thread_count, writeable
from runtime.engines.update_kernels import (
    accumulate_update_fc_kernel,
    accumulate_update_kernel,
    update_patterns_kernel,
)

EXPAND_FROM = 128  # look-ups of a table above which forming all 256 sums of a PE is cheaper than adding per look-up
LEAST_CHANNELS = 32  # of a strip, which programs tables of its own


def accumulate_gradient(
    x: F16, weights: F16, out_mask: U8 | None, window: GradWindow, psum: F16, init: bool, dense_rows: int
) -> None:
    """Zeros of x are found by themselves: its mask has nothing to add."""
    taps, columns, rows = weights.shape
    assert rows <= dense_rows
    assert taps == window.taps
    assert (x.shape[-1], psum.shape) == (rows, (x.shape[0], window.out_h, window.out_w, columns))
    assert out_mask is None or out_mask.shape == psum.shape
    masked = out_mask is not None
    accumulate_gradient_kernel(dense_rows, masked)(
        writeable(x),
        writeable(weights),
        np.empty((1, 1), np.uint8) if out_mask is None else writeable(out_mask).reshape(-1, columns),
        psum,
        window.kernel_h,
        window.kernel_w,
        window.stride_h,
        window.stride_w,
        window.top,
        window.left,
        int(init),
    )


def accumulate_fc_gradient(x: F16, weights: F16, psum: F16, init: bool, dense_rows: int) -> None:
    """All positions of the map side by side."""
    batch, rows = x.shape
    assert rows <= dense_rows
    accumulate_fc_gradient_kernel(dense_rows)(
        writeable(x), writeable(weights).reshape(-1, rows), psum.reshape(batch, -1), int(init)
    )


def accumulate_outer(x: F16, g: F16, window: Window, psum: F16, init: bool, dense_rows: int) -> None:
    """One call for all samples."""
    assert x.shape[-1] <= dense_rows
    assert window.covers(x.shape[1], x.shape[2])
    assert g.shape[1:3] == (window.out_h, window.out_w)
    assert psum.shape[0] == window.taps
    accumulate_outer_kernel()(
        writeable(x), writeable(g), psum, window.kernel_w, window.stride_h, window.stride_w, int(init)
    )


def update_patterns(spikes: U8, window: Window) -> U8:
    """Gather what each tap sees at eight neighbouring output columns."""
    batch, height, width, channels = spikes.shape
    assert window.covers(height, width)
    groups = -(-window.out_w // WINDOWS_PER_PATTERN)
    patterns = np.empty((batch, window.out_h, groups, window.taps, channels), np.uint8)
    update_patterns_kernel()(
        writeable(spikes), patterns, window.kernel_w, window.stride_h, window.stride_w, window.out_w
    )
    return patterns


def accumulate_update(g: F16, patterns: U8, psum: F16, init: bool, update_rows: int) -> None:
    """Cut the channels only as far as the cores ask for it: each part programs its own tables."""
    steps, samples, _, out_w, columns = g.shape
    _, out_h, groups, taps, channels = patterns.shape
    assert steps <= update_rows
    assert groups == -(-out_w // WINDOWS_PER_PATTERN)
    parts = min(-(-thread_count() // -(-columns // LANES)), -(-channels // LEAST_CHANNELS))
    chunk = -(-channels // parts)
    accumulate_update_kernel(steps, taps * chunk >= EXPAND_FROM)(
        writeable(g),
        writeable(patterns).reshape(steps, samples, out_h, groups, taps, channels),
        psum,
        chunk,
        int(init),
    )


def accumulate_update_fc(g: F16, spikes: U8, psum: F16, init: bool, update_rows: int) -> None:
    """One call for all pairs of samples."""
    steps = len(g)
    assert steps <= update_rows
    filled = steps == 1 << (update_rows - 1).bit_length()
    accumulate_update_fc_kernel(steps, filled)(writeable(g), writeable(spikes), psum, int(init))


def sgd(weight: F16, gradient: F16, momentum: F16 | None, rule: Sgd) -> SgdResult:
    """One pass over all weights."""
    new, counts = np.empty_like(weight), np.empty((-(-len(weight) // CHUNK), 3), np.int32)
    buffer = np.empty(1, np.float16) if momentum is None else writeable(momentum)
    new_buffer = np.empty_like(buffer)
    constants = np.array([rule.step_constant, rule.decay_constant, rule.momentum_constant], np.float32)
    sgd_kernel(rule.weight_decay != 0, momentum is not None)(
        writeable(weight), writeable(gradient), buffer, constants, new, new_buffer, counts
    )
    changed, lost, wrong = (int(count) for count in counts.sum(axis=0))
    return SgdResult(
        weight=new,
        momentum=None if momentum is None else new_buffer,
        changed=changed,
        lost=lost,
        finite=not wrong,
    )
