"""`spikec attack` from end to end: its object, table, file and figures."""

from __future__ import annotations

import base64
import json
import sys
import zlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from compiler.attack.methods import Method, Refinement
from compiler.evaluate import evaluate
from compiler.ir import Surrogate, SurrogateKind
from compiler.ir.file import save_graph
from compiler.ir.ops import Lif
from compiler.losses import Loss
from spikec import cli_attack
from spikec.attack.request import OWN_SURROGATE, RULES
from tests.spikec.attack.attacked import KINDS, SAMPLES, graph_of, written
from tests.spikec.command import result, spikec

FILE = Path("r.jsonl")


def command(kind: str, *options: str) -> tuple[str, ...]:
    """An attack on all samples of the small network, whose files are written."""
    model, data = written(Path(), kind)
    return ("attack", model, "--data", data, "--samples", str(SAMPLES), "--fresh", "9", *options)


def lines() -> list[dict[str, Any]]:
    return [json.loads(line) for line in FILE.read_text().splitlines()]


@pytest.mark.parametrize("kind", KINDS)
def test_the_object_says_what_the_file_holds(workplace: Path, kind: str) -> None:
    found = result(*command(kind, "-o", str(FILE)))
    header, *records = lines()
    attacked = [line for line in records if line["status"] != "clean_error"]
    successes = [line for line in records if line["status"] == "success"]
    assert len(records) == found["cases"] == found["samples"] == SAMPLES
    assert found["clean_errors"] == SAMPLES - len(attacked) > 0
    assert found["success_rate"] == len(successes) / len(attacked)
    assert found["success_rate_low"] < found["success_rate"] <= found["success_rate_high"]
    shares = [line["fresh_successes"] / line["fresh_draws"] for line in attacked]
    assert found["success_rate_fresh"] == pytest.approx(np.mean(shares))
    assert found["success_rate_majority"] == np.mean([share > 0.5 for share in shares])
    for name, measure in (("l0", "l0"), ("l2", "l2"), ("linf", "linf"), ("metric_dissertation", "dissertation")):
        assert found[f"mean_{name}"] == pytest.approx(np.mean([line["perturbation"][measure] for line in successes]))
    for name in ("queries", "gradients"):
        assert found[name] == sum(line[name] for line in records)
    for name in ("model", "model_sha256", "data", "data_sha256", "settings", "method", "loss", "target"):
        assert found[name] == header[name], name
    assert found["results"] == str(FILE)
    assert sum(found["statuses"].values()) == SAMPLES


@pytest.mark.parametrize("kind", KINDS)
def test_the_examples_fool_the_network_and_keep_their_form(workplace: Path, kind: str) -> None:
    """Evaluated apart from the attack, where no code is drawn."""
    result(*command(kind, "-o", str(FILE)))
    data = np.load(f"{kind}.npz")
    for line in lines()[1:]:
        if line["status"] != "success":
            continue
        example = line["example"]
        content = zlib.decompress(base64.b64decode(example["bits" if kind == "spikes" else "f32"]))
        if kind == "spikes":
            x = np.unpackbits(np.frombuffer(content, np.uint8))[: np.prod(example["shape"])].astype(np.float32)
        else:
            x = np.frombuffer(content, "<f4")
        x = x.reshape(example["shape"])
        assert ((x >= 0) & (x <= 1)).all()
        assert np.count_nonzero(x != data["x"][line["sample"]]) == line["perturbation"]["l0"]
        if kind != "bernoulli":
            scores = evaluate(graph_of(kind), torch.from_numpy(x.copy()).unsqueeze(int(kind == "spikes"))).output[0]
            assert int(scores.argmax()) != line["label"] == data["y"][line["sample"]]


def test_same_seed_same_bytes_and_another_seed_others(workplace: Path) -> None:
    contents = []
    for seed in ("0", "0", "1"):
        FILE.unlink(missing_ok=True)
        result(*command("bernoulli", "-o", str(FILE), "--seed", seed))
        contents.append(FILE.read_bytes().split(b"\n", 1)[1])
    assert contents[0] == contents[1] != contents[2]


def test_without_a_file_nothing_is_kept(workplace: Path) -> None:
    found = result(*command("spikes"))
    assert found["results"] is None
    assert sorted(path.name for path in workplace.iterdir()) == ["out", "spikes.npz", "spikes.spk"]


def test_a_table(workplace: Path) -> None:
    outcome = spikec(*command("bernoulli", "-o", str(FILE), "--target", "3"))
    assert outcome.code == 0, outcome.err
    for text in (
        "bernoulli.spk on bernoulli.npz: bim, towards class 3",
        "success over 9 fresh draws",
        "mean l1, l2, linf",
    ):
        assert text in outcome.out
    skipped = int((np.load("bernoulli.npz")["y"] == 3).sum())
    assert outcome.err == f"left out, as they have the target as their label: {skipped} samples\n"
    assert "mean flips of a success" in spikec(*command("spikes")).out


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("direct", ("--linf", "0.05", "--restarts", "2", "--step", "0.01")),
        ("direct", ("--loss", "mse", "--surrogate", "atan", "--pull", "0.1")),
        ("bernoulli", ("--draws", "2", "--eps", "0.05", "--surrogate", "potential")),
        ("bernoulli", ("--threshold", "1.0", "--no-sampling", "--no-flipping", "--surrogate", "adaptive")),
        ("spikes", ("--l0", "12", "--gamma", "0.2", "--per-class", "--samples", "1")),
    ],
    ids=lambda value: value if isinstance(value, str) else " ".join(value),
)
def test_options_reach_the_attack(workplace: Path, kind: str, options: tuple[str, ...]) -> None:
    if "--per-class" in options:
        model, data = written(Path(), kind)
        stored = dict(np.load(data))
        np.savez(data, x=stored["x"], y=np.arange(SAMPLES) % 10)
        arguments = ("attack", model, "--data", data, *options)
    else:
        arguments = command(kind, *options)
    found = result(*arguments, "-o", FILE)
    plain = {**found, **found["settings"]}
    for option, value in zip(options[::2], options[1::2], strict=False):
        name = {"--eps": "epsilon"}.get(option, option.removeprefix("--"))
        if name in ("linf", "l0", "l2"):
            assert plain["budget"] == {"norm": name, "bound": float(value)}
            assert all(line["perturbation"][name] <= float(value) for line in lines()[1:])
        elif name in plain and not isinstance(plain[name], str):
            assert plain[name] == float(value)
    if "--no-sampling" in options:
        assert (plain["sampling"], plain["flipping"]) == (False, False)
    assert result("attack", "--replay", FILE)["doubts"] == []


FITTING = {
    "direct": ("bim", "fgsm", "rga", "ann", "boundary", "random", "trial-pixels"),
    "bernoulli": ("bim", "fgsm", "rga", "ann", "boundary", "random", "trial-pixels"),
    "spikes": ("bim", "fgsm", "rga", "sparse", "greedy", "retime", "random", "trial-spikes"),
}


@pytest.mark.parametrize("target", ["none", pytest.param("next", marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    ("kind", "method"), [(kind, method) for kind, methods in FITTING.items() for method in methods]
)
def test_every_method_is_replayed(workplace: Path, kind: str, method: str, target: str) -> None:
    budget = ("--linf", "0.3") if kind != "spikes" and method in ("ann", "random") else ()
    options = ("--method", method, "--iterations", "10", "--target", target, "-o", str(FILE))
    found = result(*command(kind, *options, *budget))
    assert found["method"] == method
    again = result("attack", "--replay", FILE)
    assert (again["doubts"], again["confirmed"]) == ([], found["statuses"]["success"])


@pytest.mark.parametrize("refine", list(Refinement))
def test_refinements(workplace: Path, refine: Refinement) -> None:
    plain = result(*command("spikes"))
    found = result(*command("spikes", "--refine", str(refine), "-o", str(FILE)))
    assert found["success_rate"] == plain["success_rate"]
    assert (found["mean_l0"] < plain["mean_l0"]) == (refine is not Refinement.NONE)
    assert result("attack", "--replay", FILE)["doubts"] == []


def test_limits_of_retiming(workplace: Path) -> None:
    limits = ("--moved", "6", "--shift", "1", "--total-shift", "5")
    found = result(*command("spikes", "--method", "retime", "-o", str(FILE), *limits))
    assert found["retiming"] == {"moved": 6, "shift": 1, "total": 5}
    assert all(line["perturbation"]["l0"] <= 10 for line in lines()[1:])
    assert result("attack", "--replay", FILE)["doubts"] == []


def test_words_are_those_of_the_library() -> None:
    assert [*cli_attack.MethodOption] == [*Method]
    assert [*cli_attack.RefineOption] == [*Refinement]
    assert {*cli_attack.AttackLoss} == {*Loss}
    assert [*cli_attack.SurrogateOption] == [OWN_SURROGATE, *SurrogateKind, *RULES]


def test_one_figure(workplace: Path) -> None:
    """The same attack draws the same bytes."""
    arguments = command("spikes", "-o", str(FILE))
    for name in ("a.svg", "b.svg"):
        assert result(*arguments, "--figure", name)["figures"] == [name]
    drawn = Path("a.svg").read_bytes()
    assert drawn.startswith(b"<?xml")
    assert Path("b.svg").read_bytes() == drawn


def test_a_folder_of_figures(workplace: Path) -> None:
    found = result(*command("bernoulli", "--figure", "figures"))
    assert found["figures"] == ["figures/examples.svg", "figures/success.svg"]
    assert sorted(path.name for path in Path("figures").iterdir()) == ["examples.svg", "success.svg"]


def test_figures_of_nothing(workplace: Path) -> None:
    """An attack without a success is drawn too."""
    found = result(*command("direct", "--linf", "1e-6", "--figure", "a.svg"))
    assert found["success_rate"] == 0.0
    assert found["mean_l0"] is None
    assert Path("a.svg").read_bytes().startswith(b"<?xml")


def test_gradients_that_vanish_are_told_of(workplace: Path) -> None:
    """Windows around the thresholds so narrow that no membrane potential lies inside."""
    written(Path(), "direct")
    graph = graph_of("direct")
    narrow = Surrogate(kind=SurrogateKind.RECTANGLE, width=1e-9)
    nodes = (
        replace(node, op=replace(node.op, surrogate=narrow)) if isinstance(node.op, Lif) else node
        for node in graph.nodes
    )
    save_graph(graph.with_nodes(tuple(nodes)), Path("narrow.spk"))
    arguments = ("attack", "narrow.spk", "--data", "direct.npz", "--samples", "24", "--iterations", "2")
    found = result(*arguments)
    attacked = found["attacked"]
    assert found["vanished_at_start"] == attacked > 0
    start = f"hint: the first gradient of {attacked} of {attacked} cases is zero; --"
    assert spikec(*arguments).err.startswith(f"{start}surrogate atan")
    assert spikec(*arguments, "--loss", "mse").err.startswith(f"{start}loss cross_entropy")
    assert spikec(*arguments, "--surrogate", "atan").err == ""


def test_a_missing_package_says_how_to_get_it(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = command("spikes")
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    outcome = spikec(*arguments, "--figure", "f.svg")
    assert outcome.code == 2
    assert "matplotlib is not installed\n  hint: pip install 'spikec[explore]'" in outcome.err


def test_ctrl_c_keeps_what_is_finished(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = command("spikes", "-o", str(FILE), "--target", "next")
    result(*arguments)
    want = FILE.read_bytes()
    FILE.unlink()
    counts = iter(range(10, 0, -1))

    def stop(_bar: object, _done: int, _total: int) -> None:
        if next(counts) == 1:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("spikec.commands.talk.Bar.samples", stop)
        outcome = spikec(*arguments)
    assert outcome.code != 0
    assert "interrupted; the same command goes on from r.jsonl" in outcome.err
    assert 2 < len(lines()) < SAMPLES
    result(*arguments)
    assert FILE.read_bytes() == want
