"""Whole networks on spike kernels: what they compute on dense ones, and what they keep and choose."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import runtime.fused.module
import spikec
from compiler.fused.spikes import eligible
from compiler.fused.spikes.costs import WAYS, Cost, LayerCosts, Pass, SpikeKernels, Way
from compiler.fused.spikes.counts import Planes
from compiler.ir import Surrogate, SurrogateKind
from frontends.nn import LIF
from runtime.fused.module import FusedModule
from runtime.fused.ops import stage
from runtime.fused.spikes import choices
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


def averages(window: int = 2) -> nn.Module:
    """Averages over whole and partial windows and over pairs, read in groups and as features."""
    return nn.Sequential(
        nn.Conv2d(2, 64, 3, padding=1),
        LIF(timesteps=T),
        nn.AvgPool2d(window, ceil_mode=True),
        nn.Conv2d(64, 64, 3, padding=1, groups=2),
        LIF(timesteps=T),
        nn.AvgPool2d((1, 2)),
        nn.Conv2d(64, 40, (3, 1), bias=False),
        LIF(timesteps=T, surrogate=Surrogate(kind=SurrogateKind.ATAN)),
        nn.AvgPool2d(2, ceil_mode=True),
        nn.Flatten(),
        nn.Linear(40, 3),
        nn.Unflatten(0, (T, -1)),
    )


def uneven_maps() -> Tensor:
    """Of numbers on a coarse grid."""
    return (32 * torch.rand(T * SAMPLES, 2, 7, 9, generator=torch.Generator().manual_seed(3))).round() / 8


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


def split_planes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where measurements choose, look-ups take one plane and events the others, of layers of any size."""
    costs = LayerCosts({(of, way): Cost(((0.0, 1.0),)) for of in Pass for way in WAYS[of]})
    monkeypatch.setattr(choices, "costs_of", lambda _layer, _of: costs)
    monkeypatch.setattr(choices, "deal", lambda _costs, _of, shares, _ways: Planes(1, len(shares)))
    monkeypatch.setattr(choices, "SMALLEST", 0)
    monkeypatch.setattr(eligible, "OF_A_SAMPLE", 0)


@pytest.mark.parametrize("kernels", [*FORCED, SpikeKernels.MEASURED], ids=str)
def test_averages_are_read_by_their_planes(kernels: SpikeKernels, monkeypatch: pytest.MonkeyPatch) -> None:
    split_planes(monkeypatch)
    torch.manual_seed(5)
    module, x = dyadic(averages()), uneven_maps()
    for parameter in module.parameters():
        parameter.data *= 4  # some spikes in every layer
    want = gradients(spikec.fuse(copy.deepcopy(module), x, T, spike_kernels="off"), x)
    fused = spikec.fuse(copy.deepcopy(module), x, T, spike_kernels=kernels)
    got = gradients(fused, x)
    assert torch.equal(got["y"], want["y"])
    assert float(want["y"].std()) > 0
    for name, value in want.items():
        torch.testing.assert_close(
            got[name], value, rtol=1e-4, atol=1e-5, msg=lambda text, name=name: f"{name}: {text}"
        )
    found = choices_of(fused._arena)
    assert {len(choice.planes) for (_, _, of), choice in found.items() if of is Pass.FORWARD} == {2, 3}
    assert all(choice.planes[-1] > 0 for (_, _, of), choice in found.items() if of is not Pass.INPUT_GRADIENT)
    ways = {choice.way for (_, _, of), choice in found.items() if of is not Pass.INPUT_GRADIENT}
    wanted = {SpikeKernels.LOOKUP: Way.LOOKUP, SpikeKernels.EVENTS: Way.EVENTS, SpikeKernels.MEASURED: Way.BOTH}
    assert ways == {wanted[kernels]}
    assert not any("again" in stage for stage, _, _ in found)  # their results are kept
    assert "% of counts' bits" in fused.explain()


def test_shapes_without_values_are_those_of_planes_and_masks(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(5)
    x = uneven_maps()
    seen: list[tuple[object, ...]] = []

    def recorded(*given: object) -> object:
        seen.append(given)
        return stage(*given)

    fused = spikec.fuse(averages(), x, T, spike_kernels="look-up")
    monkeypatch.setattr(runtime.fused.module, "stage_op", recorded)
    fused(x)
    assert seen
    for given in seen:
        torch.library.opcheck(stage, given, test_utils="test_faketensor", atol=1e-5, rtol=1e-5)


def test_averages_of_ninths_stay_with_the_dense_kernels() -> None:
    torch.manual_seed(5)
    module, x = averages(window=3), uneven_maps()
    fused = spikec.fuse(module, x, T, spike_kernels="look-up")
    gradients(fused, x)
    stages = {stage.removesuffix(", again") for stage, _, _ in choices_of(fused._arena)}
    whole = spikec.fuse(averages(), x, T, spike_kernels="look-up")
    gradients(whole, x)
    assert len(stages) == len({stage.removesuffix(", again") for stage, _, _ in choices_of(whole._arena)}) - 1


def test_counts_take_three_bits_of_an_average() -> None:
    """And one for the mask; of pairs it is two bits and the mask, and there is none where all windows are open."""
    torch.manual_seed(5)
    x = uneven_maps()
    off, on = (
        kept_bytes(spikec.fuse(averages(), x, T, spike_kernels=name, recompute=False), x) for name in ("off", "events")
    )
    words = T * SAMPLES * (4 * 5 * 2 * (3 + 1) + 4 * 2 * 2 * (2 + 1) + 1 * 1 * 2 * 3)
    assert on - off == words * 4


@pytest.mark.parametrize("kernels", FORCED, ids=str)
def test_results_that_are_not_kept_come_back_bit_for_bit(kernels: SpikeKernels) -> None:
    torch.manual_seed(1)
    module, x = chain(), batch()
    kept = spikec.fuse(copy.deepcopy(module), x, T, spike_kernels=kernels, recompute=False)
    again = spikec.fuse(copy.deepcopy(module), x, T, spike_kernels=kernels)
    want, got = gradients(kept, x), gradients(again, x)
    assert all(torch.equal(got[name], value) for name, value in want.items())
    assert kept_bytes(again) < kept_bytes(kept)
    assert any("again" in stage for stage, _, _ in choices_of(again._arena))


def kept_bytes(module: FusedModule, x: Tensor | None = None) -> int:
    """What autograd keeps of a pass beside parameters."""
    own = {parameter.data_ptr() for parameter in (*module.parameters(), *module.buffers())}
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        if tensor.data_ptr() not in own:
            kept[tensor.data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        module(batch() if x is None else x)
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


@pytest.mark.parametrize("recompute", [False, True], ids=["kept", "again"])
@pytest.mark.parametrize("make", [Branches, averages], ids=["branches", "averages"])
def test_plans_say_what_autograd_keeps(make: Callable[[], nn.Module], recompute: bool) -> None:
    torch.manual_seed(1)
    x = batch() if make is Branches else uneven_maps()
    fused = spikec.fuse(make(), x, T, spike_kernels="events", recompute=recompute)
    told = re.search(r"keeps ([0-9,]+) bytes for each sample", fused.describe())
    assert told is not None
    assert kept_bytes(fused, x) == int(told[1].replace(",", "")) * SAMPLES


def test_small_layers_stay_with_the_dense_kernels() -> None:
    module = spikec.fuse(chain(), batch(), T)
    gradients(module, batch())
    assert not choices_of(module._arena)


@pytest.mark.parametrize("kernels", [SpikeKernels.OFF, *FORCED], ids=str)
def test_results_may_be_changed_in_place(kernels: SpikeKernels) -> None:
    module = nn.Sequential(nn.Conv2d(2, 8, 3), LIF(timesteps=T), nn.Conv2d(8, 4, 3))
    spikec.fuse(module, batch(), T, spike_kernels=kernels)(batch()).div_(T).sum().backward()


@pytest.mark.parametrize("kernels", FORCED, ids=str)
def test_autocast_around_the_backward_pass_changes_nothing(kernels: SpikeKernels) -> None:
    """Groups of 10 channels, which no spike kernel takes, so that a dense one computes the result again."""
    torch.manual_seed(1)
    module = nn.Sequential(
        nn.Conv2d(2, 20, 3), LIF(timesteps=T), nn.Conv2d(20, 8, 3, groups=2), LIF(timesteps=T), nn.Conv2d(8, 4, 1)
    )
    fused, x = spikec.fuse(module, batch(), T, spike_kernels=kernels), batch().requires_grad_()
    (want,) = torch.autograd.grad(fused(x).sum(), x)
    y = fused(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        (got,) = torch.autograd.grad(y.sum(), x)
    assert torch.equal(got, want)


@pytest.mark.parametrize("kernels", FORCED, ids=str)
def test_strided_biases_and_another_default_type(kernels: SpikeKernels) -> None:
    module = Branches()
    module.left.bias = nn.Parameter(torch.randn(66)[::2])
    want = gradients(spikec.fuse(copy.deepcopy(module), batch(), T, spike_kernels="off"), batch())
    fused, x = spikec.fuse(module, batch(), T, spike_kernels=kernels), batch()
    torch.set_default_dtype(torch.float64)
    try:
        got = gradients(fused, x)
    finally:
        torch.set_default_dtype(torch.float32)
    torch.testing.assert_close(got["left.bias"], want["left.bias"], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kernels", FORCED, ids=str)
def test_a_weight_that_is_no_number_is_seen_without_spikes(kernels: SpikeKernels) -> None:
    module = nn.Sequential(nn.Conv2d(2, 8, 3), LIF(timesteps=T), nn.Conv2d(8, 4, 3))
    fused = spikec.fuse(module, batch(), T, spike_kernels=kernels)
    with torch.no_grad():
        module[0].bias[3] = -100.0  # its spikes never come
        module[2].weight[1, 3] = torch.nan
    assert bool(fused(batch())[:, 1].isnan().all())


def test_an_unknown_choice_is_refused() -> None:
    with pytest.raises(spikec.CompileError, match="'fast' is no choice of spike kernels"):
        spikec.fuse(chain(), batch(), T, spike_kernels="fast")
