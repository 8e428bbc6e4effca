"""FP16 arrays that reach the corners of the format, and comparison bit for bit."""

from __future__ import annotations

from enum import StrEnum

import numpy as np
from hypothesis import strategies as st

from runtime.engines import F16, U8


class Values(StrEnum):
    """Where in the format the values of a test lie."""

    NORMAL = "normal"
    ANY_FINITE = "any finite"  # every finite bit pattern, subnormals and both zeros included
    TIES = "ties"  # odd multiples of a half unit meet even ones: sums that round to even
    SUBNORMAL = "subnormal"
    OVERFLOW = "overflow"  # near the largest number: sums become infinite, then NaN


def f16(seed: int, shape: tuple[int, ...], kind: Values) -> F16:
    """Random values of a kind."""
    rng = np.random.default_rng(seed)
    match kind:
        case Values.NORMAL:
            return rng.standard_normal(shape).astype(np.float16)
        case Values.ANY_FINITE:
            bits = rng.integers(0, 0x7C00, shape) | rng.integers(0, 2, shape) << 15
            return bits.astype(np.uint16).view(np.float16)
        case Values.TIES:
            return (rng.integers(-2048, 2049, shape) * 2.0 ** rng.integers(-1, 3, shape)).astype(np.float16)
        case Values.SUBNORMAL:
            bits = rng.integers(0, 0x0800, shape) | rng.integers(0, 2, shape) << 15
            return bits.astype(np.uint16).view(np.float16)
        case Values.OVERFLOW:
            return (rng.integers(16000, 65504, shape) * rng.choice([-1.0, 1.0], shape)).astype(np.float16)


def spikes(seed: int, shape: tuple[int, ...]) -> U8:
    """Random spikes at a random rate."""
    rng = np.random.default_rng(seed)
    return (rng.random(shape) < rng.random()).astype(np.uint8)


def assert_same_bits(got: F16, want: F16) -> None:
    """Equal bit patterns; all NaNs are one value, because payloads are no part of the contract."""
    assert got.shape == want.shape
    assert got.dtype == want.dtype == np.float16
    canonical = [np.where(np.isnan(a), np.uint16(0x7E00), a.view(np.uint16)) for a in (got, want)]
    np.testing.assert_array_equal(canonical[0], canonical[1])


seeds = st.integers(0, 2**32 - 1)
kinds = st.sampled_from(Values)
