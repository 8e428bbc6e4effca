"""Steps of neuron populations, and what each storage policy keeps of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

import torch
from torch import Tensor

from compiler.differentiate.steps.base import Arrays, Step
from compiler.ir import Compare, Reset, SurrogateKind
from compiler.ir.ops import Li, Lif, parameter_names
from compiler.surrogate import inside_window, surrogate_gradient


class Storage(StrEnum):
    """What a forward pass keeps of membrane potentials."""

    DENSE = "dense"  # all
    WINDOW = "window"  # a gradient mask, and those inside the surrogate's window where they are read


class Saved(StrEnum):
    """A value of a Lif node that its backward step reads; the spikes have the node's own name."""

    SPIKES = ""
    MASK = ".mask"
    MEMBRANE = ".membrane"


def extra_results(op: Lif, storage: Storage) -> tuple[Saved, ...]:
    """What the forward step makes besides spikes.

    A rectangle is constant inside its window, so that only a reset through which the gradient flows, and whose
    slope depends on the membrane potential, reads it: the hard one, not detached.
    """
    if storage is Storage.DENSE:
        return (Saved.MEMBRANE,)
    slope_reads = op.reset is Reset.HARD and not op.detach_reset
    if slope_reads or op.surrogate.kind is not SurrogateKind.RECTANGLE:
        return Saved.MASK, Saved.MEMBRANE
    return (Saved.MASK,)


def backward_reads(op: Lif, storage: Storage) -> tuple[Saved, ...]:
    """What the backward step reads, in order, after the gradient of the spikes."""
    spikes = (Saved.SPIKES,) if op.reset is Reset.HARD else ()
    return (*spikes, *extra_results(op, storage))


@dataclass(frozen=True, slots=True, kw_only=True)
class LifForward(Step):
    """s and m of the `Lif` equations; the mask of equation 3.1, and +0 for each m outside the window.

    mask[t] = th_l < m[t] < th_r, computed as |m[t] - threshold - offset| < width.
    Given spikes as a second input, s is theirs, and the membrane potentials are reset by them.

    Shapes: x (T, N, C, ...) [, s of the same shape] -> s and each kept value of the same shape.
    Source: equations 2.1, 2.2, 3.1.
    """

    op: Lif
    storage: Storage

    @property
    def parameters(self) -> tuple[str, ...]:
        return parameter_names(self.op)

    def run(self, inputs: Sequence[Tensor], arrays: Arrays) -> tuple[Tensor, ...]:
        x, *given = inputs
        spikes, membranes = _fire_over_time(self.op, x, given[0] if given else None, arrays)
        if self.storage is Storage.DENSE:
            return spikes, membranes
        mask = inside_window(self.op.surrogate, _over_threshold(self.op, membranes, arrays))
        values = {
            Saved.MASK: mask.to(x.dtype),
            Saved.MEMBRANE: torch.where(mask, membranes, 0.0),
        }
        return spikes, *(values[saved] for saved in extra_results(self.op, self.storage))


@dataclass(frozen=True, slots=True, kw_only=True)
class LifBackward(Step):
    """The gradient through time of a `Lif`, from the last step to the first.

    dv[t] = decay * dm[t+1];   dv[T-1] = 0
    ds[t] = dy[t] + dv[t] * (reset_value - m[t])   (reset hard)
    ds[t] = dy[t] - threshold * dv[t]              (reset soft)
    ds[t] = dy[t] - threshold * dm[t+1]            (reset soft with reset_delay)
    ds[t] = dy[t]                                  (reset none, or detach_reset)
    dm[t] = ds[t] * fire'(m[t]) + dv[t] * (1 - s[t])   (reset hard)
    dm[t] = ds[t] * fire'(m[t]) + dv[t]                (else)
    dx[t] = input_scale * dm[t]

    The first term is +0 where fire' is 0, whatever ds is. fire' is the surrogate, or the run's own slope where it
    has one for the population.

    Shapes: dy (T, N, C, ...), each read value of the same shape -> dx of the same shape.
    Source: equations 2.4 and 2.5 are reset=hard, reset_value=0.
    """

    op: Lif
    storage: Storage

    @property
    def parameters(self) -> tuple[str, ...]:
        return parameter_names(self.op)

    def run(self, inputs: Sequence[Tensor], arrays: Arrays) -> tuple[Tensor, ...]:
        dy, *read = inputs
        values = dict(zip(backward_reads(self.op, self.storage), read, strict=True))
        dm = self._through_time(dy, values, arrays)
        scale = self.op.input_scale
        return (dm if scale == 1.0 else arrays.number(scale, dy.ndim - 1) * dm,)

    def _through_time(self, dy: Tensor, values: Mapping[Saved, Tensor], arrays: Arrays) -> Tensor:
        op = self.op
        decay = arrays.number(op.decay, dy.ndim - 1)
        slope, reset_slope = self._slope(values, arrays), self._reset_slope(dy.ndim - 1, values, arrays)
        is_late = op.reset is Reset.SOFT and op.reset_delay
        outside = slope == 0
        resets = None if reset_slope is None else reset_slope.expand_as(dy)
        keeps = 1 - values[Saved.SPIKES] if op.reset is Reset.HARD else None
        later = torch.zeros_like(dy[0])
        dm = torch.empty_like(dy)
        for t in reversed(range(len(dy))):
            dv = decay * later
            if resets is None:
                through = dy[t] * slope[t]
            else:
                # what is made here is changed in place: these tensors are small, and making one costs as much as a sum
                through = ((later if is_late else dv) * resets[t]).add_(dy[t]).mul_(slope[t])
            kept = dv if keeps is None else dv.mul_(keeps[t])
            later = torch.add(through.masked_fill_(outside[t], 0.0), kept, out=dm[t])
        return dm

    def _reset_slope(self, ndim: int, values: Mapping[Saved, Tensor], arrays: Arrays) -> Tensor | None:
        """Derivative of v by s, of a delayed reset that of the next m; None where no gradient takes this path."""
        op = self.op
        if op.detach_reset or op.reset is Reset.NONE:
            return None
        if op.reset is Reset.SOFT:
            return -arrays.number(op.threshold, ndim)
        return arrays.number(op.reset_value, ndim) - values[Saved.MEMBRANE]

    def _slope(self, values: Mapping[Saved, Tensor], arrays: Arrays) -> Tensor:
        """fire'(m) at every step."""
        surrogate = self.op.surrogate
        if arrays.slope is not None:
            return arrays.slope(_over_threshold(self.op, values[Saved.MEMBRANE], arrays))
        if self.storage is Storage.DENSE:
            return surrogate_gradient(surrogate, _over_threshold(self.op, values[Saved.MEMBRANE], arrays))
        mask = values[Saved.MASK]
        if surrogate.kind is SurrogateKind.RECTANGLE:
            return surrogate.scale * mask
        inside = surrogate_gradient(surrogate, _over_threshold(self.op, values[Saved.MEMBRANE], arrays))
        return torch.where(mask > 0, inside, 0.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class LiForward(Step):
    """m of the `Li` equation. Shapes: x (T, N, C, ...) -> m of the same shape."""

    op: Li

    @property
    def parameters(self) -> tuple[str, ...]:
        return parameter_names(self.op)

    def run(self, inputs: Sequence[Tensor], arrays: Arrays) -> tuple[Tensor, ...]:
        (x,) = inputs
        decay = arrays.number(self.op.decay, x.ndim - 1)
        m = arrays.number(self.op.initial, x.ndim - 1).expand(x.shape[1:])
        membranes = torch.empty_like(x)
        for t in range(len(x)):
            m = _integrate(self.op, decay * m, x[t], arrays)
            membranes[t] = m
        return (membranes,)


@dataclass(frozen=True, slots=True, kw_only=True)
class LiBackward(Step):
    """dm[t] = dy[t] + decay * dm[t+1];  dx[t] = input_scale * dm[t]

    Shapes: dy (T, N, C, ...) -> dx of the same shape.
    """

    op: Li

    @property
    def parameters(self) -> tuple[str, ...]:
        return parameter_names(self.op)

    def run(self, inputs: Sequence[Tensor], arrays: Arrays) -> tuple[Tensor, ...]:
        (dy,) = inputs
        decay = arrays.number(self.op.decay, dy.ndim - 1)
        later = torch.zeros_like(dy[0])
        dm = torch.empty_like(dy)
        for t in reversed(range(len(dy))):
            later = dy[t] + decay * later
            dm[t] = later
        scale = self.op.input_scale
        return (dm if scale == 1.0 else arrays.number(scale, dy.ndim - 1) * dm,)


def _fire_over_time(op: Lif, x: Tensor, given: Tensor | None, arrays: Arrays) -> tuple[Tensor, Tensor]:
    """Spikes and membrane potentials, as `evaluate` computes them."""
    decay, threshold, reset_value, initial = (
        arrays.number(value, x.ndim - 1) for value in (op.decay, op.threshold, op.reset_value, op.initial)
    )
    v = initial.expand(x.shape[1:])
    spikes, membranes = torch.empty_like(x), torch.empty_like(x)
    fired = torch.zeros(x.shape[1:], dtype=torch.bool)
    for t in range(len(x)):
        m = _integrate(op, decay * v, x[t], arrays)
        if op.reset is Reset.SOFT and op.reset_delay:
            m = m - threshold * fired
        fires = m >= threshold if op.compare is Compare.GE else m > threshold
        fired = fires if given is None else given[t] > 0
        if op.reset is Reset.HARD:
            v = torch.where(fired, reset_value, m)
        else:
            v = m - threshold * fired if op.reset is Reset.SOFT and not op.reset_delay else m
        spikes[t], membranes[t] = fired, m
    return spikes, membranes


def _integrate(op: Lif | Li, decayed: Tensor, x: Tensor, arrays: Arrays) -> Tensor:
    """decayed + input_scale * x + leak_bias; a factor of 1 and a term of 0 are left out."""
    m = decayed + (x if op.input_scale == 1.0 else arrays.number(op.input_scale, x.ndim) * x)
    return m if op.leak_bias == 0.0 else m + arrays.number(op.leak_bias, x.ndim)


def _over_threshold(op: Lif, membranes: Tensor, arrays: Arrays) -> Tensor:
    """u = m - threshold - offset, what a surrogate is a function of."""
    return membranes - arrays.number(op.threshold, membranes.ndim - 1) - op.surrogate.offset
