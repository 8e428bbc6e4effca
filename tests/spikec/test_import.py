"""`spikec import`: files and modules become networks, and what is assumed is said."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from importlib.machinery import ModuleSpec
from pathlib import Path

import numpy as np
import pytest

from compiler.ir import Compare, Graph, Reset
from compiler.ir.file import load_graph
from compiler.ir.ops import Lif
from frontends.nir_file.nodes import NirNode
from frontends.nir_file.write import write_nir
from frontends.to_nir import to_nir
from spikec.models import load_model
from tests.golden import Golden
from tests.spikec.command import refusal, result, spikec
from tests.spikec.conftest import WriteModule
from tests.spikec.graphs import STEPS, saved, small_graph

NETWORK = """
import torch
from torch import nn
from spikec.nn import LIF


class Two(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc, self.lif = nn.Linear(6, 4), LIF(threshold=0.5)

    def forward(self, x):
        spikes = self.lif(self.fc(x))
        return spikes, spikes.mean(0)
"""


def plain(tau: float = 2e-3, kind: str = "LIF") -> NirNode:
    """A NIR graph that says nothing but NIR."""
    numbers = {"tau": tau, "r": 1.0, "v_leak": 0.0, "v_threshold": 1.0, "v_reset": 0.0}
    nodes = {
        "input": NirNode(kind="Input", fields={"shape": np.array([6])}),
        "fc": NirNode(kind="Linear", fields={"weight": np.ones((4, 6), np.float32)}),
        "lif": NirNode(kind=kind, fields={name: np.full(4, value) for name, value in numbers.items()}),
        "output": NirNode(kind="Output", fields={"shape": np.array([4])}),
    }
    return NirNode(kind="NIRGraph", nodes=nodes, edges=(("input", "fc"), ("fc", "lif"), ("lif", "output")))


def neuron(graph: Graph) -> Lif:
    (op,) = (node.op for node in graph.nodes if isinstance(node.op, Lif))
    return op


def test_a_nir_file_becomes_a_network(workplace: Path) -> None:
    write_nir(plain(), Path("net.nir"))
    told = result("import", "net.nir", "-o", "net.spk", "--dt", "1e-3", "--timesteps", "6")
    graph = load_graph(Path("net.spk"))
    assert told == {
        "graph": "net",
        "file": "net.spk",
        "input": "f32[T=6, N, C=6]",
        "output": "spike[T=6, N, C=4]",
        "timesteps": 6,
        "nodes": 3,
        "neuron_groups": 1,
        "parameters": 24,
        "digest_sha256": graph.digest(),
        "findings": told["findings"],
    }
    assert {(f["place"], f["ground"]) for f in told["findings"]} == {("net.nir", "assumed"), ("lif", "read")}
    assert neuron(graph).decay == 0.5


def test_options_of_nir_files(workplace: Path) -> None:
    write_nir(plain(tau=2.0), Path("net.nir"))
    stated = ("--writer", "sinabs", "--reset", "soft", "--compare", "gt", "--no-norm-input")
    told = result("import", "net.nir", "-o", "net.spk", *stated)
    op = neuron(load_graph(Path("net.spk")))
    assert (op.reset, op.compare, op.input_scale) == (Reset.SOFT, Compare.GT, 1.0)
    assert op.decay == pytest.approx(np.exp(-0.5))
    assert not any("reset" in f["text"] and f["ground"] == "assumed" for f in told["findings"])


def test_the_table(workplace: Path, golden: Golden, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    write_nir(plain(), Path("net.nir"))
    outcome = spikec("import", "net.nir")
    assert (outcome.code, outcome.err) == (0, "")
    golden("import_table.txt", outcome.out)
    assert not Path("net.spk").exists()


def test_other_commands_take_nir_files_and_tell(workplace: Path) -> None:
    to_nir(small_graph(), Path("own.nir"))
    assert result("compile", "own.nir", "-o", "out/n.h2l")["layers"] == 3
    assert load_model("own.nir").graph == small_graph()
    write_nir(plain(), Path("net.nir"))
    outcome = spikec("report", "net.nir", "--json")
    assert "net.nir: assumed: dt is 0.0001 s (usual in NIR)" in outcome.err


def test_networks_that_are_files_already(workplace: Path) -> None:
    saved(Path("net.spk"))
    told = result("import", "net.spk", "-o", "again.spk")
    assert (told["timesteps"], told["findings"]) == (STEPS, [])
    assert Path("again.spk").read_bytes() == Path("net.spk").read_bytes()


def test_an_onnx_file_comes_back(workplace: Path) -> None:
    pytest.importorskip("onnx")
    saved(Path("net.spk"))
    result("export", "net.spk", "-o", "net.onnx")
    result("import", "net.onnx", "-o", "again.spk")
    assert load_graph(Path("again.spk")) == small_graph()
    assert load_model("net.onnx").graph == small_graph()


def test_a_module_with_several_outputs(write_module: WriteModule) -> None:
    write_module("nets", NETWORK + "\n\ndef two():\n    return Two(), torch.zeros(10, 2, 6)\n")
    told = result("import", "nets:two", "--take", "1", "-o", "net.spk")
    assert (told["output"], told["neuron_groups"]) == ("f32[N, C=4]", 1)
    assert "output" in refusal("import", "nets:two")
    assert "is no number" in refusal("import", "nets:two", "--take", "last")


def test_what_is_refused(workplace: Path, golden: Golden) -> None:
    write_nir(plain(), Path("net.nir"))
    write_nir(plain(kind="CubaLIF"), Path("cuba.nir"))
    write_nir(plain(tau=1e-5), Path("fast.nir"))
    saved(Path("net.spk"))
    Path("text.nir").write_text("nothing")
    cases = {
        "a neuron": ("import", "cuba.nir", "-o", "out/n.spk"),
        "numbers": ("import", "fast.nir", "-o", "out/n.spk"),
        "a file": ("import", "text.nir", "-o", "out/n.spk"),
        "no file": ("import", "absent.nir", "-o", "out/n.spk"),
        "another ending": ("import", "net.nir", "-o", "out/n.onnx"),
        "no form": ("import", "net", "-o", "out/n.spk"),
        "dt of a network": ("import", "net.spk", "--dt", "1e-3"),
        "dt of a module": ("import", "nets:small", "--dt", "1e-3"),
        "dt 0": ("import", "net.nir", "--dt", "0"),
        "a shape of a network": ("import", "net.spk", "--input-shape", "1x8x8"),
        "a shape that is none": ("import", "net.nir", "--input-shape", "6x"),
        "another shape": ("import", "net.nir", "--input-shape", "7"),
        "an output of a file": ("import", "net.nir", "--take", "1"),
        "repeated files": ("import", "net.nir", "--repeat-input"),
        "no steps": ("import", "net.nir", "--timesteps", "0"),
        "percentile alone": ("import", "net.nir", "--percentile", "99"),
        "dt of an ANN": ("import", "nets:small", "--ann", "digits", "--dt", "1e-3"),
        "a folder": ("import", "net.nir", "-o", "absent/n.spk"),
    }
    golden("import_refusals.txt", "\n".join(f"{name}:\n{refusal(*case)}" for name, case in cases.items()))
    assert list(Path("out").iterdir()) == []


def without(package: str) -> Callable[..., ModuleSpec | None]:
    """find_spec in an environment that lacks the package."""
    real = importlib.util.find_spec
    return lambda name, *rest: None if name == package else real(name, *rest)


def test_a_missing_package_is_named(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    to_nir(small_graph(), Path("net.nir"))
    monkeypatch.setattr("frontends.nir_file.read.find_spec", without("h5py"))
    message = refusal("import", "net.nir")
    assert message == "net.nir: error: NIR files need the package h5py\n  hint: pip install 'spikec[nir]'\n"
    saved(Path("net.spk"))
    assert "pip install 'spikec[nir]'" in refusal("export", "net.spk", "-o", "again.nir")
    Path("net.onnx").write_bytes(b"")
    monkeypatch.setattr("importlib.util.find_spec", without("onnx"))
    assert "pip install 'spikec[onnx]'" in refusal("import", "net.onnx")
    assert "pip install 'spikec[onnx]'" in refusal("export", "net.spk", "-o", "again.onnx")
