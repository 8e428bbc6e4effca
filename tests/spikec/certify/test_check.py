"""The check confirms what was found, and finds whatever was changed."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from compiler.certify_check.content import packed as packed_array
from compiler.certify_check.content import sealed
from spikec.packed_values import packed
from spikec.record_file import digest_of
from tests.spikec.certify.certified import KINDS, SETS, samples_of, written
from tests.spikec.command import refusal, result, spikec

Line = dict[str, Any]
FILE = Path("r.jsonl")
QUICK = ("--methods", "ibp,search,hull,exact")


def certified(kind: str, *options: str) -> list[Line]:
    """The lines of a certification in the working folder."""
    model, data = written(Path(), kind)
    given = () if "--set" in options else ("--set", SETS[kind])
    result("certify", model, "--data", data, "--samples", "20", "-o", FILE, *given, *QUICK, *options)
    return [json.loads(line) for line in FILE.read_text().splitlines()]


def write(lines: list[Line]) -> None:
    FILE.write_text("".join(f"{json.dumps(line)}\n" for line in lines))


def first(lines: list[Line], verdict: str) -> Line:
    """The first record with a verdict, but for clean errors."""
    return next(line for line in lines[1:] if line["verdict"] == verdict and not line["clean_error"])


def doubt_of(lines: list[Line], changed: Line) -> str:
    """The one doubt that is left of a file with a changed record."""
    write([line if line.get("case") != changed["case"] else changed for line in lines])
    outcome = spikec("certify", "--check", FILE, "--json")
    assert outcome.code == 1, outcome.err
    (doubt,) = outcome.json["doubts"]
    assert doubt["sample"] == changed["sample"]
    assert doubt["finding"] in ("refuted", "undecided")
    return str(doubt["reason"])


@pytest.mark.parametrize("kind", KINDS)
def test_every_verdict_is_confirmed(workplace: Path, kind: str) -> None:
    lines = certified(kind)
    found = result("certify", "--check", FILE)
    assert found["doubts"] == []
    assert found["samples"] == 20
    counts = {name: sum(line["verdict"] == name for line in lines[1:]) for name in ("COUNTEREXAMPLE", "UNKNOWN")}
    findings = found["findings"]
    assert (findings["replayed"], findings["claims nothing"]) == tuple(counts.values())
    assert sum(findings.values()) == 20


def test_exact_verdicts_are_solved_again(workplace: Path) -> None:
    certified("bernoulli", "--quantise", "4")
    findings = result("certify", "--check", FILE)["findings"]
    assert findings["re-solved"] > 0
    assert findings["proved"] > 0


def test_without_certificates_it_is_certified_again(workplace: Path) -> None:
    lines = certified("direct", "--set", "linf:eps=0.02", "--no-certificates")
    findings = result("certify", "--check", FILE)["findings"]
    robust = sum(line["verdict"] == "ROBUST" for line in lines[1:])
    assert (findings["repeated"], findings["proved"]) == (robust, 0)
    unknown = first(lines, "UNKNOWN")
    assert "certified again it is UNKNOWN" in doubt_of(lines, {**unknown, "verdict": "ROBUST"})


Change = Callable[[Line, Line], Line]  # of a record, with another one of the same verdict


def certificate(line: Line, **changed: object) -> Line:
    """A record whose certificate is changed, and sealed again."""
    return {**line, "certificate": sealed({**line["certificate"], **changed})}


ROBUST: dict[str, tuple[Change, str]] = {
    "a flipped byte": (
        lambda own, _: {**own, "certificate": {**own["certificate"], "arithmetic": "f32", "claim": "solved"}},
        "damaged",
    ),
    "another sample's": (lambda own, other: {**own, "certificate": other["certificate"]}, "another"),
    "another label": (lambda own, _: certificate(own, label=(own["label"] + 1) % 3), "another label"),
    "another network": (lambda own, _: certificate(own, graph="0" * 64), "another network"),
    "a smaller set": (
        lambda own, _: certificate(own, inputs={**own["certificate"]["inputs"], "eps": 0.001}),
        "another inputs",
    ),
    "another arithmetic": (lambda own, _: certificate(own, arithmetic="reals"), "another arithmetic"),
    "no proof": (lambda own, _: certificate(own, proof={}), ""),
    "another claim": (lambda own, _: certificate(own, claim="counterexample"), "the certificate claims counterexample"),
}


@pytest.mark.parametrize("name", ROBUST)
def test_changed_proofs(workplace: Path, name: str) -> None:
    lines = certified("direct", "--set", "linf:eps=0.02")
    own = first(lines, "ROBUST")
    other = next(line for line in lines[1:] if line["verdict"] == "ROBUST" and line is not own)
    change, message = ROBUST[name]
    assert message in doubt_of(lines, change(own, other))


def test_a_proof_of_what_is_not_so(workplace: Path) -> None:
    """A sample with a counterexample, said to be robust by the proof of a smaller set."""
    small = certified("direct", "--set", "linf:eps=0.001")
    FILE.unlink()
    lines = certified("direct")
    own = first(lines, "COUNTEREXAMPLE")
    proof = next(line for line in small[1:] if line.get("sample") == own["sample"])
    assert proof["verdict"] == "ROBUST"
    assert "another inputs" in doubt_of(lines, {**proof, "case": own["case"]})
    inputs = own["certificate"]["inputs"]
    assert "does not follow" in doubt_of(lines, {**certificate(proof, inputs=inputs), "case": own["case"]})


def test_an_exact_verdict_of_what_is_not_so(workplace: Path) -> None:
    """A sample with a counterexample, said to be robust as an exact solver found."""
    lines = certified("bernoulli", "--quantise", "4")
    own = certificate(first(lines, "COUNTEREXAMPLE"), claim="solved", proof={})
    forged = {**own, "verdict": "ROBUST", "method": "exact", "means": "cp-sat", "counterexample": None}
    assert "solved again, there is an input" in doubt_of(lines, forged)


def test_changed_counterexamples(workplace: Path) -> None:
    lines = certified("direct")
    own = first(lines, "COUNTEREXAMPLE")
    clean = samples_of("direct")[own["sample"]]
    assert "alone highest" in doubt_of(lines, {**own, "counterexample": packed(clean)})
    assert "is not in the set" in doubt_of(lines, {**own, "counterexample": packed(np.ones_like(clean))})
    assert "is not in the set" in doubt_of(lines, {**own, "counterexample": packed(clean[:, :3])})
    proof = {"example": packed_array(clean)}
    assert "alone highest" in doubt_of(lines, certificate(own, proof=proof))
    as_error = {**own, "clean_error": True, "method": "clean"}
    assert "a clean error is the clean input" in doubt_of(lines, as_error)


def test_an_unfinished_file(workplace: Path) -> None:
    lines = certified("direct")
    write(lines[:8])
    found = result("certify", "--check", FILE)
    assert (found["samples"], found["samples_missing"]) == (7, 13)
    assert "samples that the run has not finished" in spikec("certify", "--check", FILE).out


def test_a_table_of_doubts(workplace: Path) -> None:
    lines = certified("direct")
    changed = [{**line, "counterexample": packed(np.ones((1, 4, 4), np.float32))} for line in lines[1:]]
    wrong = [c if line["verdict"] == "COUNTEREXAMPLE" else line for line, c in zip(lines[1:], changed, strict=True)]
    write([lines[0], *wrong])
    outcome = spikec("certify", "--check", FILE)
    assert outcome.code == 1
    assert "is not in the set" in outcome.out
    assert "--json lists all" in outcome.out


def test_other_networks_and_samples_are_refused(workplace: Path) -> None:
    certified("direct")
    written(Path(), "bernoulli")
    assert "is not the one that was certified" in refusal("certify", "bernoulli.spk", "--check", FILE)
    np.savez("other.npz", x=1 - samples_of("direct"), y=np.zeros(20, np.int64))
    assert "are not those that were certified" in refusal("certify", "--data", "other.npz", "--check", FILE)
    assert result("certify", "direct.spk", "--data", "direct.npz", "--check", FILE)["doubts"] == []


def test_damaged_files_are_refused(workplace: Path) -> None:
    lines = certified("direct")
    header, own = lines[0], first(lines, "COUNTEREXAMPLE")
    write([{**header, "set": "linf:eps=0.5"}, *lines[1:]])
    assert "its header was changed" in refusal("certify", "--check", FILE)
    shown = {name: value for name, value in header.items() if name != "certification"} | {"format": 9}
    write([{"certification": digest_of(shown), **shown}])
    assert "has format 9" in refusal("certify", "--check", FILE)
    for wrong in (
        {**own, "verdict": "ROBUST"},
        {**own, "verdict": "FINE"},
        {**own, "counterexample": None},
        {**own, "method": "magic"},
        {**own, "margin": "nan"},
        {**own, "sample": -1},
        {**own, "certificate": []},
    ):
        write([header, wrong])
        assert "r.jsonl:2: error: is no record of a sample" in refusal("certify", "--check", FILE)
    write([header, {**own, "label": (own["label"] + 1) % 3}])
    assert "is of another sample or label" in refusal("certify", "--check", FILE)
    assert "cannot be read" in refusal("certify", "--check", "none.jsonl")
    FILE.write_text("text\n")
    assert "holds no certification" in refusal("certify", "--check", FILE)


def test_options_beside_a_check_are_refused(workplace: Path) -> None:
    message = refusal("certify", "--check", FILE, "--set", "l0:k=1", "--samples", "3")
    assert message.startswith("--set, --samples: error: meaningless with --check")
