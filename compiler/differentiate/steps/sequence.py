"""Steps at the ends of a network: encodings and readouts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from compiler.differentiate.steps.base import Arrays, Step


@dataclass(frozen=True, slots=True, kw_only=True)
class RepeatBackward(Step):
    """dx = sum over t of dy[t], of a direct encoding. Shapes: dy (T, N, ...) -> dx (N, ...)."""

    def run(self, inputs: Sequence[Tensor], arrays: Arrays) -> tuple[Tensor, ...]:
        return (inputs[0].sum(0),)


@dataclass(frozen=True, slots=True, kw_only=True)
class RateBackward(Step):
    """dx[t] = dy / T. Shapes: dy (N, ...) -> dx (T, N, ...)."""

    timesteps: int

    def run(self, inputs: Sequence[Tensor], arrays: Arrays) -> tuple[Tensor, ...]:
        (dy,) = inputs
        return ((dy / self.timesteps).expand(self.timesteps, *dy.shape),)


@dataclass(frozen=True, slots=True, kw_only=True)
class LastBackward(Step):
    """dx[t] = dy at the last step, else 0. Shapes: dy (N, ...) -> dx (T, N, ...)."""

    timesteps: int

    def run(self, inputs: Sequence[Tensor], arrays: Arrays) -> tuple[Tensor, ...]:
        (dy,) = inputs
        dx = dy.new_zeros(self.timesteps, *dy.shape)
        dx[-1] = dy
        return (dx,)


@dataclass(frozen=True, slots=True, kw_only=True)
class MaxReadoutForward(Step):
    """y = maximum over t of x[t]; winners[t] = (x[t] == y). Shapes: x (T, N, ...) -> y (N, ...), winners as x."""

    def run(self, inputs: Sequence[Tensor], arrays: Arrays) -> tuple[Tensor, ...]:
        (x,) = inputs
        y = x.amax(0)
        return y, (x == y).to(x.dtype)


@dataclass(frozen=True, slots=True, kw_only=True)
class MaxReadoutBackward(Step):
    """dx[t] = dy * winners[t] / sum of winners: steps that tie share evenly, as in torch's amax.

    Shapes: dy (N, ...), winners (T, N, ...) -> dx (T, N, ...).
    """

    def run(self, inputs: Sequence[Tensor], arrays: Arrays) -> tuple[Tensor, ...]:
        dy, winners = inputs
        return (dy / winners.sum(0) * winners,)
