"""`spikec report`: what it prints and writes, and what it refuses, with nothing left behind."""

from __future__ import annotations

import json
import os
from math import fsum, isclose
from pathlib import Path

import pytest

from hwmodel.program_file import load_program, save_program
from spikec import cli
from tests.hwmodel.training_programs import PROGRAMS
from tests.spikec.command import refusal, result, spikec
from tests.spikec.graphs import saved

DIGITS = ("report", "zoo:digits-conv")
TRAIN = (*DIGITS, "--mode", "train")


@pytest.fixture
def files(workplace: Path, digits_program: Path) -> Path:
    """A working folder with an inference program, a training program and what is neither."""
    whole = digits_program.read_bytes()
    Path("net.h2l").write_bytes(whole)
    Path("cut.h2l").write_bytes(whole[: len(whole) // 2])
    save_program(PROGRAMS[0](), Path("train.h2l"))
    saved(Path("net.spk"))
    return workplace


def test_a_program_and_its_model_give_the_same_report(files: Path) -> None:
    from_file, from_model = (result("report", name, "--no-what-if") for name in ("net.h2l", "zoo:digits-conv"))
    assert from_file == from_model
    assert from_file["mode"] == "infer"
    (phase,) = from_file["phases"]
    seconds = phase["elapsed_cycles"] / 0.8e9
    assert isclose(from_file["samples_per_s"], from_file["batch"] / seconds, rel_tol=1e-12)
    assert isclose(from_file["energy_j_per_sample"], phase["energy_j"]["total"] / from_file["batch"], rel_tol=1e-12)
    assert isclose(from_file["power_w"], phase["energy_j"]["total"] / seconds, rel_tol=1e-12)


def test_a_training_report_adds_up(files: Path) -> None:
    found = result(*TRAIN, "--html", "out/r.html", "--trace", "out/t.json")
    assert (found["mode"], found["densities"], found["html"], found["trace"]) == (
        "train",
        "dense",
        "out/r.html",
        "out/t.json",
    )
    by_phase = {phase["phase"]: phase for phase in found["phases"]}
    assert {name: phase["launches"] for name, phase in by_phase.items()} == {
        "forward": 1,
        "overlap": 15,
        "backward": 1,
        "update": 1,
    }
    cycles = fsum(phase["launches"] * phase["elapsed_cycles"] for phase in by_phase.values())
    assert isclose(found["cycles_per_group"], cycles, rel_tol=1e-12)
    assert isclose(found["samples_per_s"], 64 / (cycles / 0.8e9), rel_tol=1e-12)
    spent = found["energy_j_per_sample_by_component"]
    assert isclose(fsum(spent.values()), found["energy_j_per_sample"], rel_tol=1e-9)
    ratios = [row["time_ratio"] for row in found["what_if"]]
    assert ratios == sorted(ratios)
    assert len(ratios) > 5
    assert sorted(os.listdir("out")) == ["r.html", "t.json"]
    assert "digits-conv, training" in Path("out/r.html").read_text()
    assert json.loads(Path("out/t.json").read_text())["otherData"]["program"] == "digits-conv"


def test_densities_shorten_the_backward_pass(files: Path) -> None:
    names = [layer.name for layer in load_program(Path("train.h2l")).layers[1:] if layer.kind != "fc"]
    Path("sparse.toml").write_text("".join(f'["{name}"]\ninputs = 0.1\noutputs = 0.2\n' for name in names))
    dense, sparse = (
        result("report", "train.h2l", "--no-what-if", "--densities", text) for text in ("dense", "sparse.toml")
    )
    assert sparse["densities"] == "sparse.toml"
    busy = {
        name: fsum(layer["busy_cycles"].get("be", 0.0) for layer in found["phases"][2]["layers"])
        for name, found in (("dense", dense), ("sparse", sparse))
    }
    assert busy["sparse"] < busy["dense"]


def test_tables_are_printed(files: Path) -> None:
    outcome = spikec("report", "net.h2l", "--html", "out/r.html")
    assert outcome.code == 0
    for title in (
        "throughput",
        "launches",
        "layers on the critical path, run",
        "channels, run",
        "area, mm2",
        "roofline, run",
        "what if",
    ):
        assert title in outcome.out
    assert outcome.err == "written: out/r.html\n"


CASES = {
    "truncated program": ("report", "cut.h2l"),
    "absent program": ("report", "absent.h2l"),
    "no model": ("report", "nothing"),
    "unknown network": ("report", "zoo:nothing"),
    "options of a model": ("report", "net.h2l", "--batch", "2", "--config", "h2learn"),
    "other mode": ("report", "train.h2l", "--mode", "infer"),
    "no sub-batch": (*DIGITS, "--batch", "0"),
    "densities of an inference": ("report", "net.h2l", "--densities", "dense"),
    "unknown densities": ("report", "train.h2l", "--densities", "published:nothing"),
    "other densities": ("report", "train.h2l", "--densities", "sparse"),
    "absent densities": ("report", "train.h2l", "--densities", "absent.toml"),
    "densities of another network": ("report", "train.h2l", "--densities", "published:imagenet"),
    "page in no folder": ("report", "net.h2l", "--html", "absent/r.html"),
    "trace in no folder": ("report", "net.h2l", "--html", "out/r.html", "--trace", "absent/t.json"),
    "page is a folder": ("report", "net.h2l", "--html", "out"),
    "page of another suffix": ("report", "net.h2l", "--html", "out/r.txt"),
    "trace of another suffix": ("report", "net.h2l", "--trace", "out/t.trace"),
}


@pytest.mark.parametrize("name", CASES)
def test_bad_input_leaves_nothing(name: str, files: Path) -> None:
    before = sorted(os.listdir())
    outputs = (
        () if "--html" in CASES[name] or "--trace" in CASES[name] else ("--html", "out/r.html", "--trace", "out/t.json")
    )
    message = refusal(*CASES[name], *outputs)
    assert "Traceback" not in message
    assert sorted(os.listdir()) == before
    assert os.listdir("out") == []


def test_a_folder_that_disappears_leaves_nothing(files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The page is ready to be renamed when the trace turns out not to be writable."""
    import spikec.report.files as command

    whole = command.write_trace

    def full(*arguments: object) -> None:
        whole(*arguments)  # type: ignore[arg-type]
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(command, "write_trace", full)
    assert "No space left" in refusal(
        "report", "net.h2l", "--no-what-if", "--html", "out/r.html", "--trace", "out/t.json"
    )
    assert os.listdir("out") == []


def test_what_a_program_rests_on_is_its_own_configuration(files: Path) -> None:
    assert result("report", "train.h2l", "--no-what-if")["samples_per_group"] == 2 * _group()
    assert cli.BAD_INPUT == 2


def _group() -> int:
    training = PROGRAMS[0]().training
    assert training is not None
    return training.batch_group
