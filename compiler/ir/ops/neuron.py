"""Neuron populations."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np

from compiler.ir.ops.base import Op, Site
from compiler.ir.types import DType, TensorType
from compiler.ir.values import Compare, Number, Reset, Surrogate


@dataclass(frozen=True, slots=True, kw_only=True)
class Lif(Op):
    """Leaky integrate-and-fire population.

    m[t] = decay * v[t-1] + input_scale * x[t] + leak_bias;   v[-1] = initial
    s[t] = m[t] >= threshold (compare ge) or m[t] > threshold (gt)
    v[t] = reset_value where s[t], else m[t]      (reset hard)
    v[t] = m[t] - threshold * s[t]                (reset soft)
    v[t] = m[t]                                   (reset none)

    With `reset_delay` a soft reset acts one step later and is not decayed:
    m[t] = decay * m[t-1] + input_scale * x[t] + leak_bias - threshold * s[t-1].
    A hard reset acts before the decay in either case, so the flag changes nothing for it.

    Backward, ds/dm is the surrogate's value at m[t]; `detach_reset` cuts the path through the reset.

    Shapes: x (T, N, C, ...) -> s of the same shape; each number a scalar or one per channel.
    Units: threshold, reset_value, initial and leak_bias as the membrane potential; decay has none.
    Source: equations 2.1, 2.2 and 2.6 are reset=hard, reset_value=0, compare=ge, detach_reset=False,
    surrogate=rectangle.
    """

    decay: Number
    threshold: Number
    input_scale: Number = 1.0
    leak_bias: Number = 0.0
    reset: Reset = Reset.HARD
    reset_value: Number = 0.0
    reset_delay: bool = False
    compare: Compare = Compare.GE
    detach_reset: bool = False
    initial: Number = 0.0
    surrogate: Surrogate = field(default_factory=Surrogate)

    def infer(self, inputs: tuple[TensorType, ...], site: Site) -> TensorType:
        x = _sequence(inputs[0], site)
        _check_decay(self.decay, x.size("C"), site)
        for what in ("threshold", "input_scale", "leak_bias", "reset_value", "initial"):
            _finite(getattr(self, what), x.size("C"), what, site)
        if not self.surrogate.width > 0.0 or not math.isfinite(self.surrogate.width):
            raise site.fail(f"surrogate width is {self.surrogate.width}, must be positive and finite")
        if not (math.isfinite(self.surrogate.scale) and math.isfinite(self.surrogate.offset)):
            raise site.fail("surrogate scale and offset must be finite")
        return x.of(DType.SPIKE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Li(Op):
    """Leaky integrator without spikes; its membrane potential is the output.

    m[t] = decay * m[t-1] + input_scale * x[t] + leak_bias;   m[-1] = initial

    Shapes: x (T, N, C, ...) -> m of the same shape; each number a scalar or one per channel.
    """

    decay: Number
    input_scale: Number = 1.0
    leak_bias: Number = 0.0
    initial: Number = 0.0

    def infer(self, inputs: tuple[TensorType, ...], site: Site) -> TensorType:
        x = _sequence(inputs[0], site)
        _check_decay(self.decay, x.size("C"), site)
        for what in ("input_scale", "leak_bias", "initial"):
            _finite(getattr(self, what), x.size("C"), what, site)
        return x.of(DType.F32)


def _sequence(x: TensorType, site: Site) -> TensorType:
    if not x.has("T"):
        raise site.fail(f"takes a sequence over time, got {x}", "encode the input first")
    return x


def _check_decay(decay: Number, channels: int, site: Site) -> None:
    values = site.values(decay, channels, "decay")
    outside = values[~((values >= 0.0) & (values <= 1.0))]
    if outside.size:
        raise site.fail(
            f"decay is {outside[0]:g}, not inside [0, 1]",
            "decay = exp(-dt / tau) or 1 - dt / tau; was tau given in the unit of dt?",
        )


def _finite(value: Number, channels: int, what: str, site: Site) -> None:
    if not np.isfinite(site.values(value, channels, what)).all():
        raise site.fail(f"{what} is not finite")
