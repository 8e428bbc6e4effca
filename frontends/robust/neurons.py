"""Intervals of neurons in training: membrane potentials, spikes and what a reset leaves, step by step."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from compiler.ir import Reset
from compiler.ir.ops import Li, Lif
from frontends.nn import fire
from frontends.robust.values import Interval, Run

Value = float | Tensor
Ends = tuple[Tensor, Tensor]


def neurons(op: Lif, x: Interval, run: Run, axes: str) -> tuple[Interval, Interval]:
    """Spikes and membrane potentials of neurons with inputs in an interval.

    m[t] in decay v[t-1] + input_scale x[t] + leak_bias;   s by both ends (6.4);   v by 6.6 in its general form: [l, u]
    where silent, the reset's result where firing, the hull of both where unstable.

    Backward, ds/dm is the neuron's surrogate at m, for either end by its own m. What a neuron is (silent, firing or
    unstable) is taken as given: v passes gradients to those ends of m that it is made of, and none through spikes.

    Shapes: x (T, N, C, ...) -> two of the same shape.
    """
    step = _Step(op, x, run, axes)
    threshold = run.number(op.threshold, axes)
    reset_value = run.number(op.reset_value, axes)
    carried = step.start(run.number(op.initial, axes))
    membranes: list[Ends] = []
    spikes: list[Ends] = []
    for t in range(len(x.lower)):
        membrane = step.membrane(carried, t)
        lower, upper = (fire(m, threshold, op.compare, op.surrogate) for m in membrane)
        with torch.no_grad():
            cut = _Cut(fires=lower > 0, silent=upper == 0)
        membranes.append(membrane)
        spikes.append((lower, upper))
        carried = step.carried(membrane, cut, threshold, reset_value)
    return _over_time(spikes), _over_time(membranes)


def integrator(op: Li, x: Interval, run: Run, axes: str) -> Interval:
    """Membrane potentials of leaky integrators. Shapes: as x, (T, N, C, ...)."""
    step = _Step(op, x, run, axes)
    carried = step.start(run.number(op.initial, axes))
    membranes = []
    for t in range(len(x.lower)):
        membranes.append(step.membrane(carried, t))
        carried = step.decayed(membranes[-1])
    return _over_time(membranes)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Cut:
    """Neurons that fire, and that do not, whatever the input."""

    fires: Tensor
    silent: Tensor

    def hull(self, silent: Ends, firing: Ends) -> Ends:
        """The least interval around what either piece of a membrane's interval becomes."""
        low = torch.where(self.silent, silent[0], torch.minimum(silent[0], firing[0]))
        high = torch.where(self.silent, silent[1], torch.maximum(silent[1], firing[1]))
        return torch.where(self.fires, firing[0], low), torch.where(self.fires, firing[1], high)


class _Step:
    """One step of the recurrence."""

    def __init__(self, op: Lif | Li, x: Interval, run: Run, axes: str) -> None:
        self.op, self.decay = op, run.number(op.decay, axes)
        scale, leak = run.number(op.input_scale, axes), run.number(op.leak_bias, axes)
        self.lower, self.upper = x.lower, x.upper
        if not (isinstance(scale, float) and isinstance(leak, float) and (scale, leak) == (1.0, 0.0)):
            ends = scale * x.lower + leak, scale * x.upper + leak
            self.lower, self.upper = torch.minimum(*ends), torch.maximum(*ends)

    def start(self, initial: Value) -> Ends | None:
        """What the state before the first step carries over."""
        if isinstance(initial, float) and initial == 0.0:
            return None
        start = self.decay * (initial * torch.ones_like(self.lower[0]))
        return start, start

    def decayed(self, after: Ends) -> Ends:
        return self.decay * after[0], self.decay * after[1]

    def membrane(self, carried: Ends | None, t: int) -> Ends:
        if carried is None:
            return self.lower[t], self.upper[t]
        return carried[0] + self.lower[t], carried[1] + self.upper[t]

    def carried(self, membrane: Ends, cut: _Cut, threshold: Value, reset_value: Value) -> Ends:
        """What the next step adds to its input: decay v, less the threshold where a soft reset acts late."""
        op = self.op
        assert isinstance(op, Lif)
        if op.reset is Reset.NONE:
            return self.decayed(membrane)
        lower, upper = membrane
        level = torch.as_tensor(threshold, dtype=lower.dtype)
        top, bottom = torch.minimum(upper, level), torch.maximum(lower, level)
        if op.reset is Reset.HARD:
            value = torch.as_tensor(reset_value, dtype=lower.dtype)
            return self.decayed(cut.hull((lower, top), (value, value)))
        if not op.reset_delay:
            return self.decayed(cut.hull((lower, top), (bottom - level, upper - level)))
        low, top = self.decayed((lower, top))
        bottom, high = self.decayed((bottom, upper))
        return cut.hull((low, top), (bottom - level, high - level))


def _over_time(steps: list[Ends]) -> Interval:
    return Interval(lower=torch.stack([lower for lower, _ in steps]), upper=torch.stack([upper for _, upper in steps]))
