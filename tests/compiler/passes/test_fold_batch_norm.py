"""Folding: each neuron's input within rounding, and flips only where the membrane is that close to threshold."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, note, settings
from torch import Tensor

from compiler.evaluate import evaluate
from compiler.ir import CompileError, DType, Encoding, Graph, Loc, Node, Number, Param
from compiler.ir.ops import Add, BatchNorm, Conv2d, Encode, Input, Li, Lif, Linear, Scale
from compiler.passes import FoldBatchNorm
from tests.strategies import RandomNetwork, networks

HALF_ULP = 2.0**-24


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(networks(dyadic=False, free_neurons=True))
def test_each_layer_is_within_rounding(network: RandomNetwork) -> None:
    """Each pair of layer and neuron, on the original network's own input spikes.

    An f32 dot product of n terms is within n * u * sum |w| |x| of the exact one; folding rounds weight and
    bias once more each, batch norm rounds five times. Both sides together: 2 * (n + 10) * u * magnitude.
    """
    graph = network.graph
    folded = FoldBatchNorm()(graph)
    assert not any(isinstance(node.op, BatchNorm | Scale) for node in folded.nodes)
    names = [node.name for node in graph.nodes]
    original = evaluate(graph, torch.from_numpy(network.example), traces=names)
    for node in folded.nodes:
        if not isinstance(node.op, Lif | Li):
            continue
        source = _weighted_before(folded, node)
        if source is None or not _changed(graph, folded, node, source):
            continue
        given_x = original.traces[source.inputs[0]]
        part = _between(folded, source, node, given_x)
        got = evaluate(part, given_x, traces=[node.name])
        bound = _bound(graph, folded, source, node, given_x)
        want_m, got_m = original.membranes[node.name], got.membranes[node.name]
        _check(graph, node, want_m, got_m, original.traces[node.name], got.traces[node.name], bound)


def _check(
    graph: Graph, node: Node, want_m: Tensor, got_m: Tensor, want_s: Tensor, got_s: Tensor, bound: float
) -> None:
    """Up to and with the first flip of a neuron its membrane is within the bound summed over the steps."""
    flipped = (want_s != got_s) if isinstance(node.op, Lif) else torch.zeros_like(want_m, dtype=torch.bool)
    clean = torch.cumsum(flipped.int(), 0) - flipped.int() == 0  # no flip before this step
    steps = torch.arange(1, len(want_m) + 1).reshape(-1, *(1,) * (want_m.ndim - 1))
    allowed = bound * steps
    error = ((want_m - got_m).abs() - allowed).masked_fill(~clean, -1.0)
    note(f"{node.name}: {int(flipped.sum())} flips, bound {bound:.3g}")
    assert float(error.max()) <= 0.0
    if isinstance(node.op, Lif):
        threshold = _number(graph, node.op.threshold, want_m.ndim - 1)
        far = (want_m - threshold).abs() > allowed
        assert not bool((flipped & clean & far).any())


def _bound(graph: Graph, folded: Graph, source: Node, node: Node, x: Tensor) -> float:
    """Largest rounding of one neuron input, before and after folding, with the neuron's own five roundings."""
    op, new = graph.node(source.name).op, source.op
    assert isinstance(op, Conv2d | Linear)
    assert isinstance(new, Conv2d | Linear)
    neuron = node.op
    assert isinstance(neuron, Lif | Li)
    scale = float(np.abs(_array(folded, neuron.input_scale)).max())
    leak = float(np.abs(_array(folded, neuron.leak_bias)).max())
    weight = np.abs(folded.parameters[new.weight.name])
    terms = int(np.prod(weight.shape[1:])) + 1
    norm = next((n.op for n in graph.nodes if isinstance(n.op, BatchNorm) and n.inputs[0] == source.name), None)
    shift = 0.0
    if norm is not None:  # x - mean cancels, so the mean's own magnitude counts
        gain = graph.parameters[norm.weight.name] / np.sqrt(graph.parameters[norm.var.name] + norm.eps)
        shift = float(np.abs(graph.parameters[norm.mean.name] * gain).max())
    bias = float(np.abs(folded.parameters[new.bias.name]).max()) if new.bias is not None else 0.0
    magnitude = weight.reshape(len(weight), -1).sum(1).max() * float(x.abs().max()) + bias + shift
    before = [n for n in graph.nodes if isinstance(n.op, BatchNorm | Scale)]
    offsets = 0.0
    for affine in before:
        if isinstance(affine.op, BatchNorm):
            offsets = max(offsets, float(np.abs(graph.parameters[affine.op.mean.name]).max()) * scale)
    membrane = 1.0 + float(np.abs(_array(folded, neuron.initial)).max())
    total = (magnitude + offsets) * max(scale, 1.0) + leak + membrane
    return 2 * (terms + 10 + 50) * HALF_ULP * total  # 50: windows of at most 49 averaged in between


def _changed(graph: Graph, folded: Graph, node: Node, source: Node) -> bool:
    return graph.node(node.name).op != node.op or graph.node(source.name).op != source.op


def _weighted_before(graph: Graph, node: Node) -> Node | None:
    """The convolution or linear layer that feeds a neuron, through pooling at most."""
    current = graph.node(node.inputs[0])
    while not isinstance(current.op, Conv2d | Linear):
        if isinstance(current.op, Lif | Input | Encode | Add):
            return None
        current = graph.node(current.inputs[0])
    return current


def _between(graph: Graph, source: Node, node: Node, x: Tensor) -> Graph:
    """The part of a graph from a layer to a neuron, as a network of its own."""
    kind = graph.types[source.inputs[0]]
    given_x = Node("given", Input(shape=kind.shape, dtype=DType.F32, axes=kind.axes), (), node.loc)
    nodes: list[Node] = []
    current = node
    while current.name != source.name:
        nodes.insert(0, current)
        current = graph.node(current.inputs[0])
    first = Node(source.name, source.op, ("given",), source.loc)
    return graph.with_nodes((given_x, first, *nodes), output=node.name)


def _array(graph: Graph, value: Number) -> np.ndarray:  # type: ignore[type-arg]
    return graph.parameters[value.name] if isinstance(value, Param) else np.array([value])


def _number(graph: Graph, value: Number, ndim: int) -> Tensor:
    array = torch.from_numpy(np.array(_array(graph, value), np.float32))
    return array if array.numel() == 1 else array.reshape(-1, *(1,) * (ndim - 2))


def test_an_affine_node_without_a_neighbour_is_refused() -> None:
    loc = Loc("net.py", 4)
    nodes = (
        Node("x", Input(shape=("N", 1, 4, 4), dtype=DType.F32, axes="NCHW"), (), loc),
        Node("e", Encode(kind=Encoding.DIRECT, timesteps=2), ("x",), loc),
        Node("double", Scale(factor=2.0), ("e",), loc),
        Node("c", Conv2d(weight=Param("w")), ("double",), loc),
        Node("s", Lif(decay=0.5, threshold=1.0), ("c",), loc),
    )
    graph = Graph("g", nodes, "s", {"w": np.ones((1, 1, 2, 2), np.float32)})
    with pytest.raises(CompileError, match=r"net.py:4: error: double: Scale stands neither after"):
        FoldBatchNorm()(graph)


def test_hand_computed_fold() -> None:
    """gain = 3 / sqrt(3 + 1) = 1.5; w' = 2 * 1.5; b' = (1 - 4) * 1.5 + 0.5."""
    loc = Loc("net.py", 4)
    nodes = (
        Node("x", Input(shape=("N", 1), dtype=DType.F32, axes="NC"), (), loc),
        Node("e", Encode(kind=Encoding.DIRECT, timesteps=2), ("x",), loc),
        Node("fc", Linear(weight=Param("w"), bias=Param("b")), ("e",), loc),
        Node(
            "bn",
            BatchNorm(weight=Param("g"), bias=Param("h"), mean=Param("m"), var=Param("v"), eps=1.0),
            ("fc",),
            loc,
        ),
        Node("s", Lif(decay=0.5, threshold=1.0), ("bn",), loc),
    )
    values = {"w": [[2.0]], "b": [1.0], "g": [3.0], "h": [0.5], "m": [4.0], "v": [3.0]}
    graph = Graph("g", nodes, "s", {name: np.array(value, np.float32) for name, value in values.items()})
    folded = FoldBatchNorm()(graph)
    assert [node.name for node in folded.nodes] == ["x", "e", "fc", "s"]
    assert folded.parameters["fc.folded_weight"].tolist() == [[3.0]]
    assert folded.parameters["fc.folded_bias"].tolist() == [-4.0]
