"""snnTorch's neurons against the ops that are read from them."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

pytest.importorskip("snntorch", reason="snnTorch is not installed")

import snntorch as snn
from snntorch import surrogate

from compiler.evaluate import evaluate
from compiler.ir import CompileError, Reset
from compiler.ir.ops import Lif
from frontends.from_torch import from_torch
from frontends.to_torch import to_torch
from frontends.torch_import.adapters import Expects, read_neuron
from tests.frontends.adapters import same_spikes
from tests.frontends.adapters.same_spikes import Build, C, Setting, graph_of, neuron_of
from tests.golden import Golden


def run(node: nn.Module, x: Tensor) -> Tensor:
    """The user's loop over time, the state carried by hand or by the module."""
    node.reset_mem()
    spikes, mem = [], None
    for step in x:
        result = node(step) if node.init_hidden or mem is None else node(step, mem)
        if isinstance(result, tuple):
            spike, mem = result
        else:
            spike = result
        spikes.append(spike)
    return torch.stack(spikes)


def leaky(beta: float | Tensor = 0.9, **options: object) -> Build:
    return lambda: snn.Leaky(beta=beta, **options)


BETAS, THRESHOLDS = torch.linspace(0.0, 1.0, C), torch.linspace(0.25, 2.0, C)
SETTINGS = {
    "subtract": Setting(build=leaky(), run=run),
    "subtract, beta 0.5": Setting(build=leaky(0.5), run=run),
    "subtract, beta 1": Setting(build=leaky(1), run=run),
    "zero": Setting(build=leaky(reset_mechanism="zero"), run=run),
    "zero, no delay": Setting(build=leaky(reset_mechanism="zero", reset_delay=False), run=run),
    "none": Setting(build=leaky(0.5, reset_mechanism="none"), run=run),
    "none, no delay": Setting(build=leaky(0.5, reset_mechanism="none", reset_delay=False), run=run),
    "hidden": Setting(build=leaky(init_hidden=True), run=run),
    "hidden, output": Setting(build=leaky(init_hidden=True, output=True, reset_mechanism="zero"), run=run),
    "threshold 0.5": Setting(build=leaky(threshold=0.5), run=run),
    "one beta a channel": Setting(build=leaky(BETAS), run=run),
    "one beta a channel, one sample": Setting(build=leaky(BETAS.reshape(1, C), reset_mechanism="zero"), run=run),
    "one threshold a channel": Setting(build=leaky(threshold=THRESHOLDS), run=run),
    "learned": Setting(
        build=leaky(BETAS, threshold=THRESHOLDS, learn_beta=True, learn_threshold=True, reset_mechanism="zero"),
        run=run,
    ),
    "beta of one value": Setting(build=leaky(torch.tensor([0.8])), run=run),
    "beta above 1": Setting(build=leaky(1.25), run=run, gain=0.5),
    "beta below 0": Setting(build=leaky(-0.5), run=run),
    "Lapicque": Setting(build=lambda: snn.Lapicque(beta=0.5), run=run, gain=2.0),
    "Lapicque, none": Setting(build=lambda: snn.Lapicque(beta=0.75, reset_mechanism="none"), run=run, gain=3.0),
    "Lapicque, R and C": Setting(
        build=lambda: snn.Lapicque(R=5, C=1.5, time_step=0.3), run=run, gain=4.0, same_bits=False
    ),
}
SURROGATES = {
    "default": None,
    "atan": surrogate.atan(alpha=3.0),
    "fast_sigmoid": surrogate.fast_sigmoid(slope=5),
    "sigmoid": surrogate.sigmoid(slope=4),
    "spike_rate_escape": surrogate.spike_rate_escape(beta=2, slope=3),
}


@pytest.mark.parametrize("name", SETTINGS)
def test_spikes_are_the_same(name: str) -> None:
    same_spikes.check_spikes(SETTINGS[name], SETTINGS[name].random_drive())
    ties = same_spikes.check_ties(SETTINGS[name])
    assert ties > 0 or "Lapicque" in name  # whose numbers are not on the grid


@pytest.mark.parametrize("name", SETTINGS)
def test_gradients_are_the_same(name: str) -> None:
    same_spikes.check_gradient(SETTINGS[name])


@given(
    beta=st.floats(-0.25, 1.25, width=32),
    threshold=st.floats(0.0, 3.0, width=32),
    mechanism=st.sampled_from(["subtract", "zero", "none"]),
    seed=st.integers(0, 2**16),
)
@settings(max_examples=30)
def test_any_numbers_give_the_same_bits(beta: float, threshold: float, mechanism: str, seed: int) -> None:
    """The op rounds as snnTorch does: every membrane that is not reset has the same bits."""
    node = snn.Leaky(beta, threshold=threshold, reset_mechanism=mechanism)
    x = Setting(build=leaky(), run=run, seed=seed).random_drive()
    got = evaluate(graph_of(neuron_of(node)), x, traces=["neuron"])
    mem = node.reset_mem()
    for step, spikes, membrane in zip(x, got.output, got.membranes["neuron"], strict=True):
        spike, mem = node(step, mem)
        assert torch.equal(spike, spikes)
        assert torch.equal(mem, membrane)


@pytest.mark.parametrize("name", SURROGATES)
def test_surrogates_are_the_same(name: str) -> None:
    same_spikes.check_gradient(Setting(build=leaky(0.5, spike_grad=SURROGATES[name]), run=run))


def test_without_a_surrogate_nothing_passes_a_spike() -> None:
    x = torch.rand(same_spikes.T, 2, 3).requires_grad_()
    module = snn.Leaky(0.5, surrogate_disable=True)
    assert not run(module, x).requires_grad
    graph = graph_of(neuron_of(module), channels=3)
    (got,) = torch.autograd.grad(to_torch(graph)(x).sum(), x)
    assert not got.any()


@pytest.mark.parametrize("name", ["subtract", "zero, no delay", "none", "one beta a channel"])
def test_membranes_are_the_same_bits(name: str) -> None:
    setting = SETTINGS[name]
    node, x = setting.build(), setting.random_drive()
    membranes = same_spikes.check_spikes(setting, x)
    node.reset_mem()
    for step, membrane in zip(x, membranes, strict=True):
        spike, mem = node(step)
        assert torch.equal(mem[spike == 0], membrane[spike == 0])


def test_the_reset_is_detached_with_delay_only() -> None:
    """Without delay snnTorch 1.0 subtracts spk * mem in the same step, through which autograd goes."""
    for delay in (True, False):
        op = neuron_of(snn.Leaky(0.5, reset_mechanism="zero", reset_delay=delay)).op
        assert isinstance(op, Lif)
        assert op.detach_reset is delay
    setting = SETTINGS["zero, no delay"]
    x = setting.random_drive().requires_grad_()
    both = (neuron_of(setting.build()), same_spikes.flipped(neuron_of(setting.build())))
    grads = [torch.autograd.grad(to_torch(graph_of(one))(x).sum(), x)[0] for one in both]
    assert (grads[0] - grads[1]).norm() > 0.05 * grads[0].norm()


def test_subtracting_without_delay_is_no_soft_reset() -> None:
    """After 2.5 against a threshold of 1 the neuron stays at 1.5 and never fires again; a soft reset fires twice."""
    node = snn.Leaky(1.0, reset_delay=False)
    x = torch.tensor([2.5, 0.0, 0.0, 0.0]).reshape(4, 1, 1)
    spikes, mem = [], None
    for step in x:
        spike, mem = node(step, mem)
        spikes.append(float(spike))
    assert spikes == [1.0, 0.0, 0.0, 0.0]
    assert float(mem) == 1.5
    with pytest.raises(CompileError, match="must exceed twice the threshold"):
        read_neuron("lif", node, 4)


def test_channels_of_feature_maps() -> None:
    """(C, 1, 1) is one value per channel of feature maps, (C,) would be one per column there."""
    assert neuron_of(snn.Leaky(BETAS.reshape(C, 1, 1))).channel_axes == 3
    assert neuron_of(snn.Leaky(BETAS)).channel_axes == 1
    assert neuron_of(snn.Leaky(0.5)).channel_axes is None
    node, x = snn.Leaky(BETAS[:4].reshape(4, 1, 1)), torch.rand(2, 4, 3, 5)
    assert node(x)[0].shape == x.shape


def test_numbers_for_features_are_no_numbers_for_maps() -> None:
    """As many columns as channels: broadcasting would give one beta to each column."""
    x = torch.rand(2, 4, 3, 4)
    for betas, reason in ((BETAS[:4], "made for 1 axes of features"), (BETAS[:4].reshape(4, 1, 1), "")):
        net = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), snn.Leaky(betas, init_hidden=True))
        if reason:
            with pytest.raises(CompileError, match=reason):
                from_torch(net, x, 3)
        else:
            assert from_torch(net, x, 3).timesteps == 3


def test_calls() -> None:
    x, mem = torch.rand(2, 3), torch.rand(2, 3)
    step = neuron_of(snn.Leaky(0.5)).step
    assert step is not None
    assert step.unpack((x,), {}) == (x, None)
    assert step.unpack((x, mem), {})[1] is mem
    assert step.unpack((), {"input_": x, "mem": mem})[0] is x
    empty = step.unpack((x, torch.zeros(0)), {})[1]
    assert empty is not None
    assert torch.equal(empty, torch.zeros(2, 3))
    assert step.pack(x, mem) == (x, mem)
    hidden = neuron_of(snn.Leaky(0.5, init_hidden=True)).step
    assert hidden is not None
    assert hidden.pack(x, mem) is x
    with pytest.raises(CompileError, match="mem is handed in, though init_hidden=True"):
        hidden.unpack((x, mem), {})
    shown = neuron_of(snn.Leaky(0.5, init_hidden=True, output=True)).step
    assert shown is not None
    assert shown.pack(x, mem) == (x, mem)


def test_it_keeps_its_state_and_takes_steps() -> None:
    read = neuron_of(snn.Leaky(0.5))
    assert read.expects is Expects.STEP
    assert read.keeps_state
    assert isinstance(read.op, Lif)
    assert (read.op.reset, read.op.reset_delay) == (Reset.SOFT, True)


def test_other_modules_are_no_neurons() -> None:
    assert read_neuron("bn", snn.BatchNormTT1d(3, 4), 4) is None


def test_texts(golden: Golden) -> None:
    same_spikes.check_texts(SETTINGS, golden, "snntorch.txt")


class Overriding(snn.Leaky):
    def fire(self, mem: Tensor) -> Tensor:
        return super().fire(mem)


def other_mechanism() -> nn.Module:
    node = snn.Leaky(0.5)
    node.reset_mechanism = "zero"
    return node


def own_function() -> nn.Module:
    node = snn.Leaky(0.5)
    node.state_function = node._base_zero
    return node


REFUSED: dict[str, Build] = {
    "subtract without delay": leaky(reset_delay=False),
    "inhibition": leaky(inhibition=True),
    "state_quant": leaky(state_quant=torch.round),
    "graded spikes": leaky(graded_spikes_factor=0.5),
    "negative threshold": leaky(threshold=-1.0),
    "beta NaN": leaky(math.nan),
    "beta per neuron": leaky(torch.rand(2, 3, 3)),
    "beta of another layout": leaky(torch.rand(4, 1, 1), threshold=torch.rand(4)),
    "beta float64": leaky(torch.rand(4, dtype=torch.float64)),
    "beta of one value in f64": leaky(torch.rand(1, dtype=torch.float64)),
    "fire redefined": lambda: Overriding(0.5),
    "mechanism changed": other_mechanism,
    "state function changed": own_function,
    "surrogate triangular": leaky(spike_grad=surrogate.triangular()),
    "surrogate straight_through_estimator": leaky(spike_grad=surrogate.straight_through_estimator()),
    "surrogate heaviside": leaky(spike_grad=surrogate.heaviside()),
    "surrogate SSO": leaky(spike_grad=surrogate.SSO()),
    "surrogate LSO": leaky(spike_grad=surrogate.LSO()),
    "surrogate SFS": leaky(spike_grad=surrogate.SFS()),
    "surrogate custom": leaky(spike_grad=surrogate.custom_surrogate(lambda x, g, s: g)),
    "surrogate lambda": leaky(spike_grad=torch.relu),
    "surrogate atan 0": leaky(spike_grad=surrogate.atan(0.0)),
    "Synaptic": lambda: snn.Synaptic(0.5, 0.5),
    "Alpha": lambda: snn.Alpha(0.8, 0.5),
    "RLeaky": lambda: snn.RLeaky(0.5, linear_features=3),
    "RSynaptic": lambda: snn.RSynaptic(0.5, 0.5, linear_features=3),
    "SLSTM": lambda: snn.SLSTM(3, 3),
    "Lapicque zero": lambda: snn.Lapicque(beta=0.5, reset_mechanism="zero"),
    "Lapicque, time_step above R * C": lambda: snn.Lapicque(R=1, C=1, time_step=2),
}


@pytest.mark.filterwarnings("ignore:Inhibition is an unstable feature")
def test_refusals(golden: Golden) -> None:
    same_spikes.check_refusals(REFUSED, golden, "refused_snntorch.txt")
