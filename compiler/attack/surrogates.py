"""Surrogates of the fire function that follow the membrane potentials of the very pass whose gradient is taken."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from hwmodel.errors import CompileError, Loc

# Potentials that lie closer together, or to their threshold, have no width of their own: a surrogate as narrow would
# make gradients that overflow.
_LEAST = 1e-6


class SurrogateRule(Protocol):
    """A surrogate of one population, made of its own membrane potentials, sample by sample."""

    def __call__(self, u: Tensor) -> Tensor:
        """ds/dm by u = m - threshold - offset; of each sample, by nothing but its own. Shapes: (T, N, C, ...)."""


@dataclass(frozen=True, slots=True)
class PotentialDependent:
    """A normal density as wide as the membrane potentials spread.

    ds/dm[t] = N(u[t]; sigma[t] / 2, sigma[t])
    sigma[t] = standard deviation of m[0], ..., m[t] over these steps and over positions; 1 where that is below 1e-6

    In feature maps each channel has its own sigma; elsewhere a population has one for all neurons. It is one sample's
    own, where the source takes the spread over the batch.

    Source: PDSG, Lun et al., CVPR 2025, arXiv 2503.03272, and its published code.
    """

    def __call__(self, u: Tensor) -> Tensor:
        sigma = _spread_so_far(u)
        return torch.exp(-((u / sigma - 0.5).square()) / 2) / (math.sqrt(2 * math.pi) * sigma)


@dataclass(frozen=True, slots=True, kw_only=True)
class AdaptiveSharpness:
    """An arc tangent as sharp as is possible before gradients vanish.

    ds/dm = alpha / 2 / (1 + (pi / 2 * alpha * u)^2)
    alpha[t] = 2 / pi * tan(pi / 2 * vanishing) / (mean of |u[t]| + reserve * mean deviation from that mean)

    The share 2 / pi * arctan(pi / 2 * alpha * |u|) of the surrogate's area lies closer to the threshold than u does:
    how far its gradient has vanished. As the arc tangent is concave there, the mean of the share over the population
    is at most `vanishing`. Means are over one sample's channels and positions at one step; alpha is 1 where their
    sum is below 1e-6. The source averages them over an attack's iterations besides; here a gradient depends on its
    input alone.

    Source: the bound that ASSG sets on vanishing, Wang et al., arXiv 2512.22522; the form is this module's own.
    Raises: CompileError for numbers outside their ranges.
    """

    vanishing: float = 0.85
    reserve: float = 0.5

    def __post_init__(self) -> None:
        if not 0.0 < self.vanishing < 1.0:
            message = f"the degree of vanishing is {self.vanishing:g}, must be between 0 and 1"
            raise CompileError(message, Loc("attack"))
        if not 0.0 <= self.reserve < math.inf:
            message = f"the reserve is {self.reserve:g}, must be at least 0 and finite"
            raise CompileError(message, Loc("attack"))

    def __call__(self, u: Tensor) -> Tensor:
        size = u.abs().double()
        axes = tuple(range(2, u.ndim))
        mean = size.mean(axes, keepdim=True)
        away = mean + self.reserve * (size - mean).abs().mean(axes, keepdim=True)
        sharpness = 2 / math.pi * math.tan(math.pi / 2 * self.vanishing)
        alpha = (sharpness / away).where(away >= _LEAST, away.new_ones(())).to(u.dtype)
        return alpha / 2 / (1 + (math.pi / 2 * alpha * u).square())


def _spread_so_far(u: Tensor) -> Tensor:
    """Standard deviation up to each step, as `PotentialDependent` says, shaped to broadcast over u."""
    axes = tuple(range(3, u.ndim)) if u.ndim > 3 else (2,)
    exact = u.double()
    # Deviations from the first step's own mean: squares of what lies far from 0 would cancel.
    exact = exact - exact[:1].mean(axes, keepdim=True)
    each = math.prod(u.shape[axis] for axis in axes)
    count = each * torch.arange(1, len(u) + 1, dtype=torch.float64).reshape(-1, *(1,) * (u.ndim - 1))
    mean = exact.sum(axes, keepdim=True).cumsum(0) / count
    square = exact.square().sum(axes, keepdim=True).cumsum(0) / count
    variance = ((square - mean.square()) * count / (count - 1).clamp(min=1)).clamp(min=0)
    sigma = variance.sqrt().to(u.dtype)
    return sigma.where(sigma >= _LEAST, sigma.new_ones(()))
