"""What a Soma unit is told to do with one tile, and what it hands back."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum, StrEnum

import numpy as np
import numpy.typing as npt

from hwmodel.isa import CompareRule as Compare
from hwmodel.isa import ResetKind as Reset

__all__ = [
    "F16",
    "U8",
    "Compare",
    "Neuron",
    "Param",
    "Pool",
    "PoolKind",
    "Reset",
    "SomaPlan",
    "SomaResult",
    "StageProbe",
    "compress",
    "decompress",
]

F16 = npt.NDArray[np.float16]
U8 = npt.NDArray[np.uint8]


class Param(IntEnum):
    """Row of the parameter table that a Soma stage reads, one value per channel."""

    PRE_BIAS = 0
    SCALE = 1
    BIAS = 2
    DECAY = 3
    THRESHOLD = 4
    RESET_VALUE = 5
    INITIAL = 6
    TH_L = 7
    TH_R = 8


class PoolKind(StrEnum):
    """Reduction over a pooling window."""

    AVG = "avg"
    MAX = "max"


@dataclass(frozen=True, slots=True, kw_only=True)
class Neuron:
    """One neuron stage: m_t = decay * v_{t-1} + x_t, every operation rounded to FP16.

    `fire=False` is a leaky integrator: no spike, v_t = m_t, and the membrane is the output.
    Source: equations 2.1 and 2.2.
    """

    reset: Reset
    compare: Compare
    fire: bool
    has_pre_bias: bool
    has_scale: bool
    has_bias: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Pool:
    """A pooling window over a region of h x w valid elements.

    Output row oy covers rows start = top + oy * stride_h up to end = min(start + kernel_h, limit_h); only
    rows inside [0, h) hold data, at least one. `limit_h` is the region-relative end of the padded input. The
    width is alike. The divisor of an average is the product of end - start over both axes if `include_pad`,
    else the number of valid elements.
    """

    kind: PoolKind
    kernel_h: int
    kernel_w: int
    stride_h: int
    stride_w: int
    out_h: int
    out_w: int
    top: int
    left: int
    limit_h: int
    limit_w: int
    include_pad: bool

    def reciprocals(self) -> F16:
        """FP16 of 1 / d for every divisor d up to the window's area; entry 0 is unused."""
        divisors = np.arange(self.kernel_h * self.kernel_w + 1, dtype=np.float64)
        divisors[0] = 1.0
        return (1.0 / divisors).astype(np.float16)


@dataclass(frozen=True, slots=True, kw_only=True)
class SomaPlan:
    """The stages of a tile: [pool1] stage1 [pool2] [stage2].

    Parameters, states and probes are listed per neuron that the plan has, in order. Without stage1 the input
    itself goes to pool2 (a pooling layer straight from memory).
    """

    stage1: Neuron | None
    pool1: Pool | None = None
    pool2: Pool | None = None
    stage2: Neuron | None = None

    def __post_init__(self) -> None:
        assert self.stage1 is not None or self.pool1 is None, "pool1 belongs to stage1"
        assert self.stage1 is not None or self.pool2 is not None, "a plan has a neuron or a pool"
        if self.stage1 is not None and (self.pool2 is not None or self.stage2 is not None):
            assert self.stage1.fire, "only spikes go to a second stage"
        if self.pool2 is not None and self.pool2.kind is PoolKind.AVG:
            assert self.stage2 is not None, "an average of spikes needs a neuron"

    @property
    def neurons(self) -> tuple[Neuron, ...]:
        """The neurons that the plan has, in order."""
        return tuple(stage for stage in (self.stage1, self.stage2) if stage is not None)

    @property
    def spiking(self) -> bool:
        """Whether the output is spikes rather than membrane potentials."""
        return self.stage2.fire if self.stage2 is not None else self.pool2 is not None or self.neurons[-1].fire


@dataclass(frozen=True, slots=True, kw_only=True)
class StageProbe:
    """What one neuron stage computed, at its own resolution.

    Shapes: all (T, N, h', w', c); mask is th_l < m < th_r.
    Source: equation 3.1.
    """

    spikes: U8 | None  # None: the stage does not fire
    membrane: F16
    mask: U8


@dataclass(frozen=True, slots=True, kw_only=True)
class SomaResult:
    """Outputs of one Soma call; when `finite` is False the arrays have no meaning.

    Shapes: spikes, membrane (T, N, h', w', c); state (N, h', w', c) per neuron.
    """

    spikes: U8 | None  # None: the last neuron does not fire
    membrane: F16 | None  # of a last neuron that does not fire
    state: tuple[F16, ...]  # v after the last step
    finite: bool  # no value of x that takes part, and no value computed from it, was inf or NaN
    probes: tuple[StageProbe, ...]  # empty unless asked for


def compress(membrane: F16, mask: U8) -> F16:
    """Membrane potentials where the mask is 1, in scan order."""
    return membrane[mask.astype(np.bool_)]


def decompress(values: F16, mask: U8) -> F16:
    """Inverse of `compress`; what was masked out is +0."""
    membrane = np.zeros(mask.shape, np.float16)
    membrane[mask.astype(np.bool_)] = values
    return membrane
