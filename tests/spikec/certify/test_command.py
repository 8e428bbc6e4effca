"""`spikec certify` from end to end: its object, table and file."""

from __future__ import annotations

import base64
import json
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from compiler.certify.input_sets import InputSet
from compiler.certify.verdicts import Answer
from compiler.evaluate import evaluate
from compiler.passes import DropEncode
from spikec.certify.cases import Case
from spikec.certify.sets import set_named
from spikec.certify.subject import Subject
from tests.spikec.certify.certified import KINDS, SAMPLES, SETS, Floats, graph_of, samples_of, written
from tests.spikec.command import result, spikec

FILE = Path("r.jsonl")
Line = dict[str, Any]
QUICK = ("--methods", "ibp,search,hull")


def command(kind: str, *options: str) -> tuple[str, ...]:
    """A certification of all samples of the tiny network, whose files are written."""
    model, data = written(Path(), kind)
    given = () if "--set" in options else ("--set", SETS[kind])
    return ("certify", model, "--data", data, "--samples", str(SAMPLES), *given, *options)


def lines() -> list[Line]:
    return [json.loads(line) for line in FILE.read_text().splitlines()]


def example_of(line: Line) -> Floats:
    """Unpacked apart from the library."""
    packed = line["counterexample"]
    content = zlib.decompress(base64.b64decode(packed.get("bits") or packed["f32"]))
    if "bits" in packed:
        bits = np.unpackbits(np.frombuffer(content, np.uint8))[: np.prod(packed["shape"])]
        return bits.astype(np.float32).reshape(packed["shape"])
    return np.frombuffer(content, "<f4").reshape(packed["shape"])


def set_of(kind: str, line: Line, text: str) -> InputSet:
    subject = Subject.of(graph_of(kind))
    case = Case(sample=line["sample"], x=samples_of(kind)[line["sample"]], label=line["label"])
    return set_named(text).inputs(subject, case.x, case.sample)


@pytest.mark.parametrize("kind", KINDS)
def test_the_object_says_what_the_file_holds(workplace: Path, kind: str) -> None:
    found = result(*command(kind, "-o", str(FILE), *QUICK))
    header, *records = lines()
    counts = {answer.name: sum(line["verdict"] == answer.name for line in records) for answer in Answer}
    assert found["verdicts"] == counts
    assert found["samples"] == len(records) == SAMPLES
    assert found["clean_errors"] == sum(line["clean_error"] for line in records) == 2  # two labels are wrong
    assert found["clean_accuracy"] == 1 - 2 / SAMPLES
    assert found["certified_accuracy"] == counts["ROBUST"] / SAMPLES
    assert found["upper_accuracy"] == 1 - counts["COUNTEREXAMPLE"] / SAMPLES
    for method, count in found["methods"].items():
        assert count == sum(line["method"] == method and line["verdict"] != "UNKNOWN" for line in records)
    assert sum(found["methods"].values()) == SAMPLES - counts["UNKNOWN"]
    for name in ("model", "model_sha256", "certified_sha256", "data", "data_sha256", "set", "arithmetic", "mask"):
        assert found[name] == header[name], name
    assert found["arithmetic"] == "f32"
    assert found["mask"] == ("seed 5" if kind == "bernoulli" else None)
    assert found["results"] == str(FILE)
    assert found["seconds"] > 0


@pytest.mark.parametrize("kind", KINDS)
def test_counterexamples_are_members_that_are_told_wrongly(workplace: Path, kind: str) -> None:
    """And no drawn member of a set that is ROBUST is."""
    result(*command(kind, "-o", str(FILE), *QUICK))
    graph = DropEncode()(graph_of(kind)) if kind == "bernoulli" else graph_of(kind)
    seen = set()
    for line in lines()[1:]:
        inputs = set_of(kind, line, SETS[kind])
        if line["verdict"] == "COUNTEREXAMPLE":
            batch = example_of(line)[None]
            assert inputs.contains(batch[0])
        elif line["verdict"] == "ROBUST":
            batch = inputs.sample(np.random.default_rng(line["sample"]), 100)
        else:
            continue
        seen.add(line["verdict"])
        x = batch if kind == "direct" else np.moveaxis(batch, 0, 1)
        scores = evaluate(graph, torch.from_numpy(x.copy())).output
        own = scores[:, line["label"]]
        others = scores.index_fill(1, torch.tensor([line["label"]]), -torch.inf).amax(1)
        assert bool((own > others).all()) == (line["verdict"] == "ROBUST")
    assert "COUNTEREXAMPLE" in seen


def test_same_options_same_bytes(workplace: Path) -> None:
    contents = []
    for _ in range(2):
        FILE.unlink(missing_ok=True)
        result(*command("bernoulli", "-o", str(FILE)))
        contents.append(FILE.read_bytes())
    assert contents[0] == contents[1]


def test_which_samples_are_beside_changes_nothing(workplace: Path) -> None:
    result(*command("bernoulli", "-o", str(FILE)))
    want = {line["sample"]: line for line in lines()[1:]}
    result(*command("bernoulli", "-o", "part.jsonl", "--samples", "6", "--first", "9"))
    part = [json.loads(line) for line in Path("part.jsonl").read_text().splitlines()[1:]]
    assert [line["sample"] for line in part] == list(range(9, 15))
    assert all({**want[line["sample"]], "case": 0} == {**line, "case": 0} for line in part)


def test_quantised_networks_are_decided_exactly(workplace: Path) -> None:
    found = result(*command("spikes", "--quantise", "4", "-o", str(FILE)))
    assert found["arithmetic"] == "integers of the quantised graph"
    assert found["verdicts"]["UNKNOWN"] == 0
    assert found["verdicts"]["ROBUST"] > 0
    assert found["methods"]["exact"] == found["means"]["enumeration"] > 0
    assert found["certified_sha256"] != found["model_sha256"]
    assert found["quantised"]["weight"] <= 2**-5
    assert lines()[0]["fraction_bits"] == 4


def test_bernoulli_networks_have_other_sets_too(workplace: Path) -> None:
    for text in ("l0:k=1", "box:share=0.05,seed=3", "retime:moved=1"):
        found = result(*command("bernoulli", "--set", text, *QUICK))
        assert (found["set"], found["mask"]) == (text, "seed 5")


def test_a_larger_set_has_no_more_robust_samples(workplace: Path) -> None:
    shares = [
        result(*command("direct", "--set", f"linf:eps={eps}", *QUICK))["certified_accuracy"]
        for eps in ("0", "0.01", "0.05", "0.5")
    ]
    assert shares == sorted(shares, reverse=True)
    assert shares[0] == 1 - 2 / SAMPLES  # a single input: as evaluated
    assert shares[-1] < shares[0]


def test_width_is_twice_eps(workplace: Path) -> None:
    result(*command("direct", "--set", "linf:eps=0.02", "-o", str(FILE), *QUICK))
    want = FILE.read_bytes()
    FILE.unlink()
    result(*command("direct", "--set", "linf:width=0.04", "-o", str(FILE), *QUICK))
    assert FILE.read_bytes() == want


def test_data_without_labels(workplace: Path) -> None:
    """What the network says of each sample is its label; ties are clean errors."""
    model, _ = written(Path(), "direct")
    found = result("certify", model, "--data", "synthetic:1x4x4", "--set", "linf:eps=0.01", "--samples", "20", *QUICK)
    assert found["clean_accuracy"] == 1.0


def test_a_time_limit(workplace: Path) -> None:
    found = result(*command("direct", "--seconds", "1e-9"))
    assert found["timed_out"] == found["verdicts"]["UNKNOWN"] > 0
    assert found["seconds_a_sample"] == 1e-9


def test_a_table(workplace: Path) -> None:
    outcome = spikec(*command("bernoulli", "-o", str(FILE), *QUICK))
    assert outcome.code == 0, outcome.err
    for text in (
        "bernoulli.spk on bernoulli.npz: linf:eps=0.05",
        "ROBUST: certified accuracy",
        "for these draws of the code alone",
        "f32, any order of sums",
        "decided by ibp",
    ):
        assert text in outcome.out
    exact = spikec(*command("spikes", "--quantise", "4", *QUICK))
    assert "integers, exact" in exact.out
    assert "quantised: largest change of a number" in exact.out


def test_without_certificates_the_file_is_small(workplace: Path) -> None:
    found = result(*command("direct", "-o", str(FILE), "--no-certificates", *QUICK))
    assert found["certificates"] == 0
    assert all(line["certificate"] is None for line in lines()[1:])
