"""SpikingJelly networks against their import: spikes where both roundings are exact, gradients, refusals."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

pytest.importorskip("spikingjelly")

from spikingjelly.activation_based import functional, layer, neuron, surrogate

from compiler.evaluate import evaluate
from compiler.ir import CompileError, Graph, Reset
from compiler.ir.ops import Lif
from frontends.from_torch import from_torch
from frontends.nn import LIF

T = 4


@st.composite
def nodes(draw: st.DrawFn) -> nn.Module:
    """LIFNode and IFNode whose numbers are on a dyadic grid."""
    v_reset = draw(st.sampled_from([0.0, None, -0.25]))
    threshold = draw(st.sampled_from([0.5, 1.0]))
    if draw(st.booleans()):
        return neuron.IFNode(v_threshold=threshold, v_reset=v_reset, step_mode="m")
    return neuron.LIFNode(
        tau=draw(st.sampled_from([2.0, 4.0])),
        decay_input=draw(st.booleans()),
        v_threshold=threshold,
        v_reset=v_reset,
        step_mode="m",
    )


def on_grid(module: nn.Module) -> nn.Module:
    """Weights rounded to eighths."""
    with torch.no_grad():
        for weight in module.parameters():
            weight.copy_(torch.round(8 * weight) / 8)
    return module.eval()


@given(nodes(), nodes(), st.integers(0, 2**16))
@settings(max_examples=40, deadline=None)
def test_dyadic_networks_spike_alike(first: nn.Module, second: nn.Module, seed: int) -> None:
    """SpikingJelly computes v + (x - v) / tau, the graph (1 - 1 / tau) v + x / tau.

    On eighths and with tau 2 or 4, T = 4 steps and 8 terms stay inside 24 bits: both are exact, hence equal.
    """
    torch.manual_seed(seed)
    net = nn.Sequential(
        layer.Conv2d(2, 3, 3, padding=1, step_mode="m"),
        first,
        layer.MaxPool2d(2, step_mode="m"),
        layer.Flatten(step_mode="m"),
        layer.Dropout(0.5, step_mode="m"),
        layer.Linear(27, 5, step_mode="m"),
        second,
    )
    on_grid(net)
    x = torch.randint(-4, 5, (T, 2, 2, 6, 6)) / 8
    spikes: list[Tensor] = []
    first.register_forward_hook(lambda _m, _x, y: spikes.append(y))
    graph = from_torch(net, x, T)
    with torch.no_grad():
        want = net(x)
    functional.reset_net(net)
    got = evaluate(graph, x, traces=["1"])
    assert torch.equal(got.output, want)
    assert torch.equal(got.traces["1"], spikes[-1])


@given(st.floats(1.1, 30.0), st.booleans(), st.integers(0, 2**16))
@settings(max_examples=40, deadline=None)
def test_other_time_constants_differ_by_ulps_of_the_membrane(tau: float, decay_input: bool, seed: int) -> None:
    """Below the threshold, where no flip can amplify it, the membranes differ by rounding only.

    Each step rounds at most 4 times on either side, at magnitudes below 4: 8 * T * 2^-23 = 4e-6 in all.
    """
    torch.manual_seed(seed)
    node = neuron.LIFNode(tau, decay_input, v_threshold=1e6, step_mode="m", store_v_seq=True)
    x = torch.rand(T, 2, 16) * (1 if decay_input else 0.9)
    graph = from_torch(node, x, T)
    node(x)
    (name,) = [entry.name for entry in graph.nodes if isinstance(entry.op, Lif)]
    membranes = evaluate(graph, x, traces=[name]).membranes[name]
    torch.testing.assert_close(membranes, node.v_seq, rtol=0, atol=8 * T * 2.0**-23)


SURROGATES = {
    "ATan": surrogate.ATan(2.5),
    "Sigmoid": surrogate.Sigmoid(3.0),
    "SoftSign": surrogate.SoftSign(1.5),
    "SuperSpike": surrogate.SuperSpike(1.5),
    "PiecewiseQuadratic": surrogate.PiecewiseQuadratic(1.5),
    "PiecewiseExp": surrogate.PiecewiseExp(2.0),
    "Rect": surrogate.Rect(0.75),
}


def lif_op(graph: Graph) -> Lif:
    (op,) = [node.op for node in graph.nodes if isinstance(node.op, Lif)]
    return op


@pytest.mark.parametrize("v_reset", [0.0, -0.25, None])
@pytest.mark.parametrize("detach_reset", [False, True])
@pytest.mark.parametrize("kind", SURROGATES)
def test_gradients_are_those_of_spikingjelly(kind: str, detach_reset: bool, v_reset: float | None) -> None:
    node = neuron.LIFNode(
        2.0,
        v_threshold=0.5,
        v_reset=v_reset,
        surrogate_function=SURROGATES[kind],
        detach_reset=detach_reset,
        step_mode="m",
    )
    generator = torch.Generator().manual_seed(1)
    x = (torch.randint(-8, 17, (T, 3, 9), generator=generator) / 8).requires_grad_()
    upstream = torch.randn(T, 3, 9, generator=generator)
    op = lif_op(from_torch(node, x.detach(), T))
    ours = LIF(
        decay=op.decay,
        threshold=op.threshold,
        input_scale=op.input_scale,
        leak_bias=op.leak_bias,
        reset=op.reset,
        reset_value=op.reset_value,
        detach_reset=op.detach_reset,
        initial=op.initial,
        surrogate=op.surrogate,
    )
    (want,) = torch.autograd.grad((node(x) * upstream).sum(), x)
    (got,) = torch.autograd.grad((ours(x) * upstream).sum(), x)
    # the same sums of T terms in float32, in another order
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-6)
    assert want.abs().max() > 0


def test_settings_are_read() -> None:
    node = neuron.LIFNode(4.0, v_threshold=0.75, v_reset=-0.5, step_mode="m")
    op = lif_op(from_torch(node, torch.rand(T, 2, 3), T))
    assert (op.decay, op.input_scale, op.leak_bias) == (0.75, 0.25, -0.125)
    assert (op.threshold, op.reset, op.reset_value, op.initial) == (0.75, Reset.HARD, -0.5, -0.5)
    soft = lif_op(from_torch(neuron.IFNode(v_reset=None, step_mode="m"), torch.rand(T, 2, 3), T))
    assert (soft.decay, soft.input_scale, soft.leak_bias, soft.reset) == (1.0, 1.0, 0.0, Reset.SOFT)


def called_twice() -> nn.Module:
    node = neuron.IFNode(step_mode="m")
    return nn.Sequential(node, layer.Linear(3, 3, step_mode="m"), node)


NODES = "LIFNode, SimpleLIFNode, ParametricLIFNode, IFNode, SimpleIFNode, HalfThresholdIFNode"
NAMES = "ATan, Sigmoid, SoftSign, SuperSpike, PiecewiseQuadratic, PiecewiseExp, Rect, QPseudoSpike, PiecewiseLeakyReLU"
REFUSALS = {
    called_twice: (
        "2: error: 2: spikec.neuron.default: this neuron is called twice; it would go on from its state\n"
        "  hint: use two modules"
    ),
    lambda: nn.Sequential(neuron.KLIFNode(step_mode="m")): (
        "0: error: 0: neuron spikingjelly.activation_based.neuron.lif_variants.KLIFNode is not supported\n"
        f"  hint: of SpikingJelly, {NODES} are imported"
    ),
    lambda: neuron.IzhikevichNode(step_mode="m"): (
        "IzhikevichNode: error: IzhikevichNode: neuron "
        "spikingjelly.activation_based.neuron.adapt.IzhikevichNode is not supported\n"
        f"  hint: of SpikingJelly, {NODES} are imported"
    ),
    lambda: layer.SynapseFilter(step_mode="m"): (
        "SynapseFilter: error: SynapseFilter: neuron "
        "spikingjelly.activation_based.layer.misc.SynapseFilter is not supported\n"
        f"  hint: of SpikingJelly, {NODES} are imported"
    ),
    lambda: neuron.IFNode(surrogate_function=surrogate.Erf(), step_mode="m"): (
        f"IFNode: error: IFNode: surrogate Erf is not supported\n  hint: supported: {NAMES}"
    ),
}


@pytest.mark.parametrize("build", REFUSALS)
def test_refusals(build: object) -> None:
    assert callable(build)
    with pytest.raises(CompileError) as fault:
        from_torch(build(), torch.rand(T, 2, 3), T)
    assert str(fault.value) == REFUSALS[build]


class MergedTime(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.node = neuron.IFNode(step_mode="m")

    def forward(self, x: Tensor) -> Tensor:
        return self.node(x.repeat(T, 1))


def test_merged_time_is_refused() -> None:
    with pytest.raises(CompileError, match=r"takes time from its own first axis, \(T, N, ...\), it gets"):
        from_torch(MergedTime(), torch.rand(2, 3), T)


def test_a_nodes_state_and_hooks_are_left_alone() -> None:
    node = neuron.IFNode(surrogate_function=surrogate.ATan(), step_mode="m")
    calls: list[object] = []
    node.register_forward_hook(lambda *_: calls.append(None))
    node(torch.rand(T, 2, 3))
    state = node.v
    from_torch(nn.Sequential(node), torch.rand(T, 2, 3), T)
    assert node.v is state
    assert len(calls) == 1
    assert node.surrogate_function.training
