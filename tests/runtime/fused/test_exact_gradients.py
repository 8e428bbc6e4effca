"""On a dyadic grid every sum is exact in f32: outputs and all gradients are bit for bit the original module's."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import spikec
from frontends.nn import LIF
from tests.runtime.fused.gradients import INPUT, differing, double, equal, step, upstream_like
from tests.runtime.fused.networks import DYADIC, Chain, Ending, Lead, Network, Norm, T, networks


def check(network: Network, seed: int) -> bool:
    """Whether the example is exact in f32; if so, the fused network must give the same bits."""
    upstream = upstream_like(network.module, network.x, seed, dyadic=True)
    want = step(copy.deepcopy(network.module), network.x, upstream)
    exact = equal(want, step(double(network.module), network.x.double(), upstream))
    fused = spikec.fuse(copy.deepcopy(network.module), network.x, T)
    got = step(fused, network.x, upstream)
    assert not exact or differing(want, got) == []
    assert got.y.dtype == torch.float32
    return exact


@pytest.mark.parametrize("norm", [Norm.NONE, Norm.DYADIC])
def test_random_networks(norm: Norm) -> None:
    exact = []

    @settings(max_examples=20, deadline=None)
    @given(networks(norm=norm, neurons=DYADIC), st.integers(0, 2**16))
    def run(network: Network, seed: int) -> None:
        exact.append(check(network, seed))

    run()
    assert sum(exact) > 0.4 * len(exact)  # about two thirds are; hard resets multiply by membranes of many bits


def lines() -> nn.Module:
    """On lines of features (N, C, L)."""
    return nn.Sequential(
        nn.Conv1d(2, 4, 3, padding=1, groups=2),
        LIF(decay=0.5, threshold=1.0, timesteps=T),
        nn.MaxPool1d(3, stride=2, padding=1),
        nn.Conv1d(4, 3, 3, stride=2, bias=False),
        nn.BatchNorm1d(3, eps=0.0),
        LIF(decay=0.5, threshold=1.0, timesteps=T),
    )


def features() -> nn.Module:
    """On rows of features (N, F), with a batch norm of running statistics."""
    return nn.Sequential(
        nn.Linear(24, 17), nn.BatchNorm1d(17, eps=0.0), LIF(decay=0.5, threshold=1.0, timesteps=T), nn.Linear(17, 16)
    )


def neurons_in_a_row() -> nn.Module:
    return nn.Sequential(
        LIF(decay=0.5, threshold=1.0, timesteps=T), LIF(decay=0.5, threshold=1.0, timesteps=T), nn.Conv2d(2, 16, 3)
    )


def pooled_spikes_again_pooled() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(2, 16, 3, padding=1),
        LIF(decay=0.5, threshold=1.0, timesteps=T),
        nn.MaxPool2d(2, stride=1),
        nn.AvgPool2d(2, stride=1),
        nn.Flatten(),
    )


def one_spike_read_twice() -> nn.Module:
    lif = LIF(decay=0.5, threshold=1.0, timesteps=T)
    branches = nn.Sequential(nn.Conv2d(2, 3, 3, padding=1), nn.Conv2d(2, 3, 1))

    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lif, self.branches = lif, branches

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            spikes = self.lif(x)
            total: torch.Tensor = self.branches[0](spikes) + self.branches[1](spikes)
            return total

    return Both()


CASES: tuple[tuple[Callable[[], nn.Module], tuple[int, ...]], ...] = (
    (lines, (2, 9)),
    (features, (24,)),
    (neurons_in_a_row, (2, 5, 4)),
    (pooled_spikes_again_pooled, (2, 6, 5)),
    (one_spike_read_twice, (2, 5, 4)),
)


@pytest.mark.parametrize(("build", "shape"), CASES, ids=[build.__name__ for build, _ in CASES])
@pytest.mark.parametrize("lead", Lead)
def test_networks_of_other_kinds(build: Callable[[], nn.Module], shape: tuple[int, ...], lead: Lead) -> None:
    module = Chain(on_grid(build()), lead, Ending.SPIKES).eval()
    rows = {Lead.MERGED: (T * 3,), Lead.SEPARATE: (T, 3), Lead.IMAGE: (3,)}[lead]
    x = torch.randint(-1, 4, (*rows, *shape), generator=torch.Generator().manual_seed(1)) / 2
    assert check(Network(module=module, x=x), seed=2)


@pytest.mark.parametrize("channels", [1, 15, 16, 33])
def test_channels_around_a_vector(channels: int) -> None:
    """Vectors hold 4 to 16 channels."""
    module = on_grid(nn.Sequential(nn.Conv2d(1, channels, 1), LIF(decay=0.5, threshold=1.0, timesteps=T)))
    x = torch.randint(-1, 4, (T * 2, 1, 3, 5), generator=torch.Generator().manual_seed(1)) / 2
    assert check(Network(module=module, x=x), seed=2)


@pytest.mark.parametrize("need_x", [False, True])
@pytest.mark.parametrize("frozen", [("0.weight",), ("0.bias", "2.weight"), ("0.weight", "0.bias", "2.weight")])
def test_only_what_is_asked_for(frozen: tuple[str, ...], need_x: bool) -> None:
    module = on_grid(
        nn.Sequential(nn.Conv2d(2, 4, 3), LIF(decay=0.5, threshold=1.0, timesteps=T), nn.Conv2d(4, 3, 2), nn.Flatten())
    )
    for name in frozen:
        module.get_parameter(name).requires_grad_(False)
    x = torch.randint(-1, 4, (T * 2, 2, 5, 4), generator=torch.Generator().manual_seed(3)) / 2
    upstream = upstream_like(module, x, dyadic=True)
    want = step(copy.deepcopy(module), x, upstream, need_x=need_x)
    got = step(spikec.fuse(module, x, T), x, upstream, need_x=need_x)
    assert differing(want, got) == []
    assert (got.grads[INPUT] is not None) == need_x
    assert [name for name, grad in got.grads.items() if grad is None and name != INPUT] == list(frozen)


def on_grid(module: nn.Module) -> nn.Module:
    """Small multiples of a half as weights."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randint(-2, 3, parameter.shape, generator=generator) / 2)
    return module
