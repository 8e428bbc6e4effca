"""Bad input: exit code 2, one message on stderr, nothing on stdout, nothing written."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from compiler.ir import Encoding
from compiler.ir.file import save_graph
from tests.golden import Golden
from tests.spikec.certify.certified import KINDS, SETS, graph_of, samples_of, written
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
    given = () if "--set" in options else ("--set", SETS[kind])
    return ("certify", f"{kind}.spk", "--data", f"{kind}.npz", "--samples", "5", *given, *OUT, *options)


CASES: dict[str, tuple[str, ...]] = {
    "no model": ("certify",),
    "no data": ("certify", "direct.spk"),
    "no set": ("certify", "direct.spk", "--data", "direct.npz"),
    "no such model": ("certify", "none.spk", "--data", "direct.npz", "--set", "linf:eps=0", *OUT),
    "no such data": ("certify", "direct.spk", "--data", "none.npz", "--set", "linf:eps=0", *OUT),
    "unknown set": of("direct", "--set", "l2:eps=1"),
    "set without its number": of("direct", "--set", "linf"),
    "negative eps": of("direct", "--set", "linf:eps=-0.1"),
    "eps that is no number": of("direct", "--set", "linf:eps=nan"),
    "more flips than elements": of("spikes", "--set", "l0:k=49"),
    "more flips than elements of a step": of("spikes", "--set", "l0:k=17,per-step"),
    "flips of grey images": of("direct", "--set", "l0:k=1"),
    "picked elements of grey images": of("direct", "--set", "box:share=0.1"),
    "intensities of spikes": of("spikes", "--set", "linf:eps=0.1"),
    "retimed images": of("direct", "--set", "retime:moved=1"),
    "too many samples": of("direct", "--samples", "21"),
    "samples behind the last": of("direct", "--first", "16"),
    "no samples": of("direct", "--samples", "0"),
    "negative first": of("direct", "--first", "-1"),
    "data of another shape": ("certify", "direct.spk", "--data", "synthetic:1x4x5", "--set", "linf:eps=0", *OUT),
    "images for spikes": ("certify", "spikes.spk", "--data", "direct.npz", "--set", "l0:k=1", *OUT, "--samples", "5"),
    "values outside": ("certify", "direct.spk", "--data", "wide.npz", "--set", "linf:eps=0", *OUT, "--samples", "5"),
    "label of no class": (
        "certify",
        "direct.spk",
        "--data",
        "labels.npz",
        "--set",
        "linf:eps=0",
        *OUT,
        "--samples",
        "5",
    ),
    "unknown method": of("direct", "--methods", "ibp,magic"),
    "no method": of("direct", "--methods", ","),
    "no bits": of("spikes", "--quantise", "-1"),
    "too many bits": of("spikes", "--quantise", "17"),
    "bits of decays alone": of("spikes", "--decay-bits", "3"),
    "no time": of("direct", "--seconds", "0"),
    "no work": of("direct", "--work", "0"),
    "negative seed": of("direct", "--seed", "-1"),
    "huge seed": of("direct", "--seed", str(1 << 63)),
    "no folder": of("direct", "-o", "none/r.jsonl"),
    "a folder for a file": of("direct", "-o", "out"),
    "no scores": ("certify", "sequence.spk", "--data", "synthetic:1x8x8", "--set", "linf:eps=0", *OUT),
    "a latency code": ("certify", "latency.spk", "--data", "synthetic:1x8x8", "--set", "linf:eps=0", *OUT),
    "numbers too large": (
        "certify",
        "huge.spk",
        "--data",
        "direct.npz",
        "--set",
        "linf:eps=0.1",
        *OUT,
        "--samples",
        "5",
    ),
}


def other_files() -> None:
    """Networks that cannot be certified, and samples that fit none."""
    graph = small_graph()
    save_graph(graph.with_nodes(graph.nodes[:-1], output="lif3"), Path("sequence.spk"))
    saved(Path("latency.spk"), encode={"kind": Encoding.LATENCY})
    tiny = graph_of("direct")
    huge = {**tiny.parameters, "w1": np.full((10, 16), 3e38, np.float32)}
    save_graph(tiny.with_nodes(tiny.nodes, parameters=huge), Path("huge.spk"))
    x = samples_of("direct")
    np.savez("wide.npz", x=2 * x, y=np.zeros(20, np.int64))
    np.savez("labels.npz", x=x, y=np.full(20, 3))


def test_messages(files: Path, golden: Golden) -> None:
    other_files()
    shown = []
    for name, arguments in CASES.items():
        shown.append(f"{name}:\n{refusal(*arguments)}")
        assert os.listdir("out") == [], name
    golden("certify.txt", "\n".join(shown))


def test_another_certifications_file_stays(files: Path) -> None:
    quick = ("--methods", "ibp")
    result(*of("spikes", *quick))
    before = Path("out/r.jsonl").read_bytes()
    for name, options in (
        ("set", ("--set", "l0:k=1", *quick)),
        ("tried", ("--methods", "ibp,search")),
        ("seed", ("--seed", "1", *quick)),
        ("data_sha256, first", ("--first", "3", *quick)),
        ("has_certificates", ("--no-certificates", *quick)),
        ("certified_sha256, fraction_bits, arithmetic, quantised", ("--quantise", "4", *quick)),
    ):
        assert f"is of another certification: {name} differ" in refusal(*of("spikes", *options))
        assert Path("out/r.jsonl").read_bytes() == before


def test_another_kind_of_file_stays(files: Path) -> None:
    Path("out/r.jsonl").write_bytes(b'{"attack": "x"}\n')
    assert refusal(*of("spikes")).startswith("out/r.jsonl: error: holds no certification")
    assert Path("out/r.jsonl").read_bytes() == b'{"attack": "x"}\n'


def test_without_a_solver(files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only exact verdicts need it."""
    monkeypatch.setitem(__import__("sys").modules, "ortools.sat.python", None)
    message = refusal(*of("spikes", "--quantise", "4"))
    assert message.startswith("ortools: error: exact verdicts need OR-tools, which is not installed")
    assert result(*of("spikes", "--quantise", "4", "--methods", "ibp,search"))["samples"] == 5
    assert result(*of("direct", "-o", "out/d.jsonl"))["samples"] == 5


def test_wrong_words_exit_with_2(files: Path) -> None:
    outcome = spikec(*of("spikes", "--jobs", "0"))
    assert (outcome.code, outcome.out) == (2, "")
