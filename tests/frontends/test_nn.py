"""LIF and LI modules against the reference execution of their ops, and their gradients in closed form."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from compiler.evaluate import evaluate
from compiler.ir import (
    Compare,
    CompileError,
    DType,
    Graph,
    Loc,
    Node,
    Number,
    Param,
    Reset,
    Surrogate,
    SurrogateKind,
)
from compiler.ir.ops import Input, Li, Lif
from compiler.surrogate import surrogate_gradient
from frontends.nn import LI, LIF, set_timesteps

T, N, C = 6, 3, 4
NUMBERS = ("decay", "threshold", "input_scale", "leak_bias", "reset_value", "initial")

surrogates = st.builds(
    Surrogate,
    kind=st.sampled_from(SurrogateKind),
    width=st.floats(0.2, 2.0),
    scale=st.floats(0.2, 2.0),
    offset=st.sampled_from([0.0, 0.25]),
)


@st.composite
def lifs(draw: st.DrawFn, per_channel: bool = True) -> LIF:
    """A neuron with random settings; some numbers one per channel."""

    def number(low: float, high: float, neutral: float) -> float | Tensor:
        kind = draw(st.integers(0, 2 if per_channel else 1))
        if kind == 0:
            return neutral
        if kind == 1:
            return draw(st.floats(low, high))
        values = draw(st.lists(st.floats(low, high, width=32), min_size=C, max_size=C))
        return torch.tensor(values)

    return LIF(
        decay=number(0, 1, 0.5),
        threshold=number(0.125, 1, 0.5),
        input_scale=number(0.25, 2, 1.0),
        leak_bias=number(-0.25, 0.25, 0.0),
        reset=draw(st.sampled_from(Reset)),
        reset_value=number(-0.25, 0.25, 0.0),
        reset_delay=draw(st.booleans()),
        compare=draw(st.sampled_from(Compare)),
        detach_reset=draw(st.booleans()),
        initial=number(-0.25, 0.25, 0.0),
        surrogate=draw(surrogates),
    )


def sequence(seed: int, *shape: int) -> Tensor:
    """Half of the values on a grid of eighths, so that membrane and threshold meet exactly."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(shape, generator=generator)
    return torch.where(torch.rand(shape, generator=generator) < 0.5, torch.round(8 * x) / 8, x)


def graph_of(module: LIF | LI) -> Graph:
    """The op with the module's settings, alone in a graph."""
    parameters = {}

    def number(name: str) -> Number:
        value: float | Tensor = getattr(module, name)
        if isinstance(value, float):
            return value
        parameters[name] = value.numpy()
        return Param(name)

    op: Lif | Li
    if isinstance(module, LIF):
        op = Lif(
            **{name: number(name) for name in NUMBERS},
            reset=module.reset,
            reset_delay=module.reset_delay,
            compare=module.compare,
            surrogate=module.surrogate,
        )
    else:
        op = Li(**{name: number(name) for name in NUMBERS if hasattr(module, name)})
    source = Node("x", Input(shape=(T, "N", C), dtype=DType.F32, axes="TNC"), (), Loc("test"))
    return Graph("one", (source, Node("neuron", op, ("x",), Loc("test"))), "neuron", parameters)


@given(lifs(), st.integers(0, 2**16))
@settings(max_examples=150, deadline=None)
def test_lif_spikes_as_the_reference_does(module: LIF, seed: int) -> None:
    x = sequence(seed, T, N, C)
    assert torch.equal(module(x), evaluate(graph_of(module), x).output)


@given(st.floats(0, 1), st.floats(0.5, 2), st.sampled_from([0.0, 0.125]), st.integers(0, 2**16))
@settings(max_examples=40, deadline=None)
def test_li_integrates_as_the_reference_does(decay: float, scale: float, leak: float, seed: int) -> None:
    module = LI(decay=decay, input_scale=scale, leak_bias=leak, initial=torch.linspace(-1, 1, C))
    x = sequence(seed, T, N, C)
    assert torch.equal(module(x), evaluate(graph_of(module), x).output)


@given(lifs(), st.integers(0, 2**16))
@settings(max_examples=30, deadline=None)
def test_merged_time_is_the_same_neuron(module: LIF, seed: int) -> None:
    x = sequence(seed, T, N, C, 2, 3)
    separate = module(x)
    set_timesteps(nn.Sequential(module), T)
    assert torch.equal(module(x.flatten(0, 1)), separate.flatten(0, 1))


@given(lifs(per_channel=False), st.integers(0, 2**16))
@settings(max_examples=80, deadline=None)
def test_gradient_is_bptt(module: LIF, seed: int) -> None:
    """Against the recurrences of equations 2.3 to 2.8, extended by the soft and the delayed reset."""
    x = sequence(seed, T, 5).double().requires_grad_()
    upstream = sequence(seed + 1, T, 5).double()
    (module(x) * upstream).sum().backward()
    # float64 sums of T terms in another order
    torch.testing.assert_close(x.grad, bptt(module, x.detach(), upstream), rtol=1e-12, atol=1e-12)


def bptt(module: LIF, x: Tensor, upstream: Tensor) -> Tensor:
    """dL/dx from dL/ds, written out backwards in time."""
    decay, threshold, scale, leak, reset_value, initial = (float(getattr(module, name)) for name in NUMBERS)
    delayed = module.reset is Reset.SOFT and module.reset_delay
    v, m, s = torch.full_like(x[0], initial), [], []
    for t in range(T):
        late = threshold * s[-1] if delayed and s else 0.0
        m.append(decay * v + scale * x[t] + leak - late)
        s.append((m[t] >= threshold if module.compare is Compare.GE else m[t] > threshold).double())
        if module.reset is Reset.HARD:
            v = torch.where(s[t] > 0, reset_value, m[t])
        else:
            v = m[t] - threshold * s[t] if module.reset is Reset.SOFT and not delayed else m[t]
    through_reset = 0.0 if module.detach_reset else 1.0
    grads = torch.zeros_like(x)
    next_m = torch.zeros_like(x[0])
    for t in reversed(range(T)):
        kept, by_spike = {
            Reset.HARD: (1 - s[t], decay * (reset_value - m[t])),
            Reset.SOFT: (torch.ones_like(s[t]), (1.0 if delayed else decay) * -threshold * torch.ones_like(s[t])),
            Reset.NONE: (torch.ones_like(s[t]), torch.zeros_like(s[t])),
        }[module.reset]
        u = m[t] - threshold - module.surrogate.offset
        to_spike = upstream[t] + through_reset * by_spike * next_m
        next_m = decay * kept * next_m + surrogate_gradient(module.surrogate, u) * to_spike
        grads[t] = scale * next_m
    return grads


def test_default_is_the_dissertations_neuron() -> None:
    """Equations 2.1, 2.2 by hand: m = 0.25 v + x, fires at 0.5, resets to 0."""
    x = torch.tensor([0.25, 0.4375, 0.5, 0.0]).reshape(4, 1, 1)
    # m: 0.25, 0.0625 + 0.4375 = 0.5 (fires), 0 + 0.5 (fires), 0
    assert LIF()(x).flatten().tolist() == [0.0, 1.0, 1.0, 0.0]


def test_per_channel_numbers_are_in_the_state_dict() -> None:
    module = LIF(decay=torch.tensor([0.25, 0.5]), threshold=0.75)
    assert list(module.state_dict()) == ["decay"]
    assert not list(module.parameters())


FAULTS = {
    "decay is 1.25, not inside [0, 1]": lambda: LIF(decay=1.25),
    "decay is -0.5, not inside [0, 1]": lambda: LI(decay=torch.tensor([0.5, -0.5])),
    "threshold is not finite": lambda: LIF(threshold=float("nan")),
    "timesteps is 0, must be at least 1": lambda: LIF(timesteps=0),
    "surrogate width is 0.0, must be positive and finite": lambda: LIF(surrogate=Surrogate(width=0.0)),
    "'medium' is not one of hard, soft, none": lambda: LIF(reset="medium"),  # type: ignore[arg-type]
    "initial is a 2-D tensor of torch.float32, must be 1-D and floating": lambda: LI(initial=torch.zeros(2, 2)),
    "input has 7 rows, not a multiple of 3 time steps": lambda: LIF(timesteps=3)(torch.zeros(7, 2)),
    "decay has 3 values, the input (T, N, C, ...) is (4, 1, 2)": lambda: LIF(decay=torch.zeros(3))(
        torch.zeros(4, 1, 2)
    ),
}


@pytest.mark.parametrize("message", FAULTS)
def test_faults_are_named(message: str) -> None:
    with pytest.raises(CompileError) as fault:
        FAULTS[message]()
    assert fault.value.message == message
    assert fault.value.loc.file in ("LIF", "LI")
