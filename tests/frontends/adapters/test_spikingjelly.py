"""SpikingJelly's neurons against the ops that are read from them."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

pytest.importorskip("spikingjelly", reason="SpikingJelly is not installed")

from spikingjelly.activation_based import functional, neuron, surrogate

from compiler.evaluate import evaluate
from compiler.ir import CompileError
from frontends.to_torch import to_torch
from frontends.torch_import.adapters import Expects
from tests.frontends.adapters import same_spikes
from tests.frontends.adapters.same_spikes import Build, Setting, T, graph_of, neuron_of
from tests.golden import Golden


def run(node: nn.Module, x: Tensor) -> Tensor:
    """The whole sequence, or step by step."""
    functional.reset_net(node)
    spikes: Tensor = node(x) if node.step_mode == "m" else torch.stack([node(step) for step in x])
    functional.reset_net(node)
    return spikes


def lif(tau: float, **options: object) -> Build:
    return lambda: neuron.LIFNode(tau, **{"step_mode": "m", **options})


def plif(w: float | Tensor, **options: object) -> Build:
    def build() -> nn.Module:
        node = neuron.ParametricLIFNode(step_mode="m", **options)
        node.w.data = torch.as_tensor(w)
        return node

    return build


SETTINGS = {
    "LIF, decay_input off, v_reset 0": Setting(build=lif(2.0, decay_input=False), run=run),
    "LIF, decay_input off, tau 4": Setting(build=lif(4.0, decay_input=False), run=run),
    "LIF, decay_input on": Setting(build=lif(2.0), run=run, gain=2.0, same_bits=False),
    "LIF, decay_input on, tau 3.3": Setting(build=lif(3.3), run=run, gain=3.3, same_bits=False),
    "LIF, soft": Setting(build=lif(2.0, decay_input=False, v_reset=None), run=run),
    "LIF, soft, decay_input on": Setting(build=lif(2.0, v_reset=None), run=run, gain=2.0, same_bits=False),
    "LIF, v_reset -0.25": Setting(build=lif(2.0, decay_input=False, v_reset=-0.25), run=run, same_bits=False),
    "LIF, v_reset -0.25, decay_input on": Setting(build=lif(2.0, v_reset=-0.25), run=run, gain=2.0, same_bits=False),
    "LIF, v_reset 0.25": Setting(build=lif(2.0, decay_input=False, v_reset=0.25), run=run, same_bits=False),
    "LIF, detached": Setting(build=lif(2.0, decay_input=False, detach_reset=True), run=run),
    "LIF, threshold 0.5": Setting(build=lif(2.0, decay_input=False, v_threshold=0.5), run=run),
    "LIF, step by step": Setting(build=lif(2.0, decay_input=False, step_mode="s"), run=run),
    "LIF, step by step, stored": Setting(
        build=lif(2.0, decay_input=False, step_mode="s", store_v_seq=True, v_reset=None), run=run
    ),
    "IF": Setting(build=lambda: neuron.IFNode(step_mode="m"), run=run),
    "IF, soft": Setting(build=lambda: neuron.IFNode(v_reset=None, step_mode="m"), run=run),
    "IF, soft, detached": Setting(build=lambda: neuron.IFNode(v_reset=None, detach_reset=True, step_mode="m"), run=run),
    "IF, v_reset -0.25": Setting(build=lambda: neuron.IFNode(v_reset=-0.25, step_mode="m"), run=run),
    "half threshold IF": Setting(build=lambda: neuron.HalfThresholdIFNode(step_mode="m"), run=run),
    "PLIF": Setting(build=plif(0.0), run=run, gain=2.0, same_bits=False),
    "PLIF, decay_input off": Setting(build=plif(0.0, decay_input=False), run=run),
    "PLIF, learned": Setting(build=plif(-0.7, decay_input=False), run=run, same_bits=False),
    "PLIF, soft, learned": Setting(build=plif(0.4, v_reset=None), run=run, gain=2.0, same_bits=False),
    "PLIF, v_reset -0.25": Setting(
        build=plif(-0.7, decay_input=False, v_reset=-0.25, detach_reset=True), run=run, same_bits=False
    ),
    "PLIF, one w a channel": Setting(
        build=plif(torch.linspace(-1.0, 1.0, same_spikes.C)), run=run, gain=2.0, same_bits=False
    ),
    "simple IF": Setting(build=lambda: neuron.SimpleIFNode(step_mode="m"), run=run),
    "simple LIF": Setting(
        build=lambda: neuron.SimpleLIFNode(2.0, False, v_reset=0.5, step_mode="m"), run=run, same_bits=False
    ),
}
SURROGATES = {
    "ATan": surrogate.ATan(2.5),
    "Sigmoid": surrogate.Sigmoid(3.0),
    "SoftSign": surrogate.SoftSign(1.5),
    "SuperSpike": surrogate.SuperSpike(1.5),
    "PiecewiseQuadratic": surrogate.PiecewiseQuadratic(1.5),
    "PiecewiseExp": surrogate.PiecewiseExp(2.0),
    "Rect": surrogate.Rect(0.75),
    "QPseudoSpike": surrogate.QPseudoSpike(2.0),
    "PiecewiseLeakyReLU": surrogate.PiecewiseLeakyReLU(w=0.8, c=0.0),
}


@pytest.mark.parametrize("name", SETTINGS)
def test_spikes_are_the_same(name: str) -> None:
    same_spikes.check_spikes(SETTINGS[name], SETTINGS[name].random_drive())
    ties = same_spikes.check_ties(SETTINGS[name])
    assert ties > 0 or name.startswith("PLIF, ")  # whose numbers are not on the grid


@pytest.mark.parametrize("name", [name for name, setting in SETTINGS.items() if "stored" not in name])
def test_gradients_are_the_same(name: str) -> None:
    same_spikes.check_gradient(SETTINGS[name])


@pytest.mark.parametrize("name", SURROGATES)
def test_surrogates_are_the_same(name: str) -> None:
    same_spikes.check_gradient(Setting(build=lif(2.0, decay_input=False, surrogate_function=SURROGATES[name]), run=run))


@pytest.mark.parametrize("name", [name for name, setting in SETTINGS.items() if setting.same_bits and "stored" in name])
def test_stored_membranes_are_the_same_bits(name: str) -> None:
    """v_seq holds the potentials after the reset, which the op has where it does not fire."""
    setting = SETTINGS[name]
    node, x = setting.build(), setting.random_drive()
    spikes = torch.stack([node(step) for step in x])
    membranes = same_spikes.check_spikes(setting, x)
    assert torch.equal(membranes[spikes == 0], node.v_seq[spikes == 0])


@given(
    exponent=st.integers(0, 6),
    v_reset=st.sampled_from([None, 0.0]),
    threshold=st.floats(0.125, 3.0, width=32),
    seed=st.integers(0, 2**16),
)
@settings(max_examples=25)
def test_powers_of_two_give_the_same_bits(exponent: int, v_reset: float | None, threshold: float, seed: int) -> None:
    """v - v / tau rounds once, as (1 - 1 / tau) * v does; without decay_input nothing else differs."""
    build = integrate(v_reset, threshold)
    if exponent:
        build = lif(2.0**exponent, decay_input=False, v_reset=v_reset, v_threshold=threshold)
    x = Setting(build=build, run=run, seed=seed).random_drive()
    node = build()
    got = evaluate(graph_of(neuron_of(build())), x, traces=["neuron"])
    node.store_v_seq = True
    spikes = node(x)
    assert torch.equal(got.output, spikes)
    assert torch.equal(got.membranes["neuron"][spikes == 0], node.v_seq[spikes == 0])


def integrate(v_reset: float | None, threshold: float) -> Build:
    return lambda: neuron.IFNode(v_threshold=threshold, v_reset=v_reset, step_mode="m")


@given(st.floats(1.0, 40.0), st.booleans(), st.sampled_from([None, 0.0, -0.3]), st.integers(0, 2**16))
@settings(max_examples=25)
def test_a_neuron_first_differs_only_within_rounding_of_the_threshold(
    tau: float, decay_input: bool, v_reset: float | None, seed: int
) -> None:
    """Until its spikes differ, a neuron's two membranes differ by rounding only.

    With |x|, |v| <= M either side rounds at most 5 times a step at magnitudes of at most 2 M, the two factors once
    each: 12 M 2^-23 a step, and what was wrong before decays: at most T times that.
    """
    setting = Setting(
        build=lif(max(tau, math.nextafter(1.0, 2.0)), decay_input=decay_input, v_reset=v_reset, v_threshold=1.0),
        run=run,
        gain=tau if decay_input else 1.0,
        seed=seed,
    )
    x = setting.random_drive()
    largest = max(1.0, float(x.abs().max())) * (1.0 if decay_input else min(tau, T))
    same_spikes.check_rounding(setting, x, 12 * largest * T * 2.0**-23)


def test_the_detached_reset_is_told_from_the_other() -> None:
    setting = SETTINGS["LIF, detached"]
    x = setting.random_drive().requires_grad_()
    both = (neuron_of(setting.build()), same_spikes.flipped(neuron_of(setting.build())))
    grads = [torch.autograd.grad(to_torch(graph_of(one))(x).sum(), x)[0] for one in both]
    assert (grads[0] - grads[1]).norm() > 0.05 * grads[0].norm()


def test_steps_and_sequences() -> None:
    for mode, expects in (("s", Expects.STEP), ("m", Expects.SEPARATE)):
        read = neuron_of(neuron.IFNode(step_mode=mode))
        assert read.expects is expects
        assert read.keeps_state
        assert (read.step is not None) == (mode == "s")


def test_a_step_takes_one_tensor() -> None:
    step, x = neuron_of(neuron.IFNode()).step, torch.zeros(2, 3)
    assert step is not None
    assert step.unpack((x,), {}) == (x, None)
    assert step.pack(x, x) is x
    with pytest.raises(CompileError, match="is called with 2 arguments, takes x"):
        step.unpack((x, x), {})


def test_texts(golden: Golden) -> None:
    same_spikes.check_texts(SETTINGS, golden, "spikingjelly.txt")


class Overriding(neuron.IFNode):
    def single_step_functional_forward(self, inputs: object, states: object, **options: object) -> object:
        return super().single_step_functional_forward(inputs, states, **options)


class Renamed(neuron.IFNode):
    """Only made differently."""

    def __init__(self) -> None:
        super().__init__(v_threshold=0.75, step_mode="m")


def forwarding() -> nn.Module:
    node = neuron.IFNode()
    node.forward = lambda x: x
    return node


def with_value(name: str, value: object) -> Build:
    def build() -> nn.Module:
        node = neuron.LIFNode(step_mode="m")
        setattr(node, name, value)
        return node

    return build


def fired(function: object) -> Build:
    return lambda: neuron.IFNode(surrogate_function=function, step_mode="m")


REFUSED: dict[str, Build] = {
    "another neuron": lambda: neuron.IzhikevichNode(step_mode="m"),
    "a descendant of LIFNode": lambda: neuron.LIAFNode(torch.relu, False, step_mode="m"),
    "gated LIF": lambda: neuron.KLIFNode(step_mode="m"),
    "forward redefined": Overriding,
    "forward of the instance": forwarding,
    "tau below 1": with_value("tau", 0.5),
    "tau NaN": with_value("tau", math.nan),
    "threshold per neuron": with_value("v_threshold", torch.ones(2, 3)),
    "threshold is a text": with_value("v_threshold", "1"),
    "reduced precision": with_value("_neuron_precision", (torch.float16, "fp16", "fp16")),
    "surrogate Erf": fired(surrogate.Erf()),
    "surrogate S2NN": fired(surrogate.S2NN()),
    "surrogate LeakyKReLU": fired(surrogate.LeakyKReLU()),
    "surrogate PiecewiseLeakyReLU with slope": fired(surrogate.PiecewiseLeakyReLU()),
    "surrogate QPseudoSpike 3": fired(surrogate.QPseudoSpike(3.0)),
    "surrogate NonzeroSignLogAbs": fired(surrogate.NonzeroSignLogAbs()),
    "surrogate FakeNumericalGradient": fired(surrogate.FakeNumericalGradient()),
    "surrogate LogTailedReLU": fired(surrogate.LogTailedReLU()),
    "surrogate DeterministicPass": fired(surrogate.DeterministicPass()),
    "surrogate PoissonPass": fired(surrogate.PoissonPass()),
    "surrogate SquarewaveFourierSeries": fired(surrogate.SquarewaveFourierSeries()),
    "surrogate ATan 0": fired(surrogate.ATan(0.0)),
    "surrogate without spikes": fired(surrogate.ATan(spiking=False)),
}


def test_refusals(golden: Golden) -> None:
    same_spikes.check_refusals(REFUSED, golden, "refused_spikingjelly.txt")


def test_a_subclass_that_computes_the_same_is_read() -> None:
    op = neuron_of(Renamed()).op
    assert op.threshold == 0.75  # type: ignore[union-attr]
