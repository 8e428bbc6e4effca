"""Surrogate derivatives of the fire function in torch, for whatever back-propagates through spikes."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from compiler.ir import Surrogate, SurrogateKind


def surrogate_gradient(surrogate: Surrogate, u: Tensor) -> Tensor:
    """The surrogate's value at u = m - threshold - offset.

    Source: the formulas in the docstring of `Surrogate`.
    """
    width, scale = surrogate.width, surrogate.scale
    match surrogate.kind:
        case SurrogateKind.RECTANGLE:
            return scale * (u.abs() < width).to(u.dtype)
        case SurrogateKind.TRIANGLE:
            return scale * (1 - u.abs() / width).clamp(min=0)
        case SurrogateKind.ATAN:
            return scale / (1 + (math.pi / 2 / width * u).square())
        case SurrogateKind.SIGMOID:
            sigma = torch.sigmoid(u / width)
            return scale * 4 * sigma * (1 - sigma)
        case SurrogateKind.FAST_SIGMOID | SurrogateKind.SUPERSPIKE:
            return scale / (1 + u.abs() / width).square()
        case SurrogateKind.EXPONENTIAL:
            return scale * torch.exp(-u.abs() / width)


def inside_window(surrogate: Surrogate, u: Tensor) -> Tensor:
    """Whether u = m - threshold - offset lies inside the open window: th_l < m < th_r.

    Source: equation 3.1.
    """
    return u.abs() < surrogate.width


def vanishes_outside(surrogate: Surrogate) -> bool:
    """Whether the surrogate is exactly zero outside its window."""
    return surrogate.kind in (SurrogateKind.RECTANGLE, SurrogateKind.TRIANGLE)
