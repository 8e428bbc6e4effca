"""norse's neurons against the ops that are read from them."""

from __future__ import annotations

from typing import NamedTuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

pytest.importorskip("norse", reason="norse is not installed")

import norse.torch as norse
from norse.torch.functional.reset import reset_subtract
from norse.torch.module.snn import SNNCell

from compiler.ir import CompileError
from compiler.ir.ops import Li, Lif
from frontends.to_torch import to_torch
from frontends.torch_import.adapters import Expects, read_neuron
from tests.frontends.adapters import same_spikes
from tests.frontends.adapters.same_spikes import Build, C, Setting, T, graph_of, neuron_of
from tests.golden import Golden


def run(cell: nn.Module, x: Tensor) -> Tensor:
    """Step by step with the state carried, or the whole sequence."""
    if isinstance(cell, norse.IAF | norse.LI):
        result: Tensor = cell(x)[0]
        return result
    steps, state = [], None
    for step in x:
        out, state = cell(step, state)
        steps.append(out)
    return torch.stack(steps)


def box(dt: float = 0.001, **parameters: object) -> Build:
    def build() -> nn.Module:
        numbers = {
            name: torch.as_tensor(value) if isinstance(value, float) else value for name, value in parameters.items()
        }
        return norse.LIFBoxCell(norse.LIFBoxParameters(**numbers), dt=dt)

    return build


LEAKS = torch.linspace(50.0, 900.0, C)
HALF = {"tau_mem_inv": 0.5, "dt": 1.0}
SETTINGS = {
    "reset_value": Setting(build=box(), run=run, gain=10.0, same_bits=False),
    "reset_subtract": Setting(build=box(reset_method=reset_subtract), run=run, gain=10.0, same_bits=False),
    "reset_value, half": Setting(build=box(**HALF), run=run, gain=2.0, same_bits=False),
    "reset_subtract, half": Setting(build=box(**HALF, reset_method=reset_subtract), run=run, gain=2.0, same_bits=False),
    "v_leak": Setting(build=box(**HALF, v_leak=0.25), run=run, gain=2.0, same_bits=False),
    "v_reset": Setting(build=box(**HALF, v_reset=-0.25), run=run, gain=2.0, same_bits=False),
    "v_th": Setting(build=box(**HALF, v_th=0.5), run=run, gain=2.0, same_bits=False),
    "one leak a channel": Setting(build=box(tau_mem_inv=LEAKS), run=run, gain=3.0, same_bits=False),
    "IAF step": Setting(build=norse.IAFCell, run=run),
    "IAF, v_reset": Setting(build=lambda: norse.IAFCell(norse.IAFParameters(v_reset=torch.tensor(-0.5))), run=run),
    "IAF": Setting(build=norse.IAF, run=run),
    "LIF whose current lasts one step": Setting(
        build=lambda: norse.LIFCell(norse.LIFParameters(tau_syn_inv=torch.tensor(1000.0))),
        run=run,
        gain=10.0,
        same_bits=False,
    ),
}
LEAKY = {
    "LIBox": Setting(build=norse.LIBoxCell, run=run, gain=10.0, same_bits=False),
    "LIBox, v_leak": Setting(
        build=lambda: norse.LIBoxCell(norse.LIBoxParameters(v_leak=torch.tensor(0.5))),
        run=run,
        gain=10.0,
        same_bits=False,
    ),
    "LI whose current lasts one step": Setting(
        build=lambda: norse.LICell(norse.LIParameters(tau_syn_inv=torch.tensor(1000.0))),
        run=run,
        gain=10.0,
        same_bits=False,
    ),
    "LI over a sequence": Setting(
        build=lambda: norse.LI(norse.LIParameters(tau_syn_inv=torch.tensor(1000.0))), run=run, same_bits=False
    ),
}
SURROGATES = {
    "super": box(**HALF, alpha=30.0),
    "triangle": box(**HALF, method="triangle", alpha=0.3),
    "tanh": box(**HALF, method="tanh", alpha=2.0),
}


@pytest.mark.parametrize("name", SETTINGS)
def test_spikes_are_the_same(name: str) -> None:
    same_spikes.check_spikes(SETTINGS[name], SETTINGS[name].random_drive())
    same_spikes.check_ties(SETTINGS[name])


@pytest.mark.parametrize("name", [name for name in SETTINGS if "half" in name or "IAF" in name or "v_" in name])
def test_ties_do_not_fire(name: str) -> None:
    assert same_spikes.check_ties(SETTINGS[name]) > 0


@pytest.mark.parametrize("name", SETTINGS)
def test_gradients_are_the_same(name: str) -> None:
    same_spikes.check_gradient(SETTINGS[name])


@pytest.mark.parametrize("name", SURROGATES)
def test_surrogates_are_the_same(name: str) -> None:
    same_spikes.check_gradient(Setting(build=SURROGATES[name], run=run, gain=2.0))


def test_with_heaviside_nothing_passes_a_spike() -> None:
    x = torch.rand(T, 2, 3).requires_grad_()
    (got,) = torch.autograd.grad(to_torch(graph_of(neuron_of(box(method="heaviside")()), channels=3))(x).sum(), x)
    assert not got.any()


@pytest.mark.parametrize("name", LEAKY)
def test_leaky_integrators_differ_by_rounding(name: str) -> None:
    """Both sides round at most 6 times a step at magnitudes below 16, and keep 0.9 of it: 6 * 16 * 2^-24 / 0.1."""
    x = LEAKY[name].random_drive() / 10
    want = run(LEAKY[name].build(), x)
    got = same_spikes.membranes_of(LEAKY[name], x)
    torch.testing.assert_close(got, want, rtol=0, atol=6e-5)
    assert want.abs().max() > 0.1


@given(st.floats(0.01, 1.0), st.sampled_from([0.0, 0.25]), st.sampled_from([0.0, -0.3]), st.integers(0, 2**16))
@settings(max_examples=25)
def test_a_neuron_first_differs_only_within_rounding_of_the_threshold(
    leak: float, v_leak: float, v_reset: float, seed: int
) -> None:
    """Until its spikes differ, a neuron's two membranes differ by rounding only.

    With |x|, |v|, |v_leak| <= M either side rounds at most 6 times a step at magnitudes of at most 3 M times what the
    leak leaves of it: 36 M 2^-24 a step, at most T times that.
    """
    cell = box(dt=1.0, tau_mem_inv=leak, v_leak=v_leak, v_reset=v_reset)
    setting = Setting(build=cell, run=run, gain=1.0 / leak, seed=seed)
    x = setting.random_drive()
    largest = max(1.0, float(x.abs().max()))
    same_spikes.check_rounding(setting, x, 36 * largest * T * 2.0**-24)


def test_the_surrogate_of_super_has_no_alpha() -> None:
    ops = [neuron_of(box(alpha=alpha)()).op for alpha in (1.0, 100.0)]
    assert ops[0] == ops[1]
    assert isinstance(ops[0], Lif)
    assert (ops[0].surrogate.width, ops[0].surrogate.scale) == (1.0, 1.0)


def test_states_are_the_tuples_of_norse() -> None:
    x = torch.zeros(2, 3)
    for build, kind in (
        (norse.LIFBoxCell, norse.LIFBoxFeedForwardState),
        (norse.LIBoxCell, norse.LIBoxState),
        (norse.IAFCell, norse.IAFFeedForwardState),
    ):
        cell = build()
        step = neuron_of(cell).step
        assert step is not None
        assert step.unpack((x,), {}) == (x, None)
        _, state = step.pack(x, x)  # type: ignore[misc]
        assert type(state) is type(cell(x)[1]) is kind
        assert step.unpack((x, state), {})[1] is x
        assert step.unpack((x,), {"state": state})[1] is x


def test_a_current_has_no_place() -> None:
    cell = LEAKY["LI whose current lasts one step"].build()
    x, step = torch.zeros(2, 3), neuron_of(cell).step
    assert step is not None
    _, state = step.pack(x, x)  # type: ignore[misc]
    assert step.unpack((x, state), {})[1] is x
    with pytest.raises(CompileError, match="a state of one's own is handed in, LIState"):
        step.unpack((x, norse.LIState(v=x, i=x)), {})


def test_cells_take_steps_and_start_anew() -> None:
    read = neuron_of(norse.LIFBoxCell())
    assert read.expects is Expects.STEP
    assert not read.keeps_state
    assert neuron_of(norse.IAF()).expects is Expects.SEPARATE
    assert isinstance(neuron_of(norse.LIBoxCell()).op, Li)


def test_containers_are_no_neurons() -> None:
    assert read_neuron("net", norse.SequentialState(norse.LIFBoxCell()), T) is None
    assert read_neuron("net", norse.Lift(nn.Linear(2, 2)), T) is None


def test_texts(golden: Golden) -> None:
    same_spikes.check_texts(SETTINGS | LEAKY, golden, "norse.txt")


class Overriding(norse.LIFBoxCell):
    def forward(self, input_tensor: Tensor, state: NamedTuple | None = None) -> object:
        return super().forward(input_tensor, state)


def other_start() -> nn.Module:
    cell = norse.LIFBoxCell()
    cell.state_fallback = lambda x: norse.LIFBoxFeedForwardState(v=torch.ones_like(x))
    return cell


def step(x: Tensor, state: object, p: object, dt: float) -> tuple[Tensor, object]:
    return x, state


REFUSED: dict[str, Build] = {
    "LIF, the default": norse.LIFCell,
    "LIF over a sequence": norse.LIF,
    "LI, the default": norse.LICell,
    "LILinear": lambda: norse.LILinearCell(2, 3),
    "recurrent": lambda: norse.LIFRecurrentCell(2, 3),
    "adaptive": norse.LIFAdExCell,
    "LSNN": norse.LSNNCell,
    "Izhikevich": lambda: norse.IzhikevichCell(norse.tonic_spiking),
    "leak above 1": box(dt=1.0),
    "leak below 0": box(tau_mem_inv=-1.0),
    "leak NaN": box(tau_mem_inv=float("nan")),
    "threshold NaN": box(v_th=float("nan")),
    "another reset": box(reset_method=max),
    "surrogate circ": box(method="circ"),
    "surrogate heavi_erfc": box(method="heavi_erfc"),
    "surrogate tanh of alpha 0": box(method="tanh", alpha=0.0),
    "forward redefined": Overriding,
    "its own start": other_start,
    "its own step": lambda: SNNCell(step, lambda x: None, norse.LIFBoxParameters()),
    "all states": lambda: norse.LI(norse.LIParameters(tau_syn_inv=torch.tensor(1000.0)), record_states=True),
}


def test_refusals(golden: Golden) -> None:
    same_spikes.check_refusals(REFUSED, golden, "refused_norse.txt")
