"""Batch norms in training: gradients no further from f64 than torch's, and the running statistics."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import spikec
from frontends.nn import LIF
from hwmodel.errors import CompileError
from tests.runtime.fused.gradients import Step, double, margin, step, upstream_like
from tests.runtime.fused.networks import SMOOTH, Network, Norm, T, networks

CERTAIN = 32  # times as far as f32 moves torch's membranes, and ours round as often
FAULT = 1e-3  # of the largest gradient and of the terms that it adds up
QUANTILES = (0.5, 0.75, 0.9)  # of many errors; the largest of a handful is one draw of noise
ULP = torch.finfo(torch.float32).eps


def summed_terms(module: nn.Module, x: Tensor, upstream: Tensor) -> dict[str, float]:
    """By parameter, a bound on the sum of the magnitudes that its gradient adds up."""
    scales: dict[str, float] = {}
    hooks = []
    for path, child in module.named_modules():
        if isinstance(child, nn.Conv2d | nn.Linear | nn.BatchNorm2d):

            def keep(m: nn.Module, inputs: tuple[Tensor, ...], path: str = path) -> None:
                x = inputs[0].detach()
                if isinstance(m, nn.BatchNorm2d):
                    x = nn.functional.batch_norm(x, None, None, training=True)
                scales[f"{path}.weight"] = float(x.abs().max())

            def measure(m: nn.Module, _g: object, grads: tuple[Tensor, ...], path: str = path) -> None:
                axes = [axis for axis in range(grads[0].ndim) if axis != 1]
                scales[f"{path}.bias"] = float(grads[0].abs().sum(axes).max())
                scales[f"{path}.weight"] *= scales[f"{path}.bias"]

            hooks += [child.register_forward_pre_hook(keep), child.register_full_backward_hook(measure)]
    step(module, x, upstream)
    for handle in hooks:
        handle.remove()
    return scales


def error(found: Step, exact: Step, name: str) -> float:
    """The largest of a gradient."""
    got, want = found.grads[name], exact.grads[name]
    assert got is not None
    assert want is not None
    return float((got - want).abs().max())


@dataclass(frozen=True, slots=True)
class Errors:
    """Of one gradient against f64, in ulps of its largest value and of the terms that it adds up.

    torch: of the given module with the channels last in memory, as the fused one has them.
    """

    ours: float
    torch: float


def check(network: Network, seed: int) -> list[Errors]:
    """Each gradient's errors; none unless all spikes are certain to agree."""
    upstream = upstream_like(network.module, network.x, seed)
    with margin() as seen:
        exact = step(double(network.module), network.x.double(), upstream)
    with margin() as rounded:
        theirs = step(copy.deepcopy(network.module), network.x, upstream)
    # torch's batch norm rounds more with the channels last, as the fused module calls it where no neurons follow
    with margin() as rounded_last:
        last = step(copy.deepcopy(network.module).to(memory_format=torch.channels_last), network.x, upstream)
    if seen.nearest < CERTAIN * max(seen.distance(rounded), seen.distance(rounded_last)):
        return []
    scales = summed_terms(double(network.module), network.x.double(), upstream)
    fused = spikec.fuse(copy.deepcopy(network.module), network.x, T)
    ours = step(fused, network.x, upstream)
    torch.testing.assert_close(ours.y, theirs.y, rtol=1e-4, atol=1e-4)  # of the same spikes: rounding of 4 layers
    found = []
    for name, want in exact.grads.items():
        assert want is not None
        largest, terms = float(want.abs().max()), scales.get(name, 0.0)
        # Batch norms behind a layer may cancel what it is sent, and a single gradient is one draw of noise: this limit
        # is for faults, and `check_many` for how exact gradients are.
        limit = 32 * max(error(theirs, exact, name), error(last, exact, name)) + FAULT * (largest + terms)
        assert error(ours, exact, name) <= limit, name
        if largest > 0.0:
            unit = ULP * (largest + terms)
            found.append(Errors(error(ours, exact, name) / unit, error(last, exact, name) / unit))
    return found


def check_many(draws: list[list[Errors]]) -> None:
    """Enough draws count, and over them gradients are no further from f64 than twice torch's."""
    assert sum(bool(draw) for draw in draws) > 0.4 * len(draws)
    errors = [error for draw in draws for error in draw]
    ours = np.quantile([error.ours for error in errors], QUANTILES)
    theirs = np.quantile([error.torch for error in errors], QUANTILES)
    assert (ours <= 2 * theirs).all(), (ours, theirs)


def test_random_networks() -> None:
    draws: list[list[Errors]] = []

    @settings(max_examples=16, deadline=None, derandomize=True)  # rounding has tails; the slow test draws anew
    @given(networks(norm=Norm.BATCH, neurons=NEURONS), st.integers(0, 2**16))
    def run(network: Network, seed: int) -> None:
        draws.append(check(network, seed))

    run()
    check_many(draws)


NEURONS = {name: SMOOTH[name] for name in ("rectangle", "sigmoid", "triangle", "superspike")}


@pytest.mark.slow
def test_random_networks_with_all_surrogates() -> None:
    draws: list[list[Errors]] = []

    @settings(max_examples=150, deadline=None)
    @given(networks(norm=Norm.BATCH, neurons=SMOOTH, batches=6), st.integers(0, 2**16))
    def run(network: Network, seed: int) -> None:
        draws.append(check(network, seed))

    run()
    check_many(draws)


def with_norms(**options: object) -> nn.Module:
    """A batch norm before neurons, one behind which none stand, one on features, one with neurons on a repeat."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(2, 5, 3, padding=1),
        nn.BatchNorm2d(5, **options),  # type: ignore[arg-type]
        LIF(timesteps=T),
        nn.Conv2d(5, 4, 3),
        nn.BatchNorm2d(4, **options),  # type: ignore[arg-type]
        nn.AvgPool2d(2, stride=1),
        LIF(timesteps=T),
        nn.Flatten(),
        nn.Linear(4 * 3 * 3, 6),
        nn.BatchNorm1d(6, **options),  # type: ignore[arg-type]
        LIF(timesteps=T),
    )


class Images(nn.Module):
    """Shows an image at each step: the first layer runs once, its batch norm counts each value T times."""

    def __init__(self, layers: nn.Module) -> None:
        super().__init__()
        self.layers = layers

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.layers(x.unsqueeze(0).repeat(T, 1, 1, 1, 1).flatten(0, 1))
        return y.unflatten(0, (T, -1)).mean(0)


def freeze_second(module: nn.Module) -> None:
    module.get_submodule("layers.4").eval()


def buffers_agree(first: nn.Module, second: nn.Module) -> None:
    """Means and variances are sums in another order: 1e-6 of values about 1."""
    want, got = dict(first.named_buffers()), dict(second.named_buffers())
    assert want.keys() <= got.keys()  # constants of the graph are buffers too
    assert any(name.endswith("running_var") for name in want)
    for name, value in want.items():
        torch.testing.assert_close(
            got[name], value, rtol=1e-6, atol=1e-6, msg=lambda text, name=name: f"{name}: {text}"
        )


@pytest.mark.parametrize(
    "options",
    [{}, {"momentum": None}, {"momentum": 0.5}, {"momentum": 0.5, "affine": False}],
    ids=["0.1", "average", "0.5", "without parameters"],
)
@pytest.mark.parametrize("prepare", [lambda module: None, freeze_second], ids=["all", "frozen"])
def test_running_statistics(options: dict[str, object], prepare: Callable[[nn.Module], None]) -> None:
    """Over three steps in training with an evaluation between, then in evaluation mode."""
    module = Images(with_norms(**options))
    x = torch.rand(4, 2, 6, 6)
    fused = spikec.fuse(copy.deepcopy(module), x, T)
    generator = torch.Generator().manual_seed(5)
    for mode in (True, False, True, True, False):
        for net in (module, fused):
            net.train(mode)
            prepare(net)
        x = 2 * torch.rand(4, 2, 6, 6, generator=generator)
        assert torch.equal(fused(x), module(x))  # spikes, far enough from their thresholds on this seed
        buffers_agree(module, fused)
    tracked = {name: int(value) for name, value in fused.named_buffers() if name.endswith("tracked")}
    frozen = prepare is freeze_second
    assert tracked == {f"layers.{at}.num_batches_tracked": 0 if frozen and at == 4 else 3 for at in (1, 4, 9)}


def behind_another(*tail: nn.Module) -> nn.Module:
    """A batch norm of a single value behind one of nine."""
    convolution = nn.Conv2d(2, 4, 3)
    return nn.Sequential(
        convolution, nn.BatchNorm2d(4), LIF(timesteps=1), nn.Flatten(), nn.Linear(36, 3), nn.BatchNorm1d(3), *tail
    )


@pytest.mark.parametrize("tail", [[], [LIF(timesteps=1)]], ids=["torch", "stage"])
def test_one_value_per_channel_is_refused(tail: list[nn.Module]) -> None:
    """Before any statistics change; a frozen norm and evaluation mode take a single sample."""
    torch.manual_seed(0)
    fused = spikec.fuse(behind_another(*tail), torch.rand(2, 2, 5, 5), 1)
    before = copy.deepcopy(fused.state_dict())
    with pytest.raises(CompileError, match=r"^5: error: 5: the batch has a single value per channel"):
        fused(torch.rand(1, 2, 5, 5))
    assert all(torch.equal(value, before[name]) for name, value in fused.state_dict().items())
    fused.get_submodule("5").eval()
    fused(torch.rand(1, 2, 5, 5))
    assert int(fused.state_dict()["1.num_batches_tracked"]) == 1
    fused.train()
    fused(torch.rand(2, 2, 5, 5))
    assert all(bool(value.isfinite().all()) for value in fused.state_dict().values())


def test_one_value_per_channel_and_step_is_as_in_torch() -> None:
    """With T steps there are T of them."""
    module = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), LIF(timesteps=T))
    x = torch.rand(T, 3)
    fused = spikec.fuse(copy.deepcopy(module), x, T)
    assert torch.equal(fused(x), module(x))
    buffers_agree(module, fused)
