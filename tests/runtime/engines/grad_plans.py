"""Grad plans and what the forward pass keeps for them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from runtime.engines import GradNeuron, GradResult, KeptStage, Pool, PoolKind, Reset
from tests.runtime.engines.fp16_values import Values, assert_same_bits, f16, spikes

PLAIN = GradNeuron(reset=Reset.HARD, fire=True, detach=False, has_scale=False, eta=1.0)
NEURONS = [
    PLAIN,
    replace(PLAIN, detach=True, has_scale=True, eta=0.5),
    replace(PLAIN, reset=Reset.SOFT, eta=2.0),
    replace(PLAIN, reset=Reset.SOFT, detach=True),
    replace(PLAIN, reset=Reset.NONE, has_scale=True),
    replace(PLAIN, reset=Reset.NONE, fire=False),
]
SPIKING = [neuron for neuron in NEURONS if neuron.fire]


def windows(kind: PoolKind, kernel: tuple[int, int], size: tuple[int, int], ceil: bool, include_pad: bool) -> Pool:
    """Windows side by side over an h x w map; the last ones may be cut, or the last rows and columns left out."""
    out_h, out_w = (-(-n // k) if ceil else n // k for n, k in zip(size, kernel, strict=True))
    return Pool(
        kind=kind,
        kernel_h=kernel[0],
        kernel_w=kernel[1],
        stride_h=kernel[0],
        stride_w=kernel[1],
        out_h=out_h,
        out_w=out_w,
        top=0,
        left=0,
        limit_h=size[0],
        limit_w=size[1],
        include_pad=include_pad,
    )


def halves(kind: PoolKind, size: int = 4) -> Pool:
    return windows(kind, (2, 2), (size, size), False, True)


def chunk(kept: KeptStage, steps: slice) -> KeptStage:
    return KeptStage(
        spikes=None if kept.spikes is None else kept.spikes[steps],
        mask=None if kept.mask is None else kept.mask[steps],
        membrane=None if kept.membrane is None else kept.membrane[steps],
    )


def kept_stage(
    seed: int, shape: tuple[int, ...], kind: Values, neuron: GradNeuron, pooled_over: bool = False
) -> KeptStage:
    """Random kept parts, those that a neuron or a maximum over its spikes needs."""
    mask = spikes(seed, shape)
    membrane = np.where(mask, f16(seed + 1, shape, kind), np.float16(0))
    return KeptStage(
        spikes=spikes(seed + 2, shape) if neuron.needs_spikes or pooled_over else None,
        mask=mask if neuron.fire else None,
        membrane=membrane if neuron.needs_membrane else None,
    )


def assert_same_result(got: GradResult, want: GradResult) -> None:
    assert got.finite == want.finite
    assert len(got.carry) == len(want.carry)
    if not want.finite:
        return
    assert_same_bits(got.gradient, want.gradient)
    np.testing.assert_array_equal(got.mask, want.mask)
    assert got.mask.dtype == want.mask.dtype == np.uint8
    for a, b in zip(got.carry, want.carry, strict=True):
        assert_same_bits(a, b)
