"""Better slopes for the lines of the neurons: a few steps up the bound that they give."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from hwmodel.errors import CompileError, Loc

Slopes = Mapping[str, Tensor]


@dataclass(frozen=True, slots=True, kw_only=True)
class Ascent:
    """How the free slopes are optimised: Adam on the sum of the bounds, kept in [0, 1] after each step.

    enough: no further step once every bound is above it; 0 for a verdict alone.
    Raises: CompileError if steps is negative or the rate not positive.
    """

    steps: int = 20
    rate: float = 0.1
    enough: float = math.inf

    def __post_init__(self) -> None:
        if self.steps < 0:
            raise CompileError(f"{self.steps} steps of the slopes, must be at least 0", Loc("margins"))
        if not 0.0 < self.rate <= 1.0:
            raise CompileError(f"the slopes' rate is {self.rate:g}, must be above 0 and at most 1", Loc("margins"))


def ascend(bound: Callable[[Slopes], Tensor], start: Slopes, ascent: Ascent) -> Tensor:
    """The greatest value of each bound over all iterates; every one is sound, as any slope in range is.

    bound: the R bounds that slopes give, differentiable; start: slopes in [0, 1], each form has its own.
    Shapes: -> (R,).
    """
    free = {name: value.clone().requires_grad_() for name, value in start.items()}
    if not free:
        return bound({})
    optimiser = torch.optim.Adam(free.values(), lr=ascent.rate)
    best = torch.tensor(-torch.inf, dtype=torch.float64)
    for step in range(ascent.steps + 1):
        values = bound(free)
        best = torch.maximum(best, values.detach())
        is_enough = bool((best > ascent.enough).all())
        if step == ascent.steps or is_enough or not values.requires_grad:
            break
        optimiser.zero_grad()
        (-values.sum()).backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        with torch.no_grad():
            for value in free.values():
                value.clamp_(0.0, 1.0)
    return best
