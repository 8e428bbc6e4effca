"""ONNX export: onnxruntime fires the spikes of `evaluate`, and the file gives its graph back."""

from __future__ import annotations

import itertools
import math
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from hypothesis import assume, given, settings
from torch import Tensor

from compiler.evaluate import Execution, evaluate, execute
from compiler.ir import (
    Compare,
    CompileError,
    DType,
    Encoding,
    Graph,
    Loc,
    Node,
    Number,
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
    Input,
    Li,
    Lif,
    Linear,
    MaxPool2d,
    Op,
    Readout,
    Scale,
)
from compiler.ir.text import print_graph
from frontends.from_onnx import load_onnx
from frontends.onnx_export.model import onnx_model
from frontends.to_onnx import to_onnx
from tests.frontends.onnx_models import chain, draws_of, output_of, run, with_all_values
from tests.golden import Golden
from tests.strategies import RandomNetwork, networks

SMALL = {"max_size": 9, "max_channels": 6, "max_timesteps": 5, "free_neurons": True, "late_encode": True}
DYADIC = networks(encodings=list(Encoding), residual=True, **SMALL)
ANY = networks(encodings=list(Encoding), dyadic=False, residual=True, **SMALL)
HALF_ULP = 2.0**-24


def model_and_inputs(network: RandomNetwork) -> tuple[onnx.ModelProto, list[Tensor]]:
    graph, x = network.graph, torch.from_numpy(network.example)
    draws = draws_of(graph, x)
    return onnx_model(graph, draws_as_input=bool(draws)), [x, *draws]


def averages_exactly(graph: Graph) -> bool:
    """Whether every average is over a power of two elements, so that no sum behind it is rounded."""
    pools = [node.op for node in graph.nodes if isinstance(node.op, AvgPool2d)]
    full = all(not op.ceil_mode and (op.count_include_pad or op.padding == (0, 0)) for op in pools)
    return full and all(math.log2(math.prod(op.kernel)) % 1 == 0 for op in pools)


@settings(max_examples=20)
@given(DYADIC)
def test_every_spike_is_the_same(network: RandomNetwork) -> None:
    """On a dyadic grid no sum is rounded, so its order does not matter."""
    graph, x = network.graph, torch.from_numpy(network.example)
    assume(averages_exactly(graph))
    model, inputs = model_and_inputs(network)
    onnx.checker.check_model(model, full_check=True)
    neurons = [node.name for node in graph.nodes if isinstance(node.op, Lif)]
    want = evaluate(graph, x, traces=neurons)
    got = run(with_all_values(model), *inputs)
    for name in neurons:
        assert torch.equal(got[name], want.traces[name]), name
    # a mean over time may be rounded once, and a linear layer behind it then once for each term
    torch.testing.assert_close(output_of(model, *inputs), want.output, rtol=1e-5, atol=1e-5)


@settings(max_examples=20)
@given(ANY)
def test_every_node_is_within_rounding(network: RandomNetwork) -> None:
    """Given the runtime's own operands: neurons to the bit, sums within the bound of sums in any order."""
    graph = network.graph
    model, inputs = model_and_inputs(network)
    values = {**run(with_all_values(model), *inputs), graph.input.name: inputs[0]}
    execution = Execution(graph)
    for node in graph.nodes[1:]:
        operands = [values[name] for name in node.inputs]
        want, got = execute(node.op, operands, node, execution), values[node.name]
        assert ((got - want).abs() <= rounding(node.op, operands, want, execution)).all(), node.name


def rounding(op: Op, operands: list[Tensor], want: Tensor, run: Execution) -> Tensor:
    """How far two orders of the same sum may lie apart: twice gamma(n) * sum |terms|, n the number of roundings.

    Source: Higham, Accuracy and Stability of Numerical Algorithms, 2nd ed., section 3.1.
    """
    magnitudes = [operand.abs() for operand in operands]
    match op:
        case Conv2d() | Linear():
            weight = run.array(op.weight)
            absolute = Absolute(run.graph)
            terms = execute(op, magnitudes, run.graph.nodes[0], absolute)
            return 2 * gamma(math.prod(weight.shape[1:]) + 1) * terms
        case AvgPool2d():
            return 2 * gamma(math.prod(op.kernel) + 1) * execute(op, magnitudes, run.graph.nodes[0], run)
        case Readout(kind=Reading.RATE):
            return 2 * gamma(len(operands[0]) + 1) * magnitudes[0].mean(0)
        case BatchNorm():
            # x * f + (bias - mean * f) or (x - mean) * f + bias, f = weight / sqrt(var + eps): at most 7 roundings
            weight, bias, mean, var = (run.array(param).abs() for param in (op.weight, op.bias, op.mean, op.var))
            factor = weight / torch.sqrt(var + op.eps)
            shape = (-1, *(1,) * (want.ndim - 3)) if want.ndim in (3, 5) else (-1, *(1,) * (want.ndim - 2))
            factor, mean, bias = (value.reshape(shape) for value in (factor, mean, bias))
            return 2 * gamma(7) * ((magnitudes[0] + mean) * factor + bias)
    return torch.zeros_like(want)


class Absolute(Execution):
    """On the magnitudes of all arrays."""

    def array(self, param: Param) -> Tensor:
        return super().array(param).abs()


def gamma(roundings: int) -> float:
    return roundings * HALF_ULP / (1 - roundings * HALF_ULP)


@settings(max_examples=30)
@given(network=ANY)
def test_the_file_gives_its_graph_back(network: RandomNetwork, tmp_path_factory: pytest.TempPathFactory) -> None:
    graph, path = network.graph, tmp_path_factory.mktemp("onnx") / "net.onnx"
    to_onnx(graph, path, draws_as_input=True)
    again = load_onnx(path).graph
    assert print_graph(again) == print_graph(graph)
    assert {name: a.tobytes() for name, a in again.parameters.items()} == {
        name: a.tobytes() for name, a in graph.parameters.items()
    }
    assert again == graph
    assert [file.name for file in path.parent.iterdir()] == ["net.onnx"]


def grid_drive(*shape: int) -> Tensor:
    """Multiples of 1/8, so that membrane potentials meet thresholds."""
    return torch.randint(-4, 9, shape, generator=torch.Generator().manual_seed(0)) / 8


FIELDS = ("decay", "threshold", "input_scale", "leak_bias", "reset_value", "initial")


@pytest.mark.parametrize("compare", list(Compare))
@pytest.mark.parametrize("reset_delay", [False, True])
@pytest.mark.parametrize("reset", list(Reset))
@pytest.mark.parametrize("shape", [(6, "N", 3), (6, "N", 3, 2, 4)])
def test_neurons_of_every_kind(
    shape: tuple[int | str, ...], reset: Reset, reset_delay: bool, compare: Compare, tmp_path: Path
) -> None:
    """Ties included; every number per channel; the attributes come back."""
    values = {
        "decay": [0.5, 0.75, 1.0],
        "threshold": [1.0, 0.5, 0.75],
        "input_scale": [1.0, 0.5, 2.0],
        "leak_bias": [0.0, 0.125, -0.125],
        "reset_value": [0.0, 0.25, -0.5],
        "initial": [0.0, 0.5, 0.25],
    }
    numbers: dict[str, Number] = {name: Param(f"lif.{name}") for name in FIELDS}
    arrays = {f"lif.{name}": np.array(value, np.float32) for name, value in values.items()}
    surrogate = Surrogate(kind=SurrogateKind.ATAN, width=0.1, scale=0.3, offset=0.7)
    lif = Lif(
        **numbers,  # type: ignore[arg-type]  # numbers all
        reset=reset,
        reset_delay=reset_delay,
        compare=compare,
        detach_reset=True,
        surrogate=surrogate,
    )
    graph = chain(lif, shape=shape, parameters=arrays)
    to_onnx(graph, tmp_path / "net.onnx")
    x = grid_drive(6, 5, *(int(extent) for extent in shape[2:]))
    assert torch.equal(output_of(tmp_path / "net.onnx", x), evaluate(graph, x).output)
    assert load_onnx(tmp_path / "net.onnx").graph == graph


def test_a_leaky_integrator(tmp_path: Path) -> None:
    li = Li(decay=0.9, input_scale=0.1, leak_bias=0.01, initial=-0.3)
    graph = chain(li, Readout(kind=Reading.LAST), shape=(6, "N", 3))
    to_onnx(graph, tmp_path / "net.onnx")
    x = grid_drive(6, 5, 3)
    assert torch.equal(output_of(tmp_path / "net.onnx", x), evaluate(graph, x).output)


@pytest.mark.parametrize("ceil_mode", [False, True])
@pytest.mark.parametrize("kind", ["max", "average", "average with padding"])
def test_windows_of_every_kind(kind: str, ceil_mode: bool) -> None:
    """Padding and partial last windows; sums of integers are exact."""
    for size, kernel, stride in itertools.product((4, 5, 6, 7), (1, 2, 3, 4), (1, 2, 3, 4)):
        for padding in range(kernel // 2 + 1):
            shared = {
                "kernel": (kernel, 2),
                "stride": (stride, 2),
                "padding": (padding, 1),
                "ceil_mode": ceil_mode,
            }
            op = (
                MaxPool2d(**shared)  # type: ignore[arg-type]  # its fields
                if kind == "max"
                else AvgPool2d(**shared, count_include_pad=kind != "average")  # type: ignore[arg-type]
            )
            graph = chain(op, shape=("N", 2, size, 5))
            x = grid_drive(2, 2, size, 5) * 8
            assert torch.equal(output_of(onnx_model(graph), x), evaluate(graph, x).output), op


@pytest.mark.parametrize("timesteps", [1, 2, 4, 5])
def test_latency_codes(timesteps: int) -> None:
    graph = chain(Encode(kind=Encoding.LATENCY, timesteps=timesteps), shape=("N", 3))
    x = torch.cat([torch.linspace(-0.5, 1.5, 60).reshape(20, 3), torch.rand(50, 3)])
    assert torch.equal(output_of(onnx_model(graph), x), evaluate(graph, x).output)


@pytest.mark.parametrize("samples", [1, 4])
def test_bernoulli_codes(samples: int) -> None:
    """With a mask the file needs nothing; with a seed the draws are an input."""
    x, mask = torch.rand(4, 3), np.random.default_rng(0).random((5, samples, 3), np.float32)
    masked = Encode(kind=Encoding.BERNOULLI, timesteps=5, mask=Param("mask"))
    graph = chain(masked, shape=("N", 3), parameters={"mask": mask})
    assert torch.equal(output_of(onnx_model(graph), x), evaluate(graph, x).output)
    graph = chain(Encode(kind=Encoding.BERNOULLI, timesteps=5, seed=3), shape=("N", 3))
    model = onnx_model(graph, draws_as_input=True)
    assert torch.equal(output_of(model, x, *draws_of(graph, x)), evaluate(graph, x).output)


def test_names_that_clash(tmp_path: Path) -> None:
    """Nodes and parameters share one space of names in ONNX, not here."""
    nodes = (
        Node("x", Input(shape=(3, "N", 2), dtype=DType.F32, axes="TNC"), (), Loc("net.py", 1)),
        Node("w", Linear(weight=Param("x"), bias=Param("w")), ("x",), Loc("net.py", 2)),
        Node("w_", Scale(factor=Param("w")), ("w",), Loc("net.py", 3)),
        Node("w.shape", Add(), ("w_", "w"), Loc("net.py", 4)),
    )
    arrays = {"x": np.eye(2, dtype=np.float32), "w": np.array([0.5, 2], np.float32)}
    graph = Graph("net", nodes, "w.shape", arrays)
    to_onnx(graph, tmp_path / "net.onnx")
    x = grid_drive(3, 4, 2)
    assert torch.equal(output_of(tmp_path / "net.onnx", x), evaluate(graph, x).output)
    assert load_onnx(tmp_path / "net.onnx").graph == graph


def test_a_graph_of_an_input_alone(tmp_path: Path) -> None:
    graph = chain(shape=("N", 3))
    to_onnx(graph, tmp_path / "net.onnx")
    assert torch.equal(output_of(tmp_path / "net.onnx", torch.ones(2, 3)), torch.ones(2, 3))
    assert load_onnx(tmp_path / "net.onnx").graph == graph


def test_the_model_as_text(golden: Golden) -> None:
    """What stands in the file: standard operators, and neurons as functions over time."""
    arrays = {"fc.weight": np.eye(2, dtype=np.float32)}
    lif = Lif(decay=0.5, threshold=1.0, reset=Reset.SOFT)
    encode = Encode(kind=Encoding.DIRECT, timesteps=4)
    graph = chain(encode, Linear(weight=Param("fc.weight")), lif, shape=("N", 2), parameters=arrays)
    model = onnx_model(graph)
    assert model.SerializeToString() == onnx_model(graph).SerializeToString()
    golden("network.onnx.txt", onnx.printer.to_text(model) + "\n")


def test_refusals(tmp_path: Path, golden: Golden) -> None:
    seeded = chain(Encode(kind=Encoding.BERNOULLI, timesteps=5, seed=3), shape=("N", 3))
    texts = []
    for graph, path in (
        (seeded, tmp_path / "net.onnx"),
        (chain(shape=("N", 3)), tmp_path),
        (chain(shape=("N", 3)), tmp_path / "missing" / "net.onnx"),
    ):
        with pytest.raises(CompileError) as refused:
            to_onnx(graph, path)
        texts.append(str(refused.value).replace(str(tmp_path), "FOLDER"))
    golden("to_onnx_refusals.txt", "\n".join(texts) + "\n")
    assert not list(tmp_path.iterdir())
