"""What `spikec.fuse` refuses, word for word."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import spikec
from frontends.nn import LIF
from hwmodel.errors import CompileError
from tests.golden import Golden

T = 3


class LearnedDecay(nn.Module):
    """Neurons whose decay is a parameter that the graph would hold as a constant."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.neurons = nn.Linear(4, 3), LIF(timesteps=T)
        self.neurons.decay = nn.Parameter(torch.full((3,), 0.5))

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.neurons(self.layer(x))
        return y


class Unused(nn.Module):
    """A parameter that the output does not depend on."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.neurons = nn.Linear(4, 3), LIF(timesteps=T)
        self.spare = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.neurons(self.layer(x))
        return y


class ScaledWeight(nn.Module):
    """A layer whose weight is computed from a parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.neurons = nn.Parameter(torch.rand(3, 4)), LIF(timesteps=T)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.neurons(nn.functional.linear(x, 2 * self.weight))
        return y


class Counting(nn.Module):
    """Remembers how often it was called."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.neurons = nn.Linear(4, 3), LIF(timesteps=T)
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        y: Tensor = self.neurons(self.layer(x) * self.calls)
        return y


class Taken(nn.Module):
    """Has a child with the name of an attribute of fused modules."""

    def __init__(self) -> None:
        super().__init__()
        self.process_group, self.neurons = nn.Linear(4, 3), LIF(timesteps=T)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.neurons(self.process_group(x))
        return y


def refusal(module: nn.Module, loop_orders: str = "merged") -> str:
    with pytest.raises(CompileError) as fault:
        spikec.fuse(module, torch.rand(T * 2, 4), T, loop_orders=loop_orders)
    return str(fault.value)


def chain(*between: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Linear(4, 3), *between, LIF(timesteps=T), nn.Linear(3, 2))


CASES: dict[str, Callable[[], nn.Module]] = {
    "learned decay": LearnedDecay,
    "unused parameter": Unused,
    "computed weight": ScaledWeight,
    "state between calls": Counting,
    "a name that is taken": Taken,
    "dropout before neurons": lambda: chain(nn.Dropout(0.25)),
    "dropout behind neurons": lambda: nn.Sequential(chain(), nn.Dropout(0.5)),
    "dropout that drops all": lambda: chain(nn.Dropout(1.0)),
    "an activation": lambda: chain(nn.GELU()),
    "recurrent cells": lambda: nn.Sequential(nn.LSTM(4, 3)),
    "layer norm": lambda: chain(nn.LayerNorm(3)),
}


@pytest.fixture(scope="module")
def messages() -> str:
    lines = []
    for name, build in CASES.items():
        torch.manual_seed(0)
        lines.append(f"{name}:\n{refusal(build())}\n")
    lines.append(f"unknown loop orders:\n{refusal(chain(), loop_orders='fastest')}\n")
    return "\n".join(lines)


def test_messages(messages: str, golden: Golden) -> None:
    root = __file__.removesuffix("tests/spikec/test_fuse_refusals.py")
    golden("fuse_refusals.txt", messages.replace(root, ""))


@pytest.mark.parametrize("build", [LearnedDecay, Unused])
def test_the_hint_helps(build: Callable[[], nn.Module]) -> None:
    """Parameters that are not to be trained may stand where they are."""
    module = build()
    path = refusal(module).split(": error: ")[1].split(":")[0]
    for name, parameter in module.named_parameters():
        if name.startswith(path.split(".")[0]):
            parameter.requires_grad_(False)
    fused = spikec.fuse(module, torch.rand(T * 2, 4), T)
    x = torch.rand(T * 2, 4)
    assert torch.equal(fused(x), module(x))


def test_dropout_that_drops_nothing() -> None:
    module = chain(nn.Dropout(0.0))
    x = torch.rand(T * 2, 4)
    assert torch.equal(spikec.fuse(module, x, T)(x), module(x))
