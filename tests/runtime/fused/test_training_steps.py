"""A fused module as torch's tools know modules: state, copies, optimisers, accumulated gradients."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import spikec
from frontends.nn import LIF
from runtime.fused.module import FusedModule
from tests.runtime.fused.networks import T

CLOSE = {"rtol": 1e-4, "atol": 1e-5}  # three steps of f32 rounding on weights below 1; no spike differs on these seeds


def network(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(2, 5, 3, padding=1),
        nn.BatchNorm2d(5),
        LIF(timesteps=T),
        nn.Conv2d(5, 4, 3, stride=2),
        LIF(decay=torch.tensor([0.5, 0.25, 0.3, 0.1]), timesteps=T),
        nn.Flatten(),
        nn.Linear(16, 3),
        nn.Unflatten(0, (T, -1)),
    )


def batch(seed: int = 0, samples: int = 3) -> Tensor:
    return 2 * torch.rand(T * samples, 2, 6, 6, generator=torch.Generator().manual_seed(seed))


def pair() -> tuple[nn.Module, FusedModule]:
    """A network, and a fused copy of it."""
    module = network()
    return module, spikec.fuse(copy.deepcopy(module), batch(), T)


def loss(module: nn.Module, seed: int = 0, samples: int = 3) -> Tensor:
    target = torch.arange(samples) % 3
    return nn.functional.cross_entropy(module(batch(seed, samples)).mean(0), target)


def parameters_agree(first: nn.Module, second: nn.Module) -> None:
    for (name, one), (other_name, other) in zip(first.named_parameters(), second.named_parameters(), strict=True):
        assert name == other_name
        torch.testing.assert_close(other, one, **CLOSE, msg=lambda text, name=name: f"{name}: {text}")


def gradients_agree(first: nn.Module, second: nn.Module) -> None:
    for (name, one), other in zip(first.named_parameters(), second.parameters(), strict=True):
        assert (one.grad is None) == (other.grad is None), name
        if one.grad is not None:
            torch.testing.assert_close(other.grad, one.grad, **CLOSE, msg=lambda text, name=name: f"{name}: {text}")


def test_state_is_the_given_modules() -> None:
    module, fused = pair()
    want, got = module.state_dict(), fused.state_dict()
    assert list(want) == list(got)
    assert all(torch.equal(want[name], got[name]) for name in want)
    assert [name for name, _ in module.named_parameters()] == [name for name, _ in fused.named_parameters()]
    other = network(seed=7)
    fused.load_state_dict(other.state_dict())
    other.eval()
    fused.eval()
    assert torch.equal(fused(batch()), other(batch()))  # spikes, and one linear layer on torch's kernel
    module.load_state_dict(fused.state_dict())


def test_state_through_a_file() -> None:
    _, fused = pair()
    loss(fused).backward()
    file = io.BytesIO()
    torch.save(fused.state_dict(), file)
    file.seek(0)
    plain = network(seed=7)
    plain.load_state_dict(torch.load(file, weights_only=True))
    for net in (plain, fused):
        net.eval()
    assert torch.equal(plain(batch()), fused(batch()))


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda fused: pickle.loads(pickle.dumps(fused))])
def test_copies_train_on_their_own(copied: Callable[[FusedModule], FusedModule]) -> None:
    module, fused = pair()
    loss(fused).backward()  # the arena holds what a step used
    twin = copied(fused)
    assert twin._arena is not fused._arena
    before = {name: value.clone() for name, value in fused.state_dict().items()}
    optimiser = torch.optim.SGD(twin.parameters(), lr=0.1)
    reference = torch.optim.SGD(module.parameters(), lr=0.1)
    loss(module).backward()  # as the original of the copy was trained; its gradients are dropped below
    for seed in range(3):
        for net, descent in ((twin, optimiser), (module, reference)):
            descent.zero_grad()
            loss(net, seed).backward()
            descent.step()
    parameters_agree(module, twin)
    assert all(torch.equal(value, fused.state_dict()[name]) for name, value in before.items())
    assert not torch.equal(twin.state_dict()["0.weight"], before["0.weight"])


@pytest.mark.parametrize(
    "make",
    [
        lambda parameters: torch.optim.SGD(parameters, lr=0.05, momentum=0.9, weight_decay=0.01),
        lambda parameters: torch.optim.Adam(parameters, lr=0.01, eps=1e-3),
    ],
    ids=["SGD", "Adam"],
)
def test_optimisers(make: Callable[[object], torch.optim.Optimizer]) -> None:
    """Adam's eps is large against the noise in the gradient of the bias that a batch norm cancels."""
    module, fused = pair()
    initial = copy.deepcopy(module)
    descents = [(net, make(net.parameters())) for net in (module, fused)]
    for seed in range(3):
        for net, descent in descents:
            descent.zero_grad()
            loss(net, seed).backward()
            descent.step()
    parameters_agree(module, fused)
    assert all(
        not torch.allclose(one, other, rtol=1e-3, atol=1e-4)
        for (name, one), other in zip(initial.named_parameters(), fused.parameters(), strict=True)
        if name != "0.bias"
    )


def test_gradients_accumulate() -> None:
    module, fused = pair()
    for net in (module, fused):
        loss(net, 1).backward()
        loss(net, 2, samples=5).backward()
    gradients_agree(module, fused)
    for net in (module, fused):
        torch.optim.SGD(net.parameters(), lr=0.1).step()
    parameters_agree(module, fused)


@pytest.mark.parametrize("frozen", [("0.weight", "0.bias"), ("1.weight",), ("1.bias", "3.weight"), ("6.weight",)])
def test_frozen_parameters(frozen: tuple[str, ...]) -> None:
    module, fused = pair()
    for net in (module, fused):
        for name in frozen:
            net.get_parameter(name).requires_grad_(False)
        loss(net).backward()
    gradients_agree(module, fused)
    assert all(fused.get_parameter(name).grad is None for name in frozen)


def test_hooks_on_gradients() -> None:
    _, fused = pair()
    seen = []
    fused.get_parameter("3.weight").register_hook(lambda grad: seen.append(grad.shape))
    loss(fused).backward()
    assert seen == [fused.get_parameter("3.weight").shape]


def test_parameters_are_shared_with_the_given_module() -> None:
    module = network()
    fused = spikec.fuse(module, batch(), T)
    assert all(one is other for one, other in zip(module.parameters(), fused.parameters(), strict=True))
    descent = torch.optim.SGD(module.parameters(), lr=0.1)
    loss(fused).backward()
    descent.step()
    for net in (module, fused):
        net.eval()
    assert torch.equal(module(batch()), fused(batch()))
