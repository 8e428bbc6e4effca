"""A network without its encoding computes on the encoded input what it computed with it."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings

from compiler.evaluate import evaluate
from compiler.ir import CompileError, DType, Encoding, Graph, Loc, Node
from compiler.ir.ops import Add, Encode, Input
from compiler.passes import DropEncode
from tests.strategies import RandomNetwork, networks


@settings(max_examples=30, deadline=None)
@given(networks(image_input=True, encodings=list(Encoding), free_neurons=True))
def test_dropping_keeps_every_value(network: RandomNetwork) -> None:
    graph, x = network.graph, torch.from_numpy(network.example)
    encode = next(node for node in graph.nodes if isinstance(node.op, Encode))
    want = evaluate(graph, x, traces=[encode.name])
    dropped = DropEncode()(graph)
    assert dropped.types[dropped.input.name] == graph.types[encode.name]
    assert torch.equal(evaluate(dropped, want.traces[encode.name]).output, want.output)
    assert DropEncode()(dropped) is dropped


def test_an_input_with_another_reader_is_refused() -> None:
    nodes = (
        Node("x", Input(shape=("N", 2), dtype=DType.F32, axes="NC"), (), Loc("net", 1)),
        Node("code", Encode(kind=Encoding.DIRECT, timesteps=3), ("x",), Loc("net", 2)),
        Node("twice", Add(), ("x", "x"), Loc("net", 3)),
    )
    with pytest.raises(CompileError, match="code: is not the only one that reads the input"):
        DropEncode()(Graph("net", nodes, "code"))
