"""The replay confirms what was found, and finds whatever was changed."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from compiler.attack.settings import Status
from spikec.attack.records import Record
from spikec.packed_values import packed
from spikec.record_file import digest_of
from tests.spikec.attack.attacked import KINDS, written
from tests.spikec.command import refusal, result, spikec

Line = dict[str, Any]
FILE = Path("r.jsonl")


def attacked(kind: str, *options: str) -> list[Line]:
    """The lines of an attack in the working folder."""
    model, data = written(Path(), kind)
    result("attack", model, "--data", data, "--samples", "24", "--fresh", "9", "-o", FILE, *options)
    return [json.loads(line) for line in FILE.read_text().splitlines()]


def write(lines: list[Line]) -> None:
    FILE.write_text("".join(f"{json.dumps(line)}\n" for line in lines))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("options", [(), ("--target", "next", "--iterations", "5")], ids=["untargeted", "targeted"])
def test_what_was_found_is_confirmed(workplace: Path, kind: str, options: tuple[str, ...]) -> None:
    lines = attacked(kind, *options)
    before = FILE.read_bytes()
    found = result("attack", "--replay", FILE)
    successes = sum(line["status"] == "success" for line in lines[1:])
    assert successes > 0
    assert (found["successes"], found["confirmed"], found["doubts"], found["cases_missing"]) == (
        successes,
        successes,
        [],
        0,
    )
    assert FILE.read_bytes() == before
    assert "confirmed" in spikec("attack", "--replay", FILE).out


def changed_to(name: str, value: object) -> Callable[[Line], None]:
    def change(line: Line) -> None:
        line[name] = value

    return change


def size(line: Line) -> None:
    line["perturbation"]["l2"] = float(np.nextafter(line["perturbation"]["l2"], 9.0))


def clean_again(line: Line) -> None:
    x = np.load("bernoulli.npz")["x"][line["sample"]]
    line["example"] = packed(x)


def one_value(line: Line) -> None:
    record = Record.from_json(json.dumps(line))
    assert record.example is not None
    example = record.example.copy()
    example.flat[0] = 1 - example.flat[0]
    line["example"] = packed(example)


CHANGES: dict[str, tuple[str, Callable[[Line], None], str]] = {
    "size": ("success", size, "l2 is"),
    "one value": ("success", one_value, "l1 is"),
    "clean sample as example": ("success", clean_again, "the example does not fool the network"),
    "another draw": ("success", changed_to("draw", 1 << 20), "the example does not fool the network"),
    "fresh successes": ("success", changed_to("fresh_successes", 0), "of 9 fresh draws are fooled, recorded as 0 of 9"),
    "fresh draws": ("failure", changed_to("fresh_draws", 8), "0 of 9 fresh draws are fooled, recorded as 0 of 8"),
    "success for failure": ("failure", changed_to("status", "success"), "the example does not fool the network"),
    "failure for success": ("success", changed_to("status", "failure"), "the last values fool the network"),
    "clean error for success": ("success", changed_to("status", "clean_error"), "the clean sample is told right"),
    "out of bound for failure": ("failure", changed_to("status", "out_of_bound"), "inside all bounds"),
    "success for clean error": ("clean_error", changed_to("status", "success"), "the clean sample is told wrong"),
}


@pytest.mark.parametrize("name", CHANGES)
def test_whatever_was_changed_is_found(workplace: Path, name: str) -> None:
    status, change, message = CHANGES[name]
    lines = attacked("bernoulli", "--target", "next", "--iterations", "5")
    of_it = [at for at, line in enumerate(lines) if line.get("status") == status]
    fooled = {at: lines[at]["fresh_successes"] for at in of_it}
    at = min(of_it, key=fooled.__getitem__) if name == "another draw" else max(of_it, key=fooled.__getitem__)
    change(lines[at])
    write(lines)
    outcome = spikec("attack", "--replay", FILE, "--json")
    assert outcome.code == 1, outcome.err
    doubts = outcome.json["doubts"]
    assert {doubt["case"] for doubt in doubts} == {at - 1}
    assert any(message in doubt["what"] for doubt in doubts), doubts
    assert outcome.json["confirmed"] == sum(
        line.get("status") == "success" for number, line in enumerate(lines) if number != at
    )
    assert spikec("attack", "--replay", FILE).code == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        pytest.param(("--l0", "30"), "outside the l0 budget", id="l0"),
        pytest.param(("--linf", "0.3"), "outside the linf budget", id="linf"),
        pytest.param(("--l2", "2"), "outside the l2 budget", id="l2"),
        pytest.param(("--eps", "0.06"), "the mean square perturbation is 0", id="eps"),
    ],
)
def test_examples_must_keep_their_bounds(workplace: Path, options: tuple[str, str], message: str) -> None:
    """Bounds made smaller afterwards, as if the attack had gone beyond them."""
    lines = attacked("bernoulli", *options)
    assert result("attack", "--replay", FILE)["doubts"] == []
    if options[0] == "--eps":
        lines[0]["settings"]["epsilon"] = 1e-6
    else:
        lines[0]["settings"]["budget"]["bound"] = 1 if options[0] == "--l0" else 1e-6
    del lines[0]["attack"]
    lines[0] = {"attack": digest_of(lines[0]), **lines[0]}
    write(lines)
    outcome = spikec("attack", "--replay", FILE, "--json")
    assert outcome.code == 1
    assert any(message in doubt["what"] for doubt in outcome.json["doubts"])


def test_what_ends_out_of_bound_is_confirmed(workplace: Path) -> None:
    lines = attacked("bernoulli", "--method", "boundary", "--l0", "10", "--iterations", "3")
    assert any(line["status"] == "out_of_bound" for line in lines[1:])
    assert result("attack", "--replay", FILE)["doubts"] == []


def test_moved_spikes_must_keep_their_limits(workplace: Path) -> None:
    lines = attacked("spikes", "--method", "retime", "--moved", "12")
    assert result("attack", "--replay", FILE)["doubts"] == []
    most = max(line["perturbation"]["l0"] for line in lines[1:]) // 2
    assert most > 1
    lines[0]["retiming"]["moved"] = most - 1
    del lines[0]["attack"]
    lines[0] = {"attack": digest_of(lines[0]), **lines[0]}
    at = next(at for at, line in enumerate(lines) if line.get("status") == "success")
    one_value(lines[at])
    write(lines)
    outcome = spikec("attack", "--replay", FILE, "--json")
    assert outcome.code == 1
    told = [doubt["what"] for doubt in outcome.json["doubts"]]
    assert f"moved is {most}, the limit of moved spikes {most - 1}" in told
    assert "spikes were not only moved: a position has another number of spikes" in told


def test_an_unfinished_file_is_replayed_as_far_as_it_goes(workplace: Path) -> None:
    lines = attacked("spikes")
    write([lines[0], lines[9], lines[3]])
    found = result("attack", "--replay", FILE)
    assert (found["cases"], found["cases_missing"], found["doubts"]) == (24, 22, [])
    write(lines[:1])
    assert result("attack", "--replay", FILE)["cases_missing"] == 24


def test_model_and_data_may_have_moved(workplace: Path) -> None:
    attacked("direct")
    Path("direct.spk").rename("moved.spk")
    Path("direct.npz").rename("moved.npz")
    assert refusal("attack", "--replay", FILE).startswith("direct.npz: error: no such file")
    assert "direct.spk" in refusal("attack", "--replay", FILE, "--data", "moved.npz")
    found = result("attack", "moved.spk", "--data", "moved.npz", "--replay", FILE)
    assert found["doubts"] == []


def test_another_network_is_refused(workplace: Path) -> None:
    attacked("direct")
    written(Path(), "bernoulli")
    message = refusal("attack", "bernoulli.spk", "--replay", FILE)
    assert message.startswith("r.jsonl: error: the network bernoulli.spk is not the one that was attacked: its hash")


def test_other_samples_are_refused(workplace: Path) -> None:
    attacked("direct")
    data = dict(np.load("direct.npz"))
    data["x"][5, 0, 0, 0] = 0.25
    np.savez("direct.npz", **data)
    assert "the samples of direct.npz are not those that were attacked" in refusal("attack", "--replay", FILE)
    np.savez("short.npz", x=data["x"][:20], y=data["y"][:20])
    assert "24 samples asked for, the test set has 20" in refusal("attack", "--replay", FILE, "--data", "short.npz")
    np.savez("labels.npz", x=data["x"], y=(data["y"] + 1) % 10)
    assert "the samples of labels.npz are not those" in refusal("attack", "--replay", FILE, "--data", "labels.npz")


@pytest.mark.parametrize(
    "change", [{"sample": 4}, {"label": 11}, {"target": 3}, {"target": None}, {"case": 24}], ids=str
)
def test_records_of_other_cases_are_refused(workplace: Path, change: Line) -> None:
    """An easier target, or an easier sample in the place of another."""
    lines = attacked("spikes", "--target", "next", "--iterations", "2")
    if "target" in change and change["target"] == lines[3]["target"]:
        change = {"target": 4}
    lines[3] |= change
    write(lines)
    number = change.get("case", 2)
    assert f"case {number} is of another sample, label or target than was attacked" in refusal(
        "attack", "--replay", FILE
    )


def test_examples_must_have_the_form_of_their_samples(workplace: Path) -> None:
    lines = attacked("spikes")
    at = next(at for at, line in enumerate(lines) if line.get("status") == "success")
    changed = dict(lines[at])
    x = np.zeros((4, 1, 8, 8), np.float32)
    write([lines[0], {**changed, "example": packed(x[:3])}])
    assert f"case {at - 1} has an example of shape (3, 1, 8, 8), its sample is (4, 1, 8, 8)" in refusal(
        "attack", "--replay", FILE
    )
    write([lines[0], {**changed, "example": packed(x + np.float32(0.5))}])
    outcome = spikec("attack", "--replay", FILE, "--json")
    assert outcome.code == 1
    assert "the example is no spikes" in [doubt["what"] for doubt in outcome.json["doubts"]]


def test_files_that_are_no_results(workplace: Path) -> None:
    lines = attacked("spikes")
    assert (
        refusal("attack", "--replay", "none.jsonl") == "none.jsonl: error: cannot be read: No such file or directory\n"
    )
    assert "out: error: cannot be read: Is a directory" in refusal("attack", "--replay", "out")
    for content in (b"", b"\n", b"{}\n", b"\xff\xfe", b'{"exploration": 1}\n'):
        FILE.write_bytes(content)
        assert refusal("attack", "--replay", FILE).startswith("r.jsonl: error: holds no attack")
    write([{**lines[0], "format": 2}])
    assert "has format 2, this spikec reads format 1" in refusal("attack", "--replay", FILE)
    write([{**lines[0], "data": "other.npz"}])
    assert refusal("attack", "--replay", FILE).startswith("r.jsonl:1: error: its header was changed or is damaged")
    write([lines[0], {**lines[1], "case": -1}])
    assert refusal("attack", "--replay", FILE).startswith("r.jsonl:2: error: is no record of a case")


@pytest.mark.parametrize(
    "option", [("--seed", "1"), ("-o", "s.jsonl"), ("--method", "fgsm"), ("--no-sampling",)], ids=" ".join
)
def test_options_of_an_attack_mean_nothing_there(workplace: Path, option: tuple[str, ...]) -> None:
    message = refusal("attack", "--replay", FILE, *option)
    assert "error: meaningless with --replay" in message


def test_statuses_that_are_replayed_are_all_that_there_are() -> None:
    """What is not judged here must be added when there is another one."""
    assert {*Status} == {"success", "clean_error", "failure", "out_of_bound", "vanished"}
