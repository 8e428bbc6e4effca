"""Bad input: exit code 2, one message on stderr, nothing on stdout, nothing written."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from compiler.ir import Encoding
from compiler.ir.file import save_graph
from tests.golden import Golden
from tests.spikec.attack.attacked import KINDS, written
from tests.spikec.command import refusal, result, spikec
from tests.spikec.graphs import saved, small_graph

OUT = ("-o", "out/r.jsonl")


@pytest.fixture
def files(workplace: Path) -> Path:
    """The working folder with networks and samples."""
    for kind in KINDS:
        written(Path(), kind)
    return workplace


def of(kind: str, *options: str) -> tuple[str, ...]:
    return ("attack", f"{kind}.spk", "--data", f"{kind}.npz", "--samples", "5", *OUT, *options)


CASES: dict[str, tuple[str, ...]] = {
    "no model": ("attack",),
    "no data": ("attack", "direct.spk"),
    "no such model": ("attack", "none.spk", "--data", "direct.npz", *OUT),
    "no such data": ("attack", "direct.spk", "--data", "none.npz", *OUT),
    "too many samples": of("direct", "--samples", "25"),
    "no samples": of("direct", "--samples", "0"),
    "unknown target": of("direct", "--target", "some"),
    "target outside": of("direct", "--target", "10"),
    "negative target": of("direct", "--target", "-1"),
    "no labels for a target": ("attack", "direct.spk", "--data", "synthetic:1x8x8", "--target", "next", *OUT),
    "data of another shape": ("attack", "direct.spk", "--data", "synthetic:1x8x9", *OUT),
    "images for spikes": ("attack", "spikes.spk", "--data", "direct.npz", "--samples", "5", *OUT),
    "no bound": of("direct", "--eps", "0"),
    "negative bound": of("direct", "--eps", "-0.1"),
    "bound that is no number": of("direct", "--eps", "nan"),
    "two budgets": of("direct", "--l2", "1", "--linf", "0.1"),
    "no budget": of("direct", "--linf", "0"),
    "part of an element": of("direct", "--l0", "2.5"),
    "less than a flip": of("spikes", "--linf", "0.5"),
    "no iterations": of("direct", "--iterations", "0"),
    "no flips": of("spikes", "--gamma", "0"),
    "no step": of("direct", "--step", "0"),
    "negative pull": of("direct", "--pull", "-1"),
    "negative restarts": of("direct", "--restarts", "-1"),
    "no draws": of("bernoulli", "--draws", "0"),
    "draws where none are drawn": of("direct", "--draws", "2"),
    "negative seed": of("direct", "--seed", "-1"),
    "huge seed": of("direct", "--seed", str(1 << 63)),
    "negative seed of the model": of("direct", "--model-seed", "-1"),
    "threshold that is no number": of("direct", "--threshold", "nan"),
    "refined images": of("direct", "--refine", "reduce"),
    "limits on moves that nobody makes": of("spikes", "--moved", "3"),
    "retimed images": of("direct", "--method", "retime"),
    "no moves": of("spikes", "--method", "retime", "--moved", "0"),
    "converted network without a budget": of("direct", "--method", "ann"),
    "converted network of spikes": of("spikes", "--method", "ann", "--linf", "1"),
    "no folder": of("direct", "-o", "none/r.jsonl"),
    "a folder for a file": of("direct", "-o", "out"),
    "no folder for figures": of("direct", "--figure", "none/f.svg"),
    "another kind of figure": of("direct", "--figure", "direct.npz"),
    "figure in the results": of("direct", "-o", "out/a.svg", "--figure", "out/a.svg"),
    "no scores": ("attack", "sequence.spk", "--data", "direct.npz", "--samples", "5", *OUT),
    "a latency code": ("attack", "latency.spk", "--data", "direct.npz", "--samples", "5", *OUT),
    "no neurons to tune": ("attack", "flat.spk", "--data", "direct.npz", "--samples", "5", "--threshold", "1", *OUT),
}


def other_networks() -> None:
    """Networks that end in no scores, encode by latency, or have no neurons in front of the last layer."""
    graph = small_graph()
    save_graph(graph.with_nodes(graph.nodes[:-1], output="lif3"), Path("sequence.spk"))
    saved(Path("latency.spk"), encode={"kind": Encoding.LATENCY})
    kept = ("x", "encode", "flat", "fc", "lif3", "rate")
    before = dict(zip(kept[1:], kept, strict=False))
    nodes = (
        replace(node, inputs=(before[node.name],) if node.inputs else ()) for node in graph.nodes if node.name in kept
    )
    save_graph(graph.with_nodes(tuple(nodes), parameters={"w3": np.ones((10, 64), np.float32)}), Path("flat.spk"))


def test_messages(files: Path, golden: Golden) -> None:
    other_networks()
    shown = []
    for name, arguments in CASES.items():
        shown.append(f"{name}:\n{refusal(*arguments)}")
        assert os.listdir("out") == [], name
    golden("attack.txt", "\n".join(shown))


@pytest.mark.parametrize("address", ["nowhere", "tcp://127.0.0.1:9"])
def test_a_cluster_that_does_not_answer(files: Path, monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    monkeypatch.setattr("spikec.workers.CONNECT_S", 0.2)
    message = refusal(*of("direct", "--cluster", address))
    assert message.startswith(f"--cluster {address}: error: no cluster answers")
    assert os.listdir("out") == []


def test_another_attacks_file_stays(files: Path) -> None:
    result(*of("spikes"))
    before = Path("out/r.jsonl").read_bytes()
    assert refusal(*of("spikes", "--seed", "1")).startswith(
        "out/r.jsonl: error: is of another attack: settings differs\n  hint: repeat that one's options"
    )
    assert refusal(*of("spikes", "--samples", "6")).startswith(
        "out/r.jsonl: error: is of another attack: data_sha256, samples, cases differ"
    )
    assert Path("out/r.jsonl").read_bytes() == before


@pytest.mark.parametrize("content", [b"text\n", b"{}\n", b'{"exploration": "x"}\n', b"\xff\xfe"])
def test_another_kind_of_file_stays(files: Path, content: bytes) -> None:
    Path("out/r.jsonl").write_bytes(content)
    assert refusal(*of("spikes")).startswith("out/r.jsonl: error: holds no attack")
    assert Path("out/r.jsonl").read_bytes() == content


def test_a_folder_that_cannot_be_written(files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("spikec.record_file.os.replace", full)
        assert refusal(*of("spikes")).startswith("out/r.jsonl: error: cannot be written: No space left")
    assert os.listdir("out") == []


def test_a_figure_that_cannot_be_written(files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The results stay: the same command draws from them."""

    def full(source: Path, destination: Path) -> None:
        if destination.suffix == ".svg":
            raise OSError(28, "No space left on device")
        source.rename(destination)

    arguments = of("spikes", "--figure", "out/f.svg")
    with monkeypatch.context() as patch:
        patch.setattr("spikec.explore.figure.os.replace", full)
        assert refusal(*arguments).startswith("out/f.svg: error: cannot be written: No space left")
    assert os.listdir("out") == ["r.jsonl"]


@pytest.mark.parametrize(
    "option", [("--method", "magic"), ("--refine", "much"), ("--fresh", "0"), ("--jobs", "0")], ids=" ".join
)
def test_wrong_words_exit_with_2(files: Path, option: tuple[str, ...]) -> None:
    outcome = spikec(*of("spikes", *option))
    assert (outcome.code, outcome.out) == (2, "")
    assert os.listdir("out") == []
