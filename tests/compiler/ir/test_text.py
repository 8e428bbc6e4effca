"""The text form: parsing inverts printing, and every fault has its message."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from compiler.ir import (
    CompileError,
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
    OPS,
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
from compiler.ir.text import parse_graph, print_graph
from tests.golden import Golden
from tests.strategies import RandomNetwork, networks

SMALL = """graph "small" {
  %x = input(shape=(3, N, 2), dtype=spike, axes=TNC)
  %fc = linear(%x, weight=@w)
  %lif = lif(%fc, decay=0.5, threshold=1)
  return %lif
}
"""
HERE = Loc("test_text.py")
ARRAYS = {"w": np.ones((4, 2), np.float32)}


def every_op() -> Graph:
    """A network that holds each op once at least."""
    chain: list[tuple[str, Op]] = [
        ("x", Input(shape=("N", 2, 8, 8), dtype=DType.F32, axes="NCHW")),
        ("encode", Encode(kind=Encoding.BERNOULLI, timesteps=4, seed=7)),
        ("conv", Conv2d(weight=Param("conv.weight"), padding=(1, 1))),
        ("bn", BatchNorm(weight=Param("c"), bias=Param("c"), mean=Param("c"), var=Param("c"), eps=1e-3)),
        ("scale", Scale(factor=0.1)),
        ("lif", Lif(decay=Param("c"), threshold=0.5, reset=Reset.SOFT, surrogate=Surrogate(width=1e-7))),
        ("sum", Add()),
        ("avg", AvgPool2d(kernel=(2, 2), stride=(2, 2), count_include_pad=False)),
        ("if/1", Lif(decay=1.0, threshold=Param("th of if"))),
        ("max", MaxPool2d(kernel=(3, 3), stride=(1, 2), padding=(1, 0), ceil_mode=True)),
        ("flat", Flatten()),
        ("fc", Linear(weight=Param("fc.weight"), bias=Param("fc.bias"))),
        ("li", Li(decay=0.75, leak_bias=-0.0)),
        ("read", Readout(kind=Reading.MAX)),
    ]
    names = [name for name, _ in chain]
    nodes = []
    for i, (name, op) in enumerate(chain):
        inputs = (names[i - 1], "encode") if isinstance(op, Add) else tuple(names[i - 1 : i][:i])
        nodes.append(Node(name, op, inputs, Loc("nets/every op.py", 10 + i)))
    ones = {"c": 2, "th of if": 2, "fc.bias": 3}
    arrays = {name: np.full(size, 0.5, np.float32) for name, size in ones.items()}
    shapes = {"conv.weight": (2, 2, 3, 3), "fc.weight": (3, 16)}
    arrays |= {name: np.ones(shape, np.float32) for name, shape in shapes.items()}
    return Graph("every op", tuple(nodes), "read", arrays)


def lif_graph(lif: Lif, *, names: tuple[str, str] = ("x", "y"), title: str = "g", loc: Loc = HERE) -> Graph:
    source = Input(shape=(2, "N", 1), dtype=DType.F32, axes="TNC")
    arrays = {value.name: np.ones(1, np.float32) for value in (lif.decay,) if isinstance(value, Param)}
    nodes = (Node(names[0], source, (), loc), Node(names[1], lif, names[:1], loc))
    return Graph(title, nodes, names[1], arrays)


def round_trip(graph: Graph) -> Graph:
    return parse_graph(print_graph(graph), graph.parameters)


def failure(text: str) -> CompileError:
    with pytest.raises(CompileError) as caught:
        parse_graph(text, ARRAYS, file="net.txt")
    return caught.value


@settings(max_examples=60, deadline=None)
@given(
    network=networks(dyadic=False, free_neurons=True, late_encode=True, encodings=list(Encoding), max_size=9),
    residual=networks(residual=True, max_size=7, blocks=(0, 1)),
)
def test_networks_round_trip(network: RandomNetwork, residual: RandomNetwork) -> None:
    for graph in (network.graph, residual.graph):
        assert round_trip(graph) == graph
        assert print_graph(round_trip(graph)) == print_graph(graph)


FINITE = st.floats(-1e38, 1e38, width=64) | st.integers(-(2**70), 2**70)


@settings(max_examples=100, deadline=None)
@given(
    numbers=st.tuples(FINITE, FINITE, FINITE, FINITE),
    decay=st.floats(0, 1) | st.sampled_from([0, 1, Param("d"), Param("-"), Param("")]),
    kind=st.sampled_from(SurrogateKind),
)
@example(numbers=(-0.0, 0.0, 5e-324, 1e16), decay=0.1, kind=SurrogateKind.ATAN)
def test_numbers_round_trip(
    numbers: tuple[float, float, float, float], decay: float | Param, kind: SurrogateKind
) -> None:
    threshold, rest, scale, offset = numbers
    surrogate = Surrogate(kind=kind, scale=scale, offset=offset)
    lif = Lif(decay=decay, threshold=threshold, reset_value=rest, surrogate=surrogate)
    graph = lif_graph(lif)
    assert round_trip(graph) == graph


TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=8) | st.sampled_from(
    ["none", "true", "input", "1", '"', "\\", "a b", "}", "\n", "%", "@", "é"]
)


@settings(max_examples=100, deadline=None)
@given(names=st.lists(TEXT, min_size=2, max_size=2, unique=True), title=TEXT, file=TEXT, line=st.integers(0))
def test_any_name_round_trips(names: list[str], title: str, file: str, line: int) -> None:
    lif = Lif(decay=Param(names[0]), threshold=1.0)
    graph = lif_graph(lif, names=(names[0], names[1]), title=title, loc=Loc(file, line))
    assert round_trip(graph) == graph


def test_symbolic_extents_round_trip() -> None:
    graph = parse_graph(SMALL, ARRAYS)
    for extent in ("N", "batch", "two words", "3", 5):
        node = replace(graph.input, op=Input(shape=(3, extent, 2), dtype=DType.SPIKE, axes="TNC"))
        resized = graph.with_nodes((node, *graph.nodes[1:]))
        assert round_trip(resized) == resized


def test_every_op_prints(golden: Golden) -> None:
    graph = every_op()
    assert {type(node.op) for node in graph.nodes} == set(OPS)
    assert round_trip(graph) == graph
    golden("every_op.txt", print_graph(graph))


def test_defaults_types_and_places_may_be_left_out() -> None:
    graph = parse_graph(SMALL, ARRAYS, file="net.txt")
    assert graph.node("lif").op == Lif(decay=0.5, threshold=1.0)
    assert graph.node("lif").loc == Loc("net.txt", 4)
    assert parse_graph(" ".join(SMALL.split()), ARRAYS).types == graph.types


FAULTS = [
    ("linear(", "conv3d("),
    ("linear(", "linear "),
    ("weight=@w", "weight=@w, dilation=2"),
    ("weight=@w", "bias=@w"),
    ("weight=@w", "weight=0.5"),
    ("weight=@w", "weight=@w, weight=@w"),
    ("weight=@w", "weight=@"),
    ("weight=@w", "weight=@v"),
    ("%x, weight", "%y, weight"),
    ("%x, weight", "%x weight"),
    ("%x, weight", "%x, %x, weight"),
    ("%fc =", "%x ="),
    ("decay=0.5", "decay=0.5.1"),
    ("decay=0.5", "decay=1_0"),
    ("decay=0.5", "decay=1e999"),
    ("decay=0.5", "decay=nan"),
    ("decay=0.5", "decay=1.5"),
    ("decay=0.5", "decay=0.5, reset=medium"),
    ("decay=0.5", "decay=0.5, reset_delay=1"),
    ("decay=0.5", "decay=0.5, surrogate=surrogate(kind=flat)"),
    ("decay=0.5", "decay=0.5, surrogate=surrogate(width=1, height=2)"),
    ("shape=(3, N, 2)", "shape=(3, N, 2.0)"),
    ("shape=(3, N, 2)", "shape=3"),
    ("shape=(3, N, 2)", "shape=(3 N 2)"),
    ("axes=TNC", "axes=TNCC"),
    ("threshold=1)", "threshold=1) : spike[T=3, N, C=5]"),
    ("threshold=1)", "threshold=1) : spike[T=3, N, C=4.5]"),
    ("threshold=1)", "threshold=1) : spike[T=3, N, D=4]"),
    ("threshold=1)", "threshold=1) : bits[T=3, N, C=4]"),
    ("threshold=1)", 'threshold=1) loc("a.py":x)'),
    ("threshold=1)", 'threshold=1) loc("a.py)'),
    ("threshold=1)", 'threshold=1) loc("a\\q.py")'),
    ("threshold=1)", 'threshold=1) loc("\\ud800")'),
    ("return %lif", "return %out"),
    ("return %lif", "lif"),
    ("return %lif\n}", "return %lif"),
    ("}\n", "}\nmore"),
    ("graph", "network"),
    ('"small"', "small"),
    ("  %fc", "  $fc"),
]


def test_messages(golden: Golden) -> None:
    """What each fault of the text says, line by line."""
    report = []
    for old, new in FAULTS:
        assert SMALL.count(old) == 1
        report.append(f"{old!r} -> {new!r}\n{failure(SMALL.replace(old, new))}\n")
    golden("text_messages.txt", "\n".join(report))


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_damaged_text_never_crashes(data: st.DataObject) -> None:
    graph = every_op()
    text = print_graph(graph)
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(text) - 1))
        size = data.draw(st.integers(0, 3))
        insert = data.draw(st.text('%@"()[]{},=:.-19e\\\nnN\x00é', max_size=3))
        text = text[:at] + insert + text[at + size :]
    try:
        parsed = parse_graph(text, graph.parameters)
    except CompileError:
        return
    assert round_trip(parsed) == parsed
