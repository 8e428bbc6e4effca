"""Graphs as NIR files: they come back equal, other readers read them, and their nodes alone compute the same."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import nir
import numpy as np
import pytest
import torch
from hypothesis import given, reject, settings
from hypothesis import strategies as st

from compiler.evaluate import evaluate
from compiler.ir import Compare, CompileError, DType, Encoding, Graph, Loc, Node, Param, Reading, Reset
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
from compiler.passes import MeanLast
from frontends.from_nir import Choices, Writer, from_nir_node, load_nir
from frontends.nir_export.network import nir_graph
from frontends.nir_export.places import DIGEST, TEXT
from frontends.nir_file.nodes import NirNode
from frontends.to_nir import to_nir
from tests.frontends.nir_files import reread, round_trip
from tests.golden import Golden
from tests.spikec.graphs import small_graph
from tests.strategies import RandomNetwork, networks

REFUSED = (
    "no batch norm",
    "no maximum pooling",
    "partial last window",
    "counts the padding",
    "without a leak",
    "is 1 for",
)
SEQUENCE = Input(shape=(5, "N", 2, 6, 6), dtype=DType.F32, axes="TNCHW")


def exported(network: RandomNetwork) -> tuple[Graph, NirNode]:
    """A random network with its readout last, and its NIR; others than NIR can state are left out."""
    graph = MeanLast()(network.graph)
    try:
        root = nir_graph(graph, 1e-3).root
    except CompileError as fault:
        if not any(words in fault.message for words in REFUSED):
            raise
        reject()
    return graph, root


def graph_of(*ops: Op, arrays: dict[str, np.ndarray] | None = None, **inputs: tuple[int, ...]) -> Graph:
    """Nodes n0, n1, ... one after another; inputs names the positions that a node takes instead."""
    nodes = []
    for i, op in enumerate(ops):
        taken = inputs.get(f"n{i}", (i - 1,) if i else ())
        nodes.append(Node(f"n{i}", op, tuple(f"n{j}" for j in taken), Loc("net.py", i + 1)))
    given = {name: np.asarray(array, np.float32) for name, array in (arrays or {}).items()}
    return Graph("net", tuple(nodes), nodes[-1].name, given)


ANY = networks(
    encodings=(Encoding.DIRECT, Encoding.BERNOULLI, Encoding.LATENCY),
    late_encode=True,
    free_neurons=True,
    max_size=9,
    max_channels=8,
)
BARE = networks(
    encodings=tuple(Encoding), free_neurons=True, affine=False, pools=False, residual=True, max_size=9, max_channels=8
)
ROUNDED = networks(dyadic=False, affine=False, pools=False, residual=True, max_size=9, max_channels=8)


@given(st.one_of(ANY, BARE, ROUNDED))
@settings(max_examples=40)
def test_graphs_come_back_equal(network: RandomNetwork) -> None:
    graph, root = exported(network)
    assert from_nir_node(reread(root), "net.nir").graph == graph


def without_text(root: NirNode) -> NirNode:
    """What another program may leave of our metadata: each node's own."""
    metadata = {key: value for key, value in root.metadata.items() if key not in (TEXT, DIGEST)}
    return replace(root, metadata=metadata)


@given(st.one_of(ANY, BARE, ROUNDED))
@settings(max_examples=40)
def test_the_nodes_alone_compute_the_same(network: RandomNetwork) -> None:
    """Without the graph's text: every bit of the output the same."""
    graph, root = exported(network)
    at = next((n.name for n in graph.nodes if isinstance(n.op, Readout)), graph.output)
    core = graph.node(at).inputs[0] if at != graph.output or isinstance(graph.node(at).op, Readout) else at
    imported = from_nir_node(reread(without_text(root)), "net.nir", timesteps=graph.timesteps).graph
    given_input = torch.from_numpy(network.example)
    want = evaluate(graph, given_input, traces=(core, *encoded(graph)))
    x = given_input
    if encoded(graph):
        x = want.traces[encoded(graph)[0]]
    elif not graph.types[graph.input.name].has("T"):
        x = x.expand(graph.timesteps, *x.shape)
    assert torch.equal(evaluate(imported, x).output, want.traces[core])


def encoded(graph: Graph) -> tuple[str, ...]:
    """The encoding that stays outside of NIR."""
    return tuple(
        node.name for node in graph.nodes if isinstance(node.op, Encode) and node.op.kind is not Encoding.DIRECT
    )


def test_the_nir_package_reads_it(tmp_path: Path) -> None:
    path = tmp_path / "net.nir"
    findings = to_nir(small_graph(), path, dt=1e-3)
    graph = nir.read(path)
    kinds = {name: type(node).__name__ for name, node in graph.nodes.items()}
    assert kinds == {
        "input": "Input",
        "conv1": "Conv2d",
        "lif1": "LIF",
        "conv2": "Conv2d",
        "lif2": "IF",
        "flat": "Flatten",
        "fc": "Linear",
        "lif3": "LIF",
        "output": "Output",
    }
    lif = graph.nodes["lif1"]
    assert lif.tau.shape == (4, 8, 8)
    assert lif.tau.flat[0] == 2e-3
    assert lif.r.flat[0] == 2.0
    assert lif.metadata["compare"] == "ge"
    assert graph.nodes["lif2"].r.flat[0] == 1e3
    assert [finding.place for finding in findings] == ["encode", "lif1", "lif2", "lif3", "rate"]
    assert load_nir(path).graph == small_graph()
    assert nir.read(path).metadata["dt"] == 1e-3


@given(networks(affine=False, pools=False, groups=False, max_size=7, max_channels=4, input_scale=False))
@settings(max_examples=10)
def test_the_nir_package_checks_its_shapes(network: RandomNetwork) -> None:
    """Its type check takes every network but grouped and non-square convolutions, which are told of."""
    graph, _ = exported(network)
    root, told = nir_graph(graph, 1e-3).root, nir_graph(graph, 1e-3).findings
    if any("type_check" in finding.text for finding in told):
        reject()
    tree = package_tree(reread(root))
    assert isinstance(tree, nir.NIRGraph)


def package_tree(root: NirNode) -> object:
    """The graph as an object of the nir package, checks included."""
    members = {name: package_dict(member) for name, member in root.nodes.items()}
    return nir.NIRGraph.from_dict({"type": "NIRGraph", "nodes": members, "edges": list(root.edges)})


def package_dict(node: NirNode) -> dict[str, object]:
    fields = {name: value if isinstance(value, str) else value[()] for name, value in node.fields.items()}
    return {"type": node.kind, **fields}


def test_spikingjelly_computes_our_spikes(tmp_path: Path) -> None:
    """Hard reset, firing at the threshold, gain 1 or 1 - decay: what SpikingJelly's reader takes."""
    exchange = pytest.importorskip("spikingjelly.activation_based.nir_exchange")
    graph = small_graph(lif1={"input_scale": 0.5}, lif3={"decay": 0.75, "reset_value": 0.0})
    path = tmp_path / "net.nir"
    to_nir(graph, path, dt=1e-3)
    net = exchange.import_from_nir(path, dt=1e-3)
    x = torch.randint(0, 9, (3, 1, 8, 8), generator=torch.Generator().manual_seed(0)) / 8
    state, outputs = None, []
    for _ in range(graph.timesteps):
        y, state = net(x, state)
        outputs.append(y.detach())
    want = evaluate(graph, x, traces=("lif3",)).traces["lif3"]
    assert torch.equal(torch.stack(outputs), want)
    assert 0.0 < want.mean() < 1.0


def test_edges_add_up() -> None:
    """A sum of sums, and a value added to itself."""
    ops = (SEQUENCE, Lif(decay=0.5, threshold=0.5), Add(), Add(), Add(), Lif(decay=0.5, threshold=1.0))
    graph = graph_of(*ops, n2=(0, 1), n3=(2, 1), n4=(3, 3))
    root = nir_graph(graph, 1e-4).root
    assert ("n2", "n3") not in root.edges
    assert {edge for edge in root.edges if edge[1] == "n4"} == {("n3", "n4"), ("n1", "n4")}
    assert root.nodes["n4"].kind == "Scale"
    assert round_trip(graph) == graph
    bare = from_nir_node(reread(without_text(root)), "net.nir", timesteps=5).graph
    x = torch.randint(-8, 9, (5, 3, 2, 6, 6), generator=torch.Generator().manual_seed(1)) / 8
    assert torch.equal(evaluate(bare, x).output, evaluate(graph, x).output)


def test_arrays_that_no_node_holds(tmp_path: Path) -> None:
    """A mask of an encoding, initial potentials, and factors behind the readout."""
    rng = np.random.default_rng(0)
    arrays = {"mask": rng.random((4, 1, 3)), "start": rng.random(3), "factor": rng.random(3), "w": np.eye(3)}
    graph = graph_of(
        Input(shape=("N", 3), dtype=DType.F32, axes="NC"),
        Encode(kind=Encoding.BERNOULLI, timesteps=4, mask=Param("mask")),
        Linear(weight=Param("w")),
        Lif(decay=0.5, threshold=0.5, initial=Param("start"), reset=Reset.NONE),
        Linear(weight=Param("w")),
        Li(decay=1.0, initial=Param("start")),
        Readout(kind=Reading.MAX),
        Scale(factor=Param("factor")),
        arrays=arrays,
    )
    path = tmp_path / "net.nir"
    findings = to_nir(graph, path)
    assert [finding.place for finding in findings] == ["n1", "n3", "n5", "n6", "n7"]
    assert load_nir(path).graph == graph
    assert nir.read(path).nodes["n3"].metadata["initial"].shape == (3,)
    with pytest.raises(CompileError, match="fixes the number of time steps"):
        load_nir(path, timesteps=5)


def test_lines_become_conv1d() -> None:
    line = Input(shape=(5, "N", 2, 1, 9), dtype=DType.F32, axes="TNCHW")
    conv = Conv2d(weight=Param("w"), stride=(1, 2), padding=(0, 1))
    rng = np.random.default_rng(0)
    arrays = {"w": rng.normal(size=(3, 2, 1, 3)), "v": rng.normal(size=(4, 15))}
    graph = graph_of(line, conv, Lif(decay=0.5, threshold=0.5), Flatten(), Linear(weight=Param("v")), arrays=arrays)
    root = nir_graph(graph, 1e-4).root
    assert root.nodes["n1"].kind == "Conv1d"
    assert root.nodes["n2"].fields["tau"].shape == (3, 5)
    assert round_trip(graph) == graph
    assert isinstance(package_tree(root), nir.NIRGraph)
    bare = from_nir_node(reread(without_text(root)), "net.nir", timesteps=5).graph
    x = torch.rand((5, 3, 2, 1, 9), generator=torch.Generator().manual_seed(1))
    assert torch.equal(evaluate(bare, x).output, evaluate(graph, x).output)


def test_a_memoryless_population_is_a_threshold() -> None:
    ops = (SEQUENCE, Lif(decay=0.0, threshold=0.5, compare=Compare.GT), Li(decay=1.0, input_scale=0.5), Li(decay=0.5))
    root = nir_graph(graph_of(*ops), 0.5).root
    assert [root.nodes[name].kind for name in ("n1", "n2", "n3")] == ["Threshold", "I", "LI"]
    delayed = replace(ops[1], reset=Reset.SOFT, reset_delay=True)
    assert nir_graph(graph_of(SEQUENCE, delayed), 0.5).root.nodes["n1"].kind == "LIF"


def test_names_that_hdf5_has_not(tmp_path: Path) -> None:
    names = ("a/b", "input", "output", ".", "a_b", "ü\n", "")
    nodes = [Node("x", SEQUENCE, (), Loc("net.py", 1))]
    nodes += [
        Node(name, Lif(decay=0.5, threshold=0.5), (before.name,), Loc("net.py", 2))
        for name, before in zip(names, [nodes[0], *(Node(n, SEQUENCE, (), Loc("")) for n in names)], strict=False)
    ]
    graph = Graph("net", tuple(nodes), names[-1])
    path = tmp_path / "net.nir"
    to_nir(graph, path)
    assert load_nir(path).graph == graph
    assert sorted(nir.read(path).nodes) == sorted(
        ["input", "output", "a_b", "input_2", "output_2", "node", "a_b_2", "ü_", "node_2"]
    )


def change_weight(root: NirNode) -> NirNode:
    weight = np.array(root.nodes["fc"].fields["weight"])
    weight[0, 0] += 1.0
    changed = replace(root.nodes["fc"], fields={"weight": weight})
    return replace(root, nodes={**root.nodes, "fc": changed})


def change_threshold(root: NirNode) -> NirNode:
    lif = root.nodes["lif1"]
    changed = replace(lif, fields={**lif.fields, "v_threshold": np.asarray(lif.fields["v_threshold"]) * 2})
    return replace(root, nodes={**root.nodes, "lif1": changed})


def change_text(root: NirNode) -> NirNode:
    return replace(root, metadata={**root.metadata, TEXT: root.stated(TEXT).replace("width=0.5", "width=0.25")})


def break_text(root: NirNode) -> NirNode:
    return replace(root, metadata={**root.metadata, TEXT: root.stated(TEXT)[:-20]})


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (change_weight, "is not the one that was written"),
        (change_threshold, "another program has changed the nodes"),
        (change_text, "is not the one that was written"),
        (break_text, "cannot be read"),
    ],
)
def test_changed_files_are_read_by_their_nodes(change: Callable[[NirNode], NirNode], why: str) -> None:
    imported = from_nir_node(change(nir_graph(small_graph(), 1e-4).root), "net.nir")
    assert why in imported.findings[0].text
    assert imported.graph.timesteps == 10
    first = imported.graph.node("lif1").op
    assert isinstance(first, Lif)
    assert first.threshold == (1.0 if change is change_threshold else 0.5)
    assert (first.decay, first.compare, first.reset) == (0.5, Compare.GE, Reset.HARD)


def test_options_make_the_nodes_be_read() -> None:
    root = nir_graph(small_graph(), 1e-4).root
    for choices in (Choices(writer=Writer.OTHER), Choices(dt=5e-5)):
        decays = [
            n.op.decay for n in from_nir_node(root, "net.nir", choices=choices).graph.nodes if isinstance(n.op, Lif)
        ]
        assert decays == ([0.5, 1.0, 0.5] if choices.dt is None else [0.75, 1.0, 0.75])


def test_another_number_of_steps() -> None:
    root = nir_graph(small_graph(), 1e-4).root
    assert from_nir_node(root, "net.nir", timesteps=7).graph.timesteps == 7


def test_equal_graphs_give_equal_bytes(tmp_path: Path) -> None:
    for name in ("a.nir", "b.nir"):
        to_nir(small_graph(), tmp_path / name)
    assert (tmp_path / "a.nir").read_bytes() == (tmp_path / "b.nir").read_bytes()


def test_what_nir_has_no_node_for(golden: Golden) -> None:
    lif, rate = Lif(decay=0.5, threshold=0.5), Readout(kind=Reading.RATE)
    pool = AvgPool2d(kernel=(4, 4), stride=(4, 4), padding=(1, 1), count_include_pad=False)
    per_channel = {"d": np.array([0.5, 1.0])}
    image = Input(shape=("N", 2, 6, 6), dtype=DType.F32, axes="NCHW")
    norm = {name: np.ones(2) for name in "abcd"}
    late = Encode(kind=Encoding.LATENCY, timesteps=4)
    graphs = {
        "batch norm": graph_of(
            SEQUENCE, BatchNorm(weight=Param("a"), bias=Param("b"), mean=Param("c"), var=Param("d")), arrays=norm
        ),
        "maximum": graph_of(SEQUENCE, MaxPool2d(kernel=(2, 2), stride=(2, 2))),
        "partial window": graph_of(SEQUENCE, AvgPool2d(kernel=(4, 4), stride=(4, 4), ceil_mode=True)),
        "padding outside": graph_of(SEQUENCE, pool),
        "leak bias": graph_of(SEQUENCE, Lif(decay=1.0, threshold=1.0, leak_bias=0.5)),
        "mixed decays": graph_of(SEQUENCE, Lif(decay=Param("d"), threshold=1.0), arrays=per_channel),
        "readout inside": graph_of(SEQUENCE, lif, rate, Flatten()),
        "late encoding": graph_of(image, Scale(factor=0.5), late, lif),
        "two encodings": graph_of(image, late, late, Add(), n2=(0,), n3=(1, 2)),
    }
    lines = []
    for name, graph in graphs.items():
        with pytest.raises(CompileError) as fault:
            nir_graph(graph, 1e-4)
        lines.append(f"{name}:\n{fault.value}\n")
    golden("to_nir_refusals.txt", "\n".join(lines))


@pytest.mark.parametrize("dt", [0.0, -1e-3, float("nan"), float("inf")])
def test_steps_that_are_none(dt: float) -> None:
    with pytest.raises(CompileError, match="must be a positive number of seconds"):
        nir_graph(small_graph(), dt)


def test_a_file_that_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(CompileError, match="cannot be written"):
        to_nir(small_graph(), tmp_path / "absent" / "net.nir")
    with pytest.raises(CompileError, match="is a folder"):
        to_nir(small_graph(), tmp_path)
    assert list(tmp_path.iterdir()) == []
