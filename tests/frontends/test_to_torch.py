"""Torch modules of graphs: same values as `evaluate`, trainable, and back to a graph."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings

from compiler.evaluate import evaluate
from compiler.ir import CompileError, DType, Encoding, Graph, Loc, Node, Param, TensorType
from compiler.ir.ops import BatchNorm, Encode, Input, Linear, Op, Site
from frontends.from_torch import from_torch
from frontends.to_torch import graph_with, to_torch
from tests.strategies import RandomNetwork, networks

EVERYTHING = networks(
    dyadic=False,
    free_neurons=True,
    residual=True,
    late_encode=True,
    encodings=list(Encoding),
    max_size=9,
    max_channels=6,
    max_timesteps=5,
)


@settings(max_examples=30)
@given(EVERYTHING)
def test_evaluation_mode_gives_the_bits_of_evaluate(network: RandomNetwork) -> None:
    graph, x = network.graph, torch.from_numpy(network.example)
    module = to_torch(graph).eval()
    assert torch.equal(module(x).detach(), evaluate(graph, x).output)
    assert graph_with(module, graph) == graph


@settings(max_examples=20)
@given(EVERYTHING)
def test_a_trained_module_gives_its_graph(network: RandomNetwork) -> None:
    """After a step of training every parameter and running statistic goes back; the rest stays."""
    graph, x = network.graph, torch.from_numpy(network.example)
    module = to_torch(graph)
    optimiser = torch.optim.SGD(module.parameters(), lr=0.125)
    try:
        output = module(x)
    except ValueError:  # torch: a batch norm over a single value
        assume(False)
    assume(output.requires_grad)
    output.square().sum().backward()
    optimiser.step()
    assume(all(torch.isfinite(value).all() for value in module.state_dict().values()))
    trained = graph_with(module, graph)
    assert torch.equal(evaluate(trained, x).output, module.eval()(x).detach())
    assert trained.nodes == graph.nodes


def affine(names: tuple[str, str, str, str]) -> Graph:
    """x -> linear layer -> batch norm, whose four parameters have the names."""
    weight, bias, mean, var = (Param(name) for name in names)
    nodes = (
        Node("x", Input(shape=(3, "N", 2), dtype=DType.F32, axes="TNC"), (), Loc("net.py", 1)),
        Node("fc", Linear(weight=Param("fc.weight")), ("x",), Loc("net.py", 2)),
        Node("norm", BatchNorm(weight=weight, bias=bias, mean=mean, var=var), ("fc",), Loc("net.py", 3)),
    )
    numbers = zip(names, ([1.0, 2.0], [0.5, 0.0], [0.0, 0.0], [1.0, 1.0]), strict=True)
    return Graph("net", nodes, "norm", {"fc.weight": np.eye(2), **{name: np.array(v) for name, v in numbers}})


def test_batch_norm_follows_the_modes_of_torch() -> None:
    """Statistics over time and samples; in training mode the running ones move by a tenth."""
    graph = affine(("g", "b", "m", "v"))
    x = torch.randn(3, 4, 2, generator=torch.Generator().manual_seed(0))
    module, want = to_torch(graph), torch.nn.BatchNorm1d(2)
    want.load_state_dict({"weight": torch.tensor([1.0, 2.0]), "bias": torch.tensor([0.5, 0.0])}, strict=False)
    for _ in range(2):
        assert torch.equal(module(x).flatten(0, 1), want(x.flatten(0, 1)))
    after = graph_with(module, graph).parameters
    np.testing.assert_array_equal(after["m"], want.running_mean)
    np.testing.assert_array_equal(after["v"], want.running_var)
    assert torch.equal(module.eval()(x).flatten(0, 1), want.eval()(x.flatten(0, 1)))


@pytest.mark.parametrize(
    "names", [("training", "forward", "a.b", "a__b"), ("norm.weight", "norm.bias", "0", "norm.weight.var")]
)
def test_any_parameter_name_has_a_place(names: tuple[str, str, str, str]) -> None:
    graph = affine(names)
    module = to_torch(graph)
    assert {name for name, value in module.arrays().items() if value.requires_grad} == {"fc.weight", *names[:2]}
    assert len(module.state_dict()) == 5
    assert dict(module.named_parameters())["weights.fc__weight"] is module.arrays()["fc.weight"]
    module.load_state_dict(module.state_dict())
    assert graph_with(module, graph) == graph


def test_every_number_is_there_in_f64() -> None:
    module = to_torch(affine(("g", "b", "m", "v"))).double()
    assert module(torch.rand(3, 4, 2, dtype=torch.float64)).dtype == torch.float64


def test_copies_are_independent() -> None:
    module = to_torch(affine(("g", "b", "m", "v")))
    twin = copy.deepcopy(module)
    with torch.no_grad():
        twin.arrays()["g"].zero_()
    assert module.arrays()["g"].all()
    assert not twin(torch.rand(3, 4, 2))[..., 1].any()  # its bias is 0


def test_draws_follow_seed_and_index_of_the_sample() -> None:
    nodes = (
        Node("x", Input(shape=("N", 3), dtype=DType.F32, axes="NC"), (), Loc("net.py", 1)),
        Node("code", Encode(kind=Encoding.BERNOULLI, timesteps=4, seed=7), ("x",), Loc("net.py", 2)),
    )
    graph = Graph("net", nodes, "code")
    module, x = to_torch(graph), torch.full((5, 3), 0.5)
    assert torch.equal(module(x), evaluate(graph, x).output)
    assert torch.equal(module(x[2:], first_sample=2), module(x)[:, 2:])


@settings(max_examples=10)
@given(networks(image_input=True, residual=False, affine=False, encodings=[Encoding.DIRECT], max_size=6))
def test_the_module_is_imported_again(network: RandomNetwork) -> None:
    """`from_torch` of it computes the same output; dyadic numbers, so that sums are exact in any order."""
    graph, x = network.graph, torch.from_numpy(network.example)
    again = from_torch(to_torch(graph), x, graph.timesteps)
    torch.testing.assert_close(evaluate(again, x).output, evaluate(graph, x).output)


@dataclass(frozen=True, slots=True, kw_only=True)
class Quiet(Op):
    """An op that torch does not know."""

    def infer(self, inputs: tuple[TensorType, ...], site: Site) -> TensorType:
        return inputs[0]


def test_refusals() -> None:
    nodes = (
        Node("x", Input(shape=("N", 3), dtype=DType.F32, axes="NC"), (), Loc("net.py", 1)),
        Node("quiet", Quiet(), ("x",), Loc("net.py", 2)),
    )
    with pytest.raises(CompileError, match="quiet: no rule to make a torch module of Quiet"):
        to_torch(Graph("net", nodes, "quiet"))
    graph, other = affine(("g", "b", "m", "v")), affine(("g", "b", "m", "w"))
    with pytest.raises(CompileError, match="the module was made from another graph: its parameters differ"):
        graph_with(to_torch(graph), other)
