"""What a Grad unit is told to do with one tile, and what it hands back."""

from __future__ import annotations

from dataclasses import dataclass

from runtime.engines.soma_plan import F16, U8, Pool, PoolKind, Reset


@dataclass(frozen=True, slots=True, kw_only=True)
class GradNeuron:
    """One neuron stage backwards in time: equations 2.4 and 2.5, every operation rounded to FP16.

    `detach` leaves the path through the reset out; `fire=False` is a leaky integrator, which has no spike.
    """

    reset: Reset
    fire: bool
    detach: bool
    has_scale: bool
    eta: float  # the surrogate's peak, an FP16 value; equation 2.6

    @property
    def needs_spikes(self) -> bool:
        """Whether the reset hides the membrane potential of a step from the next."""
        return self.fire and self.reset is Reset.HARD

    @property
    def needs_membrane(self) -> bool:
        """Whether the gradient through the reset depends on the membrane potential."""
        return self.needs_spikes and not self.detach


@dataclass(frozen=True, slots=True, kw_only=True)
class GradPlan:
    """The stages of the Soma's plan, [pool1] stage1 [pool2] [stage2], which the Grad unit walks backwards.

    Windows do not overlap and have no padding, so an input belongs to one window or to none.
    """

    stage1: GradNeuron | None
    pool1: Pool | None
    pool2: Pool | None
    stage2: GradNeuron | None

    def __post_init__(self) -> None:
        assert self.stage1 is not None or self.pool1 is None, "pool1 belongs to stage1"
        assert self.neurons or self.pool2 is not None, "a plan has a neuron or a pool"
        for pool in (self.pool1, self.pool2):
            if pool is not None:
                assert is_partition(pool), "windows with a gradient neither overlap nor leave the map"

    @property
    def neurons(self) -> tuple[GradNeuron, ...]:
        """The neurons that the plan has, in forward order."""
        return tuple(stage for stage in (self.stage1, self.stage2) if stage is not None)

    @property
    def keeps_source(self) -> bool:
        """Whether a maximum was taken over the layer's own source: its spikes then come first in `kept`."""
        return self.stage1 is None and self.pool2 is not None and self.pool2.kind is PoolKind.MAX


def is_partition(pool: Pool) -> bool:
    """Whether the windows lie side by side from the first row and column on."""
    sides = ((pool.kernel_h, pool.stride_h, pool.top), (pool.kernel_w, pool.stride_w, pool.left))
    return all(kernel == stride and start == 0 for kernel, stride, start in sides)


@dataclass(frozen=True, slots=True, kw_only=True)
class KeptStage:
    """What the forward pass kept of one neuron stage, at its own resolution; None where it is not needed.

    Shapes: all (T, N, h, w, c); membrane is decompressed, +0 where the mask is 0.
    Source: section 3.2.1, equation 3.1.
    """

    spikes: U8 | None
    mask: U8 | None
    membrane: F16 | None


@dataclass(frozen=True, slots=True, kw_only=True)
class GradResult:
    """Outputs of one Grad call; when `finite` is False the arrays have no meaning.

    Shapes: gradient, mask (T, N, height, width, c); carry (N, h', w', c) per neuron, in forward order.
    Source: equation 3.2 (mask).
    """

    gradient: F16
    mask: U8  # 1 where the gradient is not 0
    carry: tuple[F16, ...]  # gradient of the membrane potential at the first step
    finite: bool  # no dm_t, no result_t and no value of `gradient` is inf or NaN
