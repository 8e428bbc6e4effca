"""What a graph refuses when it is built, and what it answers."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings

from compiler.ir import CompileError, DType, Graph, Loc, Node, Param
from compiler.ir.ops import Add, Conv2d, Flatten, Input, Lif, Linear, parameter_names
from tests.golden import Golden
from tests.strategies import RandomNetwork, networks

INPUT = Node("x", Input(shape=(3, "N", 2), dtype=DType.SPIKE, axes="TNC"), (), Loc("net.py", 1))
FC = Node("fc", Linear(weight=Param("w")), ("x",), Loc("net.py", 2))
LIF = Node("lif", Lif(decay=0.5, threshold=1.0), ("fc",), Loc("net.py", 3))
WEIGHTS = {"w": np.ones((4, 2), np.float32)}
NODES = (INPUT, FC, LIF)


def graph() -> Graph:
    return Graph("net", NODES, "lif", WEIGHTS)


def fault(nodes: tuple[Node, ...], output: str = "lif", weight: float = 1.0) -> CompileError:
    with pytest.raises(CompileError) as caught:
        Graph("net", nodes, output, {"w": np.full((4, 2), weight, np.float32)})
    return caught.value


@pytest.mark.parametrize(
    ("nodes", "output", "part"),
    [
        ((), "lif", "the graph has no nodes"),
        (NODES, "other", "output %other is not defined"),
        ((INPUT, LIF, FC), "lif", "lif: %fc is not defined yet"),
        ((INPUT, FC, replace(LIF, inputs=("lif",))), "lif", "lif: %lif is not defined yet"),
        ((*NODES, LIF), "lif", "lif: defined 2 times"),
        ((*NODES, replace(INPUT, name="y")), "lif", "the graph has 2 inputs, must have 1"),
        ((INPUT, FC, replace(LIF, inputs=())), "lif", "lif: takes 1 inputs, got 0"),
        ((*NODES, Node("sum", Add(), ("lif",), Loc("net.py", 4))), "sum", "sum: takes 2 inputs, got 1"),
        ((INPUT, replace(FC, op=Linear(weight=Param("v"))), LIF), "lif", "fc: parameter @v is not"),
    ],
)
def test_faults(nodes: tuple[Node, ...], output: str, part: str) -> None:
    assert part in fault(nodes, output).message


@pytest.mark.parametrize("weight", [np.nan, np.inf, -np.inf])
def test_weights_are_finite(weight: float) -> None:
    assert "parameter @w holds a NaN or infinite value" in fault(NODES, weight=weight).message


def test_independent_faults_come_together(golden: Golden) -> None:
    flat = Node("flat", Flatten(), ("x",), Loc("net.py", 4))
    bad = Node("bad", Lif(decay=2.0, threshold=1.0), ("x",), Loc("net.py", 5))
    golden("two_faults.txt", f"{fault((INPUT, flat, bad), 'bad')}\n")


def test_arrays_are_copied_and_read_only() -> None:
    mine = np.ones((4, 2), np.float32)
    built = Graph("net", NODES, "lif", {"w": mine})
    mine[:] = 7
    assert built.parameters["w"].max() == 1
    with pytest.raises(ValueError, match="read-only"):
        built.parameters["w"][:] = 2


def test_equality_sees_every_part() -> None:
    assert graph() == graph()
    assert hash(graph()) == hash(graph())
    others = [
        Graph("other", NODES, "lif", WEIGHTS),
        Graph("net", NODES, "fc", WEIGHTS),
        Graph("net", NODES, "lif", {"w": np.full((4, 2), np.nextafter(np.float32(1), np.float32(2)))}),
        Graph("net", (INPUT, FC, replace(LIF, loc=Loc("net.py", 4))), "lif", WEIGHTS),
        Graph("net", (INPUT, FC, replace(LIF, op=Lif(decay=0.25, threshold=1.0))), "lif", WEIGHTS),
    ]
    assert all(other != graph() for other in others)


def test_with_nodes_drops_unread_arrays() -> None:
    lif = replace(LIF, inputs=("x",))
    assert not graph().with_nodes((INPUT, lif)).parameters


def test_answers() -> None:
    built = graph()
    assert built.input is INPUT
    assert built.timesteps == 3
    assert built.node("fc") is FC
    assert built.consumers("fc") == (LIF,)
    assert str(built.types["lif"]) == "spike[T=3, N, C=4]"


@settings(max_examples=25, deadline=None)
@given(networks(residual=True, dyadic=False))
def test_random_networks_are_chains_of_reachable_values(network: RandomNetwork) -> None:
    built = network.graph
    order = [node.name for node in built.nodes]
    assert all(order.index(a) < order.index(b) for a, b in built.digraph().edges)
    assert set(built.parameters) == {name for node in built.nodes for name in parameter_names(node.op)}
    assert any(isinstance(node.op, Conv2d) for node in built.nodes)
