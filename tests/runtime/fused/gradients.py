"""One training step of any module, and what decides whether two of them may differ."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

import pytest
import torch
from torch import Tensor, nn

import frontends.nn
from compiler.ir import Compare, Surrogate
from compiler.surrogate import vanishes_outside

INPUT = "input"  # the name of its gradient


@dataclass(frozen=True, slots=True)
class Step:
    """Output, and gradients of the parameters by name and of the input; None where there is none."""

    y: Tensor
    grads: Mapping[str, Tensor | None]


def step(module: nn.Module, x: Tensor, upstream: Tensor, *, need_x: bool = True) -> Step:
    """Forward and backward from no gradients; those of the parameters stay in place too."""
    module.zero_grad()
    x = x.detach().clone().requires_grad_(need_x)
    y = module(x)
    y.backward(upstream.to(y.dtype))
    grads = {name: None if p.grad is None else p.grad.clone() for name, p in module.named_parameters()}
    return Step(y.detach(), grads | {INPUT: x.grad})


def upstream_like(module: nn.Module, x: Tensor, seed: int = 0, *, dyadic: bool = False) -> Tensor:
    """A gradient of the output; the module's statistics stay as they were."""
    with torch.no_grad():
        shape = copy.deepcopy(module)(x).shape
    generator = torch.Generator().manual_seed(seed)
    if dyadic:
        return torch.randint(-2, 3, shape, generator=generator).float()
    return torch.randn(shape, generator=generator)


def double(module: nn.Module) -> nn.Module:
    """A copy in f64."""
    return copy.deepcopy(module).double()


def equal(first: Step, second: Step) -> bool:
    """Bit for bit up to the element type."""
    return not differing(first, second)


def differing(first: Step, second: Step) -> list[str]:
    """Names of what differs, "output" among them."""
    assert first.grads.keys() == second.grads.keys()
    names = [] if torch.equal(first.y.double(), second.y.double()) else ["output"]
    for name, one in first.grads.items():
        other = second.grads[name]
        if (one is None) != (other is None):
            names.append(f"{name} (missing)")
        elif one is not None and other is not None and not torch.equal(one.double(), other.double()):
            names.append(name)
    return names


@dataclass(slots=True)
class Margin:
    """How near any membrane potential of a pass came to where spikes or surrogates jump."""

    nearest: float = float("inf")
    spikes: list[Tensor] = field(default_factory=list)
    membranes: list[Tensor] = field(default_factory=list)

    def apply(self, m: Tensor, threshold: float | Tensor, compare: Compare, surrogate: Surrogate) -> Tensor:
        u = (m - threshold).detach()
        distances = [u.abs()]
        if vanishes_outside(surrogate):
            distances.append(((u - surrogate.offset).abs() - surrogate.width).abs())
        self.nearest = min(self.nearest, *(float(distance.min()) for distance in distances))
        result: Tensor = _FIRE.apply(m, threshold, compare, surrogate)
        self.spikes.append(result.detach())
        self.membranes.append(m.detach())
        return result

    def distance(self, other: Margin) -> float:
        """How far membrane potentials of another pass lie from this one's at most."""
        pairs = zip(self.membranes, other.membranes, strict=True)
        return max((float((one - two).abs().max()) for one, two in pairs), default=0.0)


@contextmanager
def margin() -> Iterator[Margin]:
    """Observes all `frontends.nn.LIF` that run inside."""
    seen = Margin()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(frontends.nn, "_Fire", seen)
        yield seen


_FIRE = frontends.nn._Fire
