"""NIR files that no framework wrote just so: options, sums, subgraphs, shapes, and numbers without rounding."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import nir
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from compiler.evaluate import evaluate
from compiler.ir import Compare, Graph, Reset
from compiler.ir.ops import Add, AvgPool2d, Conv2d, Li, Lif, Scale
from frontends.findings import Ground
from frontends.from_nir import Choices, Writer, from_nir_node, load_nir
from frontends.nir_file.nodes import NirNode
from tests.frontends.nir_files import chain, lif, write_graph


def op(graph: Graph, name: str, kind: type) -> Any:
    """The op of a node, which is of that kind."""
    found = graph.node(name).op
    assert isinstance(found, kind)
    return found


def test_edges_into_one_node_are_a_sum(tmp_path: Path) -> None:
    """The order of nodes follows the edges, not the names."""
    nodes = {
        "z": nir.Input(np.array([3])),
        "y": nir.Linear(np.eye(3, dtype=np.float32)),
        "x": nir.Scale(np.full(3, 0.5)),
        "a": lif((3,), tau=2e-4),
        "b": nir.Output(np.array([3])),
    }
    edges = [("a", "b"), ("x", "a"), ("y", "a"), ("z", "a"), ("y", "x"), ("z", "y")]
    graph = load_nir(write_graph(tmp_path / "net.nir", nodes, edges), timesteps=4).graph
    assert [node.name for node in graph.nodes] == ["z", "y", "x", "a.sum", "a.sum.2", "a"]
    assert sum(isinstance(node.op, Add) for node in graph.nodes) == 2
    x = torch.randint(0, 9, (4, 2, 3), generator=torch.Generator().manual_seed(0)) / 8
    v, want = torch.zeros(2, 3), []
    for step in x:
        v = 0.5 * v + 0.5 * (2.5 * step)
        want.append((v > 1.0).float())
        v = torch.where(v > 1.0, 0.0, v)
    assert torch.equal(evaluate(graph, x).output, torch.stack(want))


def subgraph(depth: int) -> nir.NIRGraph:
    inner = lif((3,)) if not depth else subgraph(depth - 1)
    nodes = {"in": nir.Input(np.array([3])), "core": inner, "out": nir.Output(np.array([3]))}
    return nir.NIRGraph(nodes, [("in", "core"), ("core", "out"), ("in", "out")], type_check=False)


def test_subgraphs_are_put_in_place(tmp_path: Path) -> None:
    graph = load_nir(chain(tmp_path / "net.nir", (3,), lif((3,)), subgraph(2), lif((3,)))).graph
    names = [node.name for node in graph.nodes]
    assert "n1/core/core/core" in names
    assert sum(isinstance(node.op, Add) for node in graph.nodes) == 3


def test_a_single_node(tmp_path: Path) -> None:
    path = tmp_path / "net.nir"
    nir.write(path, lif((4,)), compression=None)
    imported = load_nir(path)
    assert imported.graph.types[imported.graph.output].shape == (10, "N", 4)
    assert sum("is taken as the" in finding.text for finding in imported.findings) == 2


def test_a_shape_that_the_file_does_not_have(tmp_path: Path) -> None:
    conv = nir.Conv2d((6, 7), np.ones((2, 3, 3, 3), np.float32), 1, 0, 1, 1, np.zeros(2, np.float32))
    nodes = {"conv": conv, "lif": lif()}
    path = write_graph(tmp_path / "net.nir", nodes, [("conv", "lif")])
    assert load_nir(path).graph.input.op.shape == (10, "N", 3, 6, 7)
    pool = nir.AvgPool2d(np.array([2, 2]), np.array([2, 2]), np.array([0, 0]))
    path = write_graph(tmp_path / "net.nir", {"pool": pool, "lif": lif()}, [("pool", "lif")])
    assert load_nir(path, input_shape=(1, 4, 4)).graph.input.op.shape == (10, "N", 1, 4, 4)


def test_metadata_of_other_programs(tmp_path: Path) -> None:
    one = lif((2,))
    one.metadata = {"reset": "soft", "compare": "ge", "initial": 0.25, "detach_reset": True}
    nodes = {"input": nir.Input(np.array([2])), "a": one, "output": nir.Output(np.array([2]))}
    path = write_graph(tmp_path / "net.nir", nodes, [("input", "a"), ("a", "output")], dt=1e-3)
    imported = load_nir(path)
    neuron = op(imported.graph, "a", Lif)
    assert (neuron.decay, neuron.reset, neuron.compare) == (0.5, Reset.SOFT, Compare.GE)
    assert (neuron.initial, neuron.detach_reset) == (0.25, True)
    assert "dt is 0.001 s" in [finding.text for finding in imported.findings if finding.ground is Ground.READ]


def test_what_is_stated_is_not_assumed(tmp_path: Path) -> None:
    path = chain(tmp_path / "net.nir", (2,), lif((2,)), output=(2,))
    assumed = [f.text for f in load_nir(path).findings if f.ground is Ground.ASSUMED]
    assert len(assumed) == 6  # writer, dt, comparison, reset, steps, surrogate
    imported = load_nir(path, timesteps=5, writer=Writer.OTHER, dt=1e-3, reset=Reset.SOFT, compare=Compare.GE)
    assert [f.text for f in imported.findings if f.ground is Ground.ASSUMED] == [
        "the surrogate derivative is a rectangle where a neuron's metadata name no other; only training uses it"
    ]
    neuron = op(imported.graph, "n0", Lif)
    assert (neuron.decay, neuron.reset, neuron.compare) == (0.5, Reset.SOFT, Compare.GE)


def test_layers(tmp_path: Path) -> None:
    weight = np.arange(4 * 3 * 3, dtype=np.float64).reshape(4, 1, 3, 3) / 3
    nodes = [
        nir.Conv2d((8, 8), weight, np.array([2, 1]), "valid", 1, 2, np.zeros(4)),
        nir.SumPool2d(np.array([2, 2]), np.array([1, 2]), np.array([0, 1])),
        nir.Scale(np.broadcast_to(np.arange(4.0).reshape(4, 1, 1), (4, 2, 4))),
        nir.Threshold(np.full((4, 2, 4), 0.5)),
        nir.I(np.full((4, 2, 4), 5e3)),
        nir.LI(*(np.full((4, 2, 4), value) for value in (2e-4, 2.0, 0.25))),
    ]
    imported = load_nir(chain(tmp_path / "net.nir", (2, 8, 8), *nodes))
    graph = imported.graph
    conv = op(graph, "n0", Conv2d)
    assert (conv.stride, conv.padding, conv.groups, conv.bias) == ((2, 1), (0, 0), 2, None)
    assert any("rounded to f32" in finding.text for finding in imported.findings)
    pool = op(graph, "n1.average", AvgPool2d)
    assert (pool.kernel, pool.stride, pool.padding) == ((2, 2), (1, 2), (0, 1))
    assert op(graph, "n1", Scale).factor == 4.0
    np.testing.assert_array_equal(graph.parameters["n2.factor"], np.arange(4, dtype=np.float32))
    assert op(graph, "n3", Lif).decay == 0.0
    assert (op(graph, "n4", Li).decay, op(graph, "n4", Li).input_scale) == (1.0, 0.5)
    last = op(graph, "n5", Li)
    assert (last.decay, last.input_scale, last.leak_bias) == (0.5, 1.0, 0.125)


def test_padding_same(tmp_path: Path) -> None:
    ones = np.ones((1, 1, 3, 5), np.float32)
    conv = nir.Conv2d((8, 8), ones, 1, "same", 1, 1, np.zeros(1, np.float32))
    assert op(load_nir(chain(tmp_path / "net.nir", (1, 8, 8), conv)).graph, "n0", Conv2d).padding == (1, 2)


def test_axes_of_samples(tmp_path: Path) -> None:
    """Shapes that writers leave samples or steps in, of the input, the output and the parameters."""
    first = nir.Affine(np.ones((4, 6), np.float32), np.ones(4, np.float32))
    nodes = [first, lif((1, 4), v_threshold=np.array([[1.0, 2.0, 3.0, 4.0]]))]
    imported = load_nir(chain(tmp_path / "net.nir", (20, 8, 6), *nodes, output=(20, 8, 4)), writer=Writer.NORSE)
    assert imported.graph.input.op.shape == (10, "N", 6)
    np.testing.assert_array_equal(imported.graph.parameters["n1.threshold"], [1, 2, 3, 4])
    assert any("has axes of samples or steps" in finding.text for finding in imported.findings)


def one_neuron(kind: str, **fields: Any) -> NirNode:
    ends = {"input": NirNode(kind="Input", fields={"shape": np.array([1])}), "output": NirNode(kind="Output")}
    nodes = {**ends, "a": NirNode(kind=kind, fields={name: np.asarray(value) for name, value in fields.items()})}
    return NirNode(kind="NIRGraph", nodes=nodes, edges=tuple(pairwise(("input", "a", "output"))))


def neuron_of(root: NirNode, **choices: Any) -> Any:
    return from_nir_node(root, "net.nir", choices=Choices(**choices)).graph.node("a").op


STEPS = st.sampled_from([1e-4, 1e-3, 0.002, 5e-3, 1 / 3])


@given(st.integers(0, 9999), STEPS, st.booleans())
def test_short_decays_lose_nothing(digits: int, dt: float, is_single: bool) -> None:
    """Decays of four digits come back as they were, from 64-bit and from 32-bit files."""
    decay, kind = digits / 10_000, np.float32 if is_single else np.float64
    tau = kind(dt) / (kind(1.0) - kind(decay))
    values = {"tau": tau, "r": kind(1.0), "v_leak": kind(0.0), "v_threshold": kind(1.0), "v_reset": kind(0.0)}
    neuron = neuron_of(one_neuron("LIF", **values), writer=Writer.OTHER, dt=dt)
    assert np.float32(neuron.decay) == np.float32(decay)
    assert neuron.input_scale == pytest.approx(1 - decay, rel=1e-6)


@given(st.integers(2, 100_000), STEPS, st.booleans())
def test_short_times_of_spikingjelly_lose_nothing(hundredths: int, dt: float, decays_input: bool) -> None:
    tau = (100 + hundredths) / 100
    root = one_neuron(
        "LIF",
        **{
            name: [value]
            for name, value in {"tau": tau * dt, "v_leak": 0.0, "v_threshold": 1.0, "v_reset": 0.0}.items()
        },
        r=[1.0 if decays_input else tau],
    )
    neuron = neuron_of(root, writer=Writer.SPIKINGJELLY, dt=dt)
    assert neuron.decay == 1.0 - 1.0 / tau
    assert neuron.input_scale == (1.0 / tau if decays_input else 1.0)


def test_a_neuron_that_keeps_everything() -> None:
    """beta 1 in snnTorch: both tau and r are infinite."""
    values = {name: np.float32(value) for name, value in {"v_leak": 0, "v_threshold": 1, "v_reset": 0}.items()}
    root = one_neuron("LIF", tau=np.float32("inf"), r=np.float32("inf"), **values)
    neuron = neuron_of(root, writer=Writer.SNNTORCH)
    assert (neuron.decay, neuron.input_scale, neuron.reset_delay) == (1.0, 1.0, True)
