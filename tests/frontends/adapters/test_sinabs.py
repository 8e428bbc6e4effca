"""sinabs' neurons against the ops that are read from them."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

pytest.importorskip("sinabs", reason="sinabs is not installed; make test-frontends has an environment with it")

from sinabs import activation, layers

from compiler.evaluate import evaluate
from compiler.ir import CompileError
from compiler.ir.ops import Li, Lif
from frontends.torch_import.adapters import Expects, read_neuron
from tests.frontends.adapters import same_spikes
from tests.frontends.adapters.same_spikes import Build, C, N, Setting, T, graph_of, neuron_of
from tests.golden import Golden


def run(layer: nn.Module, x: Tensor) -> Tensor:
    """Samples first, time second; merged for the Squeeze forms."""
    layer.reset_states()
    sequence = x.transpose(0, 1)
    if isinstance(layer, layers.SqueezeMixin):
        merged: Tensor = layer(sequence.flatten(0, 1))
        return merged.unflatten(0, sequence.shape[:2]).transpose(0, 1)
    result: Tensor = layer(sequence)
    return result.transpose(0, 1)


def lif(tau: float | Tensor = 5.0, **options: object) -> Build:
    return lambda: layers.LIF(tau, **{"spike_fn": activation.SingleSpike, **options})


def iaf(**options: object) -> Build:
    return lambda: layers.IAF(**{"spike_fn": activation.SingleSpike, **options})


RESET = activation.MembraneReset()
SETTINGS = {
    "LIF": Setting(build=lif(), run=run, gain=4.0),
    "LIF, reset to 0": Setting(build=lif(reset_fn=RESET), run=run, gain=4.0),
    "LIF, input as it is": Setting(build=lif(norm_input=False), run=run),
    "LIF, reset to 0, input as it is": Setting(build=lif(norm_input=False, reset_fn=RESET), run=run),
    "LIF, threshold 0.5": Setting(build=lif(spike_threshold=torch.tensor(0.5)), run=run, gain=4.0),
    "LIF, trained decay": Setting(build=lif(train_alphas=True), run=run, gain=4.0),
    "LIF, one tau a channel": Setting(build=lif(torch.linspace(1.0, 20.0, C)), run=run, gain=4.0),
    "LIF, subtracts the threshold by name": Setting(
        build=lif(reset_fn=activation.MembraneSubtract(1.0)), run=run, gain=4.0
    ),
    "IAF": Setting(build=iaf(), run=run),
    "IAF, reset to 0": Setting(build=iaf(reset_fn=RESET), run=run),
    "squeezed LIF": Setting(
        build=lambda: layers.LIFSqueeze(num_timesteps=T, tau_mem=5.0, spike_fn=activation.SingleSpike),
        run=run,
        gain=4.0,
    ),
    "squeezed IAF": Setting(
        build=lambda: layers.IAFSqueeze(batch_size=N, spike_fn=activation.SingleSpike, reset_fn=RESET), run=run
    ),
}
LEAKY = {
    "ExpLeak": Setting(build=lambda: layers.ExpLeak(5.0), run=run),
    "ExpLeak, normalised": Setting(build=lambda: layers.ExpLeak(3.0, norm_input=True), run=run),
    "squeezed ExpLeak": Setting(build=lambda: layers.ExpLeakSqueeze(batch_size=N, tau_mem=5.0), run=run),
}


@pytest.mark.parametrize("name", SETTINGS)
def test_spikes_are_the_same(name: str) -> None:
    same_spikes.check_spikes(SETTINGS[name], SETTINGS[name].random_drive())


@pytest.mark.parametrize("name", SETTINGS)
def test_ties_fire_alike(name: str) -> None:
    ties = same_spikes.check_ties(SETTINGS[name])
    assert ties > 0 or SETTINGS[name].gain != 1.0  # a normalised input seldom meets the threshold


@pytest.mark.parametrize("name", [name for name in SETTINGS if "squeezed" not in name])
def test_gradients_are_the_same(name: str) -> None:
    same_spikes.check_gradient(SETTINGS[name])


@given(
    tau=st.floats(0.125, 50.0, width=32),
    threshold=st.floats(0.125, 3.0, width=32),
    normalised=st.booleans(),
    reset=st.sampled_from([RESET, activation.MembraneSubtract()]),
    seed=st.integers(0, 2**16),
)
@settings(max_examples=30)
def test_any_numbers_give_the_same_spikes(
    tau: float, threshold: float, normalised: bool, reset: object, seed: int
) -> None:
    """The op rounds as sinabs does."""
    build = lif(tau, norm_input=normalised, reset_fn=reset, spike_threshold=torch.tensor(threshold))
    x = Setting(build=build, run=run, gain=tau if normalised else 1.0, seed=seed).random_drive()
    got = evaluate(graph_of(neuron_of(build())), x)
    assert torch.equal(got.output, run(build(), x))


@pytest.mark.parametrize("width", [0.25, 0.5, 2.0])
def test_surrogates_are_the_same(width: float) -> None:
    surrogate = activation.SingleExponential(grad_width=width, grad_scale=1.5)
    same_spikes.check_gradient(
        Setting(build=iaf(surrogate_grad_fn=surrogate, spike_threshold=torch.tensor(1.25)), run=run)
    )


@pytest.mark.parametrize("name", LEAKY)
def test_leaky_integrators_are_the_same_bits(name: str) -> None:
    x = LEAKY[name].random_drive()
    assert torch.equal(same_spikes.membranes_of(LEAKY[name], x), run(LEAKY[name].build(), x))
    assert isinstance(neuron_of(LEAKY[name].build()).op, Li)


def test_where_time_stands() -> None:
    read = neuron_of(lif()())
    assert (read.expects, read.samples, read.keeps_state) == (Expects.SAMPLES_FIRST, None, True)
    squeezed = neuron_of(SETTINGS["squeezed IAF"].build())
    assert (squeezed.expects, squeezed.samples) == (Expects.SAMPLES_MERGED, N)
    assert neuron_of(SETTINGS["squeezed LIF"].build()).samples is None
    with pytest.raises(CompileError, match="num_timesteps is 50, the network is imported with timesteps=4"):
        read_neuron("lif", SETTINGS["squeezed LIF"].build(), 4)


def test_only_subtraction_passes_gradients_through_the_reset() -> None:
    for name, detached in (("LIF", False), ("LIF, reset to 0", True)):
        op = neuron_of(SETTINGS[name].build()).op
        assert isinstance(op, Lif)
        assert op.detach_reset is detached


def test_other_layers_are_no_neurons() -> None:
    for layer in (layers.SumPool2d(2), layers.FlattenTime(), layers.Repeat(nn.Linear(2, 2))):
        assert read_neuron("layer", layer, T) is None


def test_texts(golden: Golden) -> None:
    same_spikes.check_texts(SETTINGS | LEAKY, golden, "sinabs.txt")


class Overriding(layers.IAF):
    def forward(self, input_data: Tensor) -> Tensor:
        return super().forward(input_data)


REFUSED: dict[str, Build] = {
    "MultiSpike, the default": lambda: layers.LIF(5.0),
    "MaxSpike": lif(spike_fn=activation.MaxSpike(2)),
    "MembraneReset to another value": lif(reset_fn=activation.MembraneReset(0.5)),
    "MembraneSubtract of another value": lif(reset_fn=activation.MembraneSubtract(0.5)),
    "another reset": lif(reset_fn=lambda spikes, state, threshold: state),
    "min_v_mem": lif(min_v_mem=-1.0),
    "tau_syn": lif(tau_syn=2.0),
    "tau NaN": lif(math.nan),
    "tau per neuron": lif(torch.ones(2, 3, 3)),
    "threshold per channel, whose surrogate differs": lif(spike_threshold=torch.linspace(0.5, 1.0, 3)),
    "recurrent LIF": lambda: layers.LIFRecurrent(5.0, nn.Linear(2, 2)),
    "recurrent IAF": lambda: layers.IAFRecurrent(nn.Linear(2, 2)),
    "ALIF": lambda: layers.ALIF(5.0, 5.0),
    "surrogate Heaviside": lif(surrogate_grad_fn=activation.Heaviside()),
    "surrogate Gaussian": lif(surrogate_grad_fn=activation.Gaussian()),
    "surrogate MultiGaussian": lif(surrogate_grad_fn=activation.MultiGaussian()),
    "surrogate PeriodicExponential": lif(surrogate_grad_fn=activation.PeriodicExponential()),
    "surrogate of one's own": lif(surrogate_grad_fn=lambda v, threshold: v),
    "surrogate without width": lif(surrogate_grad_fn=activation.SingleExponential(grad_width=0.0)),
    "forward redefined": Overriding,
    "made for other steps": lambda: layers.LIFSqueeze(num_timesteps=3, tau_mem=5.0, spike_fn=activation.SingleSpike),
}


def test_refusals(golden: Golden) -> None:
    same_spikes.check_refusals(REFUSED, golden, "refused_sinabs.txt")
