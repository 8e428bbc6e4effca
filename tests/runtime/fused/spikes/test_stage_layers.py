"""Whole networks on spike kernels: what they compute on dense ones, and what they keep and choose."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

import spikec
from compiler.fused.spikes.costs import Pass, SpikeKernels, Way
from compiler.ir import Surrogate, SurrogateKind
from frontends.nn import LIF
from runtime.fused.module import FusedModule
from runtime.fused.spikes.choices import choices_of

T, SAMPLES = 4, 3
FORCED = (SpikeKernels.LOOKUP, SpikeKernels.EVENTS)


class Branches(nn.Module):
    """Spikes that two layers and a residual sum read."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.lif1 = nn.Conv2d(2, 33, 3, padding=1), LIF(timesteps=T)
        self.left, self.right = nn.Conv2d(33, 33, 3, padding=1), nn.Conv2d(33, 33, 1)
        self.lif2 = LIF(timesteps=T)

    def forward(self, x: Tensor) -> Tensor:
        spikes = self.lif1(self.first(x))
        return self.lif2(self.left(spikes) + self.right(spikes) + spikes)


def chain() -> nn.Module:
    """Batch norms, a stride, groups, a maximum and an average in windows, a flattened pixel, linear layers."""
    return nn.Sequential(
        nn.Conv2d(2, 12, 3, padding=1),
        nn.BatchNorm2d(12),
        LIF(timesteps=T),
        nn.Conv2d(12, 40, 3, padding=1, stride=2),
        nn.BatchNorm2d(40),
        LIF(timesteps=T),
        nn.MaxPool2d(2),
        nn.Conv2d(40, 8, 3, padding=1, groups=4),
        LIF(timesteps=T, surrogate=Surrogate(kind=SurrogateKind.ATAN)),
        nn.AvgPool2d(2),
        nn.Conv2d(8, 6, 1),
        LIF(timesteps=T),
        nn.Flatten(),
        nn.Linear(6, 10),
        LIF(timesteps=T),
        nn.Linear(10, 3),
        nn.Unflatten(0, (T, -1)),
    )


def batch(seed: int = 0, samples: int = SAMPLES) -> Tensor:
    return 2 * torch.rand(T * samples, 2, 8, 8, generator=torch.Generator().manual_seed(seed))


def dyadic(module: nn.Module) -> nn.Module:
    """With weights on a coarse grid, so that sums are exact in any order."""
    for parameter in module.parameters():
        parameter.data = (parameter.data * 32).round() / 32
    return module


def gradients(module: nn.Module, x: Tensor) -> dict[str, Tensor]:
    """Of the result and all parameters."""
    given = x.clone().requires_grad_()
    result = module(given)
    weights = torch.arange(result.numel()).view(result.shape) % 5 - 2
    (result * weights).sum().backward()
    found = {name: parameter.grad for name, parameter in module.named_parameters()}
    return {"y": result.detach(), "x": given.grad, **{name: grad for name, grad in found.items() if grad is not None}}


@pytest.mark.parametrize("kernels", FORCED, ids=str)
@pytest.mark.parametrize("make", [chain, Branches], ids=["chain", "branches"])
def test_results_and_gradients_are_those_of_dense_kernels(make: type[nn.Module], kernels: SpikeKernels) -> None:
    torch.manual_seed(1)
    module = make()
    x = batch()
    want = gradients(spikec.fuse(copy.deepcopy(module), x, T, spike_kernels="off"), x)
    got = gradients(spikec.fuse(copy.deepcopy(module), x, T, spike_kernels=kernels), x)
    assert want.keys() == got.keys()
    assert float(want["y"].count_nonzero()) > 0
    for name, value in want.items():
        torch.testing.assert_close(
            got[name], value, rtol=1e-4, atol=1e-5, msg=lambda text, name=name: f"{name}: {text}"
        )


@pytest.mark.parametrize("kernels", FORCED, ids=str)
def test_of_exact_sums_no_spike_differs(kernels: SpikeKernels) -> None:
    torch.manual_seed(2)
    module = dyadic(Branches())
    x = (batch() * 16).round() / 16
    want = spikec.fuse(copy.deepcopy(module), x, T, spike_kernels="off")(x)
    assert torch.equal(spikec.fuse(copy.deepcopy(module), x, T, spike_kernels=kernels)(x), want)


def test_forced_ways_are_taken_and_recorded() -> None:
    torch.manual_seed(1)
    module = spikec.fuse(chain(), batch(), T, spike_kernels="look-up")
    gradients(module, batch())
    ways = {(place, of): choice.way for (_, place, of), choice in choices_of(module._arena).items()}
    assert {way for (_, of), way in ways.items() if of is Pass.FORWARD} == {Way.LOOKUP}
    recorded = choices_of(module._arena)
    assert Way.MASKED in {choice.way for (_, _, of), choice in recorded.items() if of is Pass.INPUT_GRADIENT}
    shares = [choice.shares[Way.EVENTS] for (_, _, of), choice in recorded.items() if of is Pass.FORWARD]
    assert 0 < max(shares) < 1


def kept_bytes(module: FusedModule) -> int:
    """What autograd keeps of a pass beside parameters."""
    own = {parameter.data_ptr() for parameter in (*module.parameters(), *module.buffers())}
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        if tensor.data_ptr() not in own:
            kept[tensor.data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        module(batch())
    return sum(kept.values())


def test_bits_take_a_sixteenth_of_the_spikes_beside_the_layers_results() -> None:
    """Words and masks of spikes that 33 channels leave in two words each."""
    torch.manual_seed(1)
    module = Branches()
    off, on = (
        kept_bytes(spikec.fuse(copy.deepcopy(module), batch(), T, spike_kernels=name)) for name in ("off", "events")
    )
    pixels = T * SAMPLES * 8 * 8
    assert on - off == pixels * 2 * 2 * 4


def test_small_layers_stay_with_the_dense_kernels() -> None:
    module = spikec.fuse(chain(), batch(), T)
    gradients(module, batch())
    assert not choices_of(module._arena)


def test_an_unknown_choice_is_refused() -> None:
    with pytest.raises(spikec.CompileError, match="'fast' is no choice of spike kernels"):
        spikec.fuse(chain(), batch(), T, spike_kernels="fast")
