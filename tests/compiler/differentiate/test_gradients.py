"""Explicit gradients against torch's autograd, and against arithmetic written out from the equations."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor

from compiler.differentiate import BatchStatistics, Loss, differentiate, gradient_of, run_training
from compiler.evaluate import evaluate
from compiler.ir import (
    Compare,
    DType,
    Encoding,
    Graph,
    Loc,
    Node,
    Param,
    Reading,
    Reset,
    Surrogate,
    SurrogateKind,
)
from compiler.ir.ops import (
    Add,
    AvgPool2d,
    BatchNorm,
    Conv2d,
    Encode,
    Flatten,
    Input,
    Li,
    Lif,
    Linear,
    MaxPool2d,
    Op,
    Readout,
    Scale,
)
from tests.compiler.differentiate.small import Autograd, autograd, chain, normal, random_like, relative_error
from tests.strategies import RandomNetwork, networks

DTYPES = (torch.float32, torch.float64)
TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-12}  # about 100 and 5000 units in the last place
RUNNING = BatchStatistics.RUNNING


@st.composite
def trainable(draw: st.DrawFn) -> RandomNetwork:
    """Small networks with everything that can be differentiated."""
    return draw(
        networks(
            dyadic=False,
            free_neurons=True,
            residual=draw(st.booleans()),
            late_encode=True,
            encodings=list(Encoding),
            max_size=9,
            max_channels=6,
            max_timesteps=5,
        )
    )


def explicit(graph: Graph, x: Tensor, dy: Tensor, want: Autograd, statistics: BatchStatistics) -> dict[str, Tensor]:
    """Gradients of the training graph by parameter, and "x" if it has one, for the spikes of the other path."""
    training = differentiate(graph, None, statistics=statistics)
    of_input = gradient_of(graph.input.name)
    asked = [of_input] if of_input in training.values else []
    seed = {gradient_of(graph.output): dy.to(x.dtype)}
    run = run_training(training, x, given={**want.spikes, **seed}, want=asked, dtype=x.dtype)
    return {**run.gradients, **({"x": run.values[of_input]} if asked else {})}


def values_per_channel(network: RandomNetwork) -> int:
    """The fewest values that a batch norm takes its statistics over."""
    graph = network.graph
    batch = network.example.shape[graph.types[graph.input.name].axes.index("N")]
    norms = [graph.types[node.name] for node in graph.nodes if isinstance(node.op, BatchNorm)]
    sizes = [math.prod(batch if a == "N" else t.size(a) for a in t.axes if a != "C") for t in norms]
    return min(sizes, default=2)


@settings(max_examples=40)
@given(trainable(), st.sampled_from(BatchStatistics))
def test_gradients_are_those_of_autograd(network: RandomNetwork, statistics: BatchStatistics) -> None:
    """For identical spikes: those of autograd's forward pass are given to the training graph.

    A batch norm over its own batch can cancel a gradient to rounding noise (that of a bias before it is zero). So a
    tensor is compared by its own norm where autograd's f32 result is within 3e-7 of its f64 result, and in f64 by
    the largest gradient of the network elsewhere: noise of 1e-16 there, times 1 / sqrt(eps) = 300 per batch norm.
    """
    assume(statistics is RUNNING or values_per_channel(network) > 1)  # torch refuses a single value
    graph, x = network.graph, torch.from_numpy(network.example)
    dy = random_like(evaluate(graph, x).output)
    want = {dtype: autograd(graph, x.to(dtype), dy, statistics) for dtype in DTYPES}
    got = {dtype: explicit(graph, x.to(dtype), dy, want[dtype], statistics) for dtype in DTYPES}
    largest = max(tensor.norm().item() for tensor in want[torch.float64].gradients.values())
    for name, exact in want[torch.float64].gradients.items():
        if name not in got[torch.float64]:
            assert not exact.any()
        elif exact.any() and relative_error(want[torch.float32].gradients[name], exact) <= 3e-7:
            for dtype in DTYPES:
                assert relative_error(got[dtype][name], want[dtype].gradients[name]) <= TOLERANCE[dtype], name
        else:
            difference = (got[torch.float64][name] - exact).norm().item()
            assert difference <= 1e-10 * largest, name


@settings(max_examples=25)
@given(trainable())
def test_forward_values_are_those_of_evaluate(network: RandomNetwork) -> None:
    graph, x = network.graph, torch.from_numpy(network.example)
    neurons = [node.name for node in graph.nodes if isinstance(node.op, Lif)]
    training = replace(differentiate(graph, None, statistics=RUNNING), outputs=())
    names = [*(node.name for node in graph.nodes), *(f"{name}.membrane" for name in neurons)]
    got = run_training(training, x, want=names)
    want = evaluate(graph, x, traces=[node.name for node in graph.nodes])
    for node in graph.nodes:
        assert torch.equal(got.values[node.name], want.traces[node.name])
    for name in neurons:
        assert torch.equal(got.values[f"{name}.membrane"], want.membranes[name])


NEURON_X = 1.5 * torch.randn(6, 3, 4, generator=torch.Generator().manual_seed(2))  # (T, N, C)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("detach", [False, True])
@pytest.mark.parametrize("delay", [False, True])
@pytest.mark.parametrize("reset", Reset)
@pytest.mark.parametrize("kind", SurrogateKind)
def test_every_neuron(kind: SurrogateKind, reset: Reset, delay: bool, detach: bool, dtype: torch.dtype) -> None:
    """With scalars, and with every number one per channel; for both comparisons and two surrogate offsets."""
    names = ("decay", "threshold", "input_scale", "leak_bias", "reset_value", "initial")
    low, high = (0.2, 0.4, 0.5, -0.2, -0.3, -0.3), (1.0, 1.2, 1.5, 0.2, 0.3, 0.3)
    arrays = {name: np.linspace(a, b, 4, dtype=np.float32) for name, a, b in zip(names, low, high, strict=True)}
    numbers = [dict.fromkeys(names, 0.3), {name: Param(name) for name in names}]
    for compare, offset, chosen in zip(Compare, (0.0, 0.25), numbers, strict=True):
        surrogate = Surrogate(kind=kind, width=0.75, scale=0.5, offset=offset)
        op = Lif(
            reset=reset, reset_delay=delay, detach_reset=detach, compare=compare, surrogate=surrogate, **chosen
        )  # fmt: skip
        compare_with_autograd(chain(op, shape=(6, "N", 4), axes="TNC", arrays=arrays), NEURON_X.to(dtype))


def compare_with_autograd(graph: Graph, x: Tensor, statistics: BatchStatistics = RUNNING) -> None:
    """Every gradient within the tolerance of its number format."""
    dy = random_like(evaluate(graph, x.float()).output)
    want = autograd(graph, x, dy, statistics)
    got = explicit(graph, x, dy, want, statistics)
    assert got.keys() == want.gradients.keys()
    for name, gradient in got.items():
        assert relative_error(gradient, want.gradients[name]) <= TOLERANCE[x.dtype], name
        assert gradient.any(), name


@pytest.mark.parametrize(
    ("reset", "delay", "x1", "want"),
    [
        # m = 1.25, 0.75; s = 1, 0: dm[1] = 1, dv[0] = 0.5, ds[0] = 1 - 0.5 * 1.25, dm[0] = ds[0] + dv[0] * 0
        (Reset.HARD, False, 0.75, [0.375, 1.0]),
        # m = 1.25, 0.875: ds[0] = 1 - 1 * 0.5, dm[0] = 0.5 + 0.5
        (Reset.SOFT, False, 0.75, [1.0, 1.0]),
        # m = 1.25, 0.625: ds[0] = 1 - 1 * 1, dm[0] = 0 + 0.5
        (Reset.SOFT, True, 1.0, [0.5, 1.0]),
        # m = 1.25, 1.375: dm[0] = 1 + 0.5
        (Reset.NONE, False, 0.75, [1.5, 1.0]),
        # m = 1.25, 2.25, which is outside the window: dm[1] = 0, dm[0] = 1
        (Reset.NONE, False, 1.625, [1.0, 0.0]),
    ],
)
def test_two_steps_by_hand(reset: Reset, delay: bool, x1: float, want: list[float]) -> None:
    """decay 0.5, threshold 1, fire' = 1 for 0.5 < m < 1.5, dy = 1 at both steps: equations 2.4 to 2.6."""
    op = Lif(decay=0.5, threshold=1.0, reset=reset, reset_delay=delay)
    graph = chain(op, shape=(2, "N", 1), axes="TNC")
    x = torch.tensor([1.25, x1]).reshape(2, 1, 1)
    run = run_training(differentiate(graph, None), x, given={"d.n2": torch.ones(2, 1, 1)}, want=["d.x"])
    assert run.values["d.x"].flatten().tolist() == want


ARRAYS = {
    "w": normal(4, 2, 3, 2),
    "b": normal(4, seed=1),
    "grouped": normal(6, 2, 2, 3, seed=2),
    "gain": 1 + 0.1 * normal(4, seed=3),
    "shift": normal(4, seed=4),
    "mean": normal(4, seed=5),
    "var": np.abs(normal(4, seed=6)) + 0.5,
    "matrix": normal(3, 4, seed=7),
    "three": normal(3, seed=8),
}
NORM = BatchNorm(weight=Param("gain"), bias=Param("shift"), mean=Param("mean"), var=Param("var"))
OPS: dict[str, Op] = {
    "conv": Conv2d(weight=Param("grouped"), groups=2, stride=(2, 1), padding=(1, 2)),
    "bias": Conv2d(weight=Param("grouped"), bias=Param("b6"), groups=2, stride=(3, 2)),
    "norm": NORM,
    "avg": AvgPool2d(kernel=(2, 3), stride=(2, 3)),
    "avg-overlap": AvgPool2d(kernel=(3, 2), stride=(1, 1), padding=(1, 1)),
    "avg-pad": AvgPool2d(kernel=(3, 3), stride=(2, 2), padding=(1, 0), ceil_mode=True),
    "avg-data": AvgPool2d(kernel=(3, 2), stride=(2, 2), padding=(1, 1), ceil_mode=True, count_include_pad=False),
    "avg-gaps": AvgPool2d(kernel=(1, 2), stride=(3, 4)),
    "max": MaxPool2d(kernel=(2, 3), stride=(2, 3)),
    "max-overlap": MaxPool2d(kernel=(3, 2), stride=(1, 1), padding=(1, 1)),
    "max-ceil": MaxPool2d(kernel=(3, 3), stride=(2, 2), padding=(1, 0), ceil_mode=True),
    "scale": Scale(factor=-2.5),
    "scales": Scale(factor=Param("shift")),
    "flatten": Flatten(),
    "li": Li(decay=0.7, input_scale=0.5, leak_bias=0.25, initial=1.0),
    "li-channels": Li(decay=Param("decays"), input_scale=Param("gain")),
    "rate": Readout(kind=Reading.RATE),
    "last": Readout(kind=Reading.LAST),
    "most": Readout(kind=Reading.MAX),
}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("statistics", BatchStatistics)
@pytest.mark.parametrize("name", OPS)
def test_every_op(name: str, statistics: BatchStatistics, dtype: torch.dtype) -> None:
    arrays = {**ARRAYS, "b6": normal(6), "decays": np.array([0.0, 0.5, 0.9, 1.0], np.float32)}
    x = random_like(torch.empty(3, 2, 4, 7, 8), seed=3).to(dtype)
    graph = chain(OPS[name], shape=(3, "N", 4, 7, 8), axes="TNCHW", arrays=arrays)
    compare_with_autograd(graph, x, statistics)


@pytest.mark.parametrize("name", ["conv", "norm", "avg-pad", "max-ceil", "scales", "flatten"])
def test_ops_before_a_direct_encoding(name: str) -> None:
    """Values without time; the gradient of the encoding sums over its steps."""
    arrays = {**ARRAYS, "b6": normal(6)}
    encode = Encode(kind=Encoding.DIRECT, timesteps=3)
    graph = chain(OPS[name], encode, Scale(factor=3.0), shape=("N", 4, 7, 8), axes="NCHW", arrays=arrays)
    x = random_like(torch.empty(5, 4, 7, 8), seed=3).double()
    compare_with_autograd(graph, x, BatchStatistics.BATCH)


def test_linear_layers_and_batch_norm_of_features() -> None:
    ops = (Linear(weight=Param("matrix"), bias=Param("three")), Scale(factor=2.0))
    x = random_like(torch.empty(3, 5, 4), seed=3).double()
    compare_with_autograd(chain(*ops, shape=(3, "N", 4), axes="TNC", arrays=ARRAYS), x)
    for statistics in BatchStatistics:
        compare_with_autograd(chain(NORM, shape=(3, "N", 4), axes="TNC", arrays=ARRAYS), x, statistics)
        compare_with_autograd(chain(NORM, shape=("N", 4), axes="NC", arrays=ARRAYS), x[0], statistics)


def test_ties_of_a_max_readout_share_the_gradient() -> None:
    graph = chain(Readout(kind=Reading.MAX), shape=(3, "N", 1), axes="TNC")
    x = torch.tensor([2.0, 1.0, 2.0]).reshape(3, 1, 1)
    run = run_training(differentiate(graph, None), x, given={"d.n2": torch.ones(1, 1)}, want=["d.x"])
    assert run.values["d.x"].flatten().tolist() == [0.5, 0.0, 0.5]


def test_branches_and_shared_parameters_are_summed() -> None:
    """x -> a, b with one weight; a + a + b: each part has a name, and the sums are those of autograd."""
    loc = Loc("net.py", 1)
    layer = Linear(weight=Param("w"))
    nodes = (
        Node("x", Input(shape=("N", 3), dtype=DType.F32, axes="NC"), (), loc),
        Node("a", layer, ("x",), loc),
        Node("b", layer, ("x",), loc),
        Node("twice", Add(), ("a", "a"), loc),
        Node("sum", Add(), ("twice", "b"), loc),
        Node("unread", Scale(factor=3.0), ("sum",), loc),
    )
    graph = Graph("net", nodes, "sum", {"w": normal(3, 3)})
    compare_with_autograd(graph, random_like(torch.empty(4, 3), seed=3).double())
    values = differentiate(graph, None).values
    assert {"d.a.by.twice.0", "d.a.by.twice.1", "d.x.by.a", "d.x.by.b", "d.w.by.a", "d.w.by.b"} <= values.keys()
    assert "d.unread" not in values


@pytest.mark.parametrize("kind", [Encoding.BERNOULLI, Encoding.LATENCY])
def test_spike_codes_stop_the_gradient_behind_them(kind: Encoding) -> None:
    """The encoder's own output has one: what an attack on spikes uses."""
    encode = Encode(kind=kind, timesteps=4, seed=5 if kind is Encoding.BERNOULLI else None)
    graph = chain(encode, Scale(factor=2.0), Readout(kind=Reading.RATE), shape=("N", 3), axes="NC")
    training = differentiate(graph, Loss.MSE)
    assert "d.x" not in training.values
    run = run_training(training, torch.rand(2, 3), torch.tensor([0, 2]), want=["d.n2", "d.n4"])
    assert torch.equal(run.values["d.n2"], (2.0 / 4 * run.values["d.n4"]).expand(4, 2, 3))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("loss", Loss)
def test_losses_are_those_of_torch(loss: Loss, dtype: torch.dtype) -> None:
    graph = chain(Scale(factor=1.0), shape=("N", 5), axes="NC")
    scores, labels = random_like(torch.empty(4, 5)).to(dtype), torch.tensor([0, 4, 2, 2])
    run = run_training(differentiate(graph, loss), scores, labels, want=["d.n2"], dtype=dtype)
    leaf = scores.clone().requires_grad_()
    match loss:
        case Loss.MSE:
            value = torch.nn.functional.mse_loss(leaf, torch.eye(5, dtype=dtype)[labels])
        case Loss.CROSS_ENTROPY:
            value = torch.nn.functional.cross_entropy(10 * leaf, labels)
    value.backward()
    assert leaf.grad is not None
    assert run.loss == pytest.approx(value.item(), rel=TOLERANCE[dtype])
    assert relative_error(run.values["d.n2"], leaf.grad) <= TOLERANCE[dtype]
