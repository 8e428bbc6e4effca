"""Parameters under several names, constants of the graph, and children of any name."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import spikec
from frontends.nn import LIF
from runtime.fused.module import FusedModule
from tests.runtime.fused.gradients import INPUT, step, upstream_like
from tests.runtime.fused.networks import T


class Tied(nn.Module):
    """Two convolutions of one weight."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.between = nn.Conv2d(3, 3, 3, padding=1), LIF(timesteps=T)
        self.second, self.last = nn.Conv2d(3, 3, 3, padding=1), LIF(timesteps=T)
        self.second.weight = self.first.weight

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.last(self.second(self.between(self.first(x))))
        return y


class Twice(nn.Module):
    """A convolution and a batch norm under two names each, a child and a parameter that are None."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3)
        self.second, self.again = self.first, self.norm
        self.between, self.last = LIF(timesteps=T), LIF(timesteps=T)
        self.register_module("nothing", None)
        self.register_parameter("none", None)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.last(self.again(self.second(self.between(self.norm(self.first(x))))))
        return y


def batch() -> Tensor:
    return 2 * torch.rand(T * 3, 3, 5, 5, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("make", [Tied, Twice])
def test_parameters_under_two_names(make: Callable[[], nn.Module]) -> None:
    """Their gradient is the sum over both uses, and the state has both names."""
    torch.manual_seed(0)
    module = make()
    fused = spikec.fuse(copy.deepcopy(module), batch(), T)
    assert list(fused.state_dict()) == list(module.state_dict())
    assert [name for name, _ in fused.named_parameters()] == [name for name, _ in module.named_parameters()]
    upstream = upstream_like(module, batch())
    want, got = step(module, batch(), upstream), step(fused, batch(), upstream)
    assert torch.equal(got.y, want.y)  # spikes
    assert want.grads.keys() == got.grads.keys() > {"first.weight", INPUT}
    for name, grad in want.grads.items():
        torch.testing.assert_close(got.grads[name], grad, rtol=1e-5, atol=1e-5, msg=name)  # f32 sums of 600 terms
    for (name, buffer), other in zip(module.named_buffers(), fused.buffers(), strict=True):
        torch.testing.assert_close(other, buffer, rtol=1e-6, atol=1e-6, msg=name)


@pytest.mark.parametrize("name", ["plan", "paths", "orders", "interface", "arena", "weights", "T", "stage"])
def test_children_of_any_name(name: str) -> None:
    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 3)
            self.add_module(name, LIF(timesteps=T))

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.get_submodule(name)(self.layer(x))
            return y

    module, x = Named(), torch.rand(T * 2, 4)
    fused = spikec.fuse(module, x, T)
    assert torch.equal(fused(x), module(x))
    assert fused.get_submodule(name) is module.get_submodule(name)


def with_constants() -> tuple[nn.Module, FusedModule]:
    """The weight and the bias of a batch norm without parameters are constants of the graph."""
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, affine=False), LIF(timesteps=T))
    return module, spikec.fuse(copy.deepcopy(module), batch(), T)


def same(fused: FusedModule) -> FusedModule:
    return fused


@pytest.mark.parametrize("copied", [same, copy.deepcopy, lambda fused: pickle.loads(pickle.dumps(fused))])
def test_constants_after_inference(copied: Callable[[FusedModule], FusedModule]) -> None:
    """A first pass without autograd leaves the module fit for training."""
    module, fused = with_constants()
    for net in (module, fused):
        with torch.inference_mode():
            net(batch())
    fused = copied(fused)
    upstream = upstream_like(module, batch())
    want, got = step(module, batch(), upstream), step(fused, batch(), upstream)
    assert torch.equal(got.y, want.y)
    torch.testing.assert_close(got.grads["0.weight"], want.grads["0.weight"], rtol=1e-5, atol=1e-5)


def test_constants_are_no_state_but_move() -> None:
    module, fused = with_constants()
    assert list(fused.state_dict()) == list(module.state_dict())
    assert len(dict(fused.named_buffers())) == len(dict(module.named_buffers())) + 2
    assert all(buffer.device.type == "meta" for buffer in fused.to("meta").buffers())
