"""`spikec certify --least-flips`: the report, resuming, workers, refusals."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.spikec.certify.certified import written
from tests.spikec.command import refusal, result, spikec

COMMAND = ("certify", "spikes.spk", "--data", "spikes.npz", "--least-flips", "--quantise", "6", "--samples", "6")
FILE = Path("flips.jsonl")


@pytest.fixture
def files(workplace: Path) -> Path:
    """The working folder with a network of spikes, one of images, and samples."""
    for kind in ("spikes", "direct"):
        written(Path(), kind)
    return workplace


@pytest.mark.usefixtures("files")
def test_exact_numbers_lie_between_bounds_and_attack() -> None:
    found = result(*COMMAND)
    records = found["records"]
    assert [record["sample"] for record in records] == list(range(6))
    assert found["exact"] + found["clean_errors"] == 6
    right = [record for record in records if record["certified"] is not None]
    assert len(right) >= 3
    for record in right:
        assert record["certified"] < record["lower"] == record["flips"]
        assert record["attack"] is None or record["attack"] >= record["flips"]
    assert any(record["attack"] is not None for record in right)
    assert found["mean_least"] == sum(record["flips"] for record in right) / len(right)


@pytest.mark.usefixtures("files")
def test_a_cut_file_goes_on_to_the_same_records() -> None:
    def plain(records: list[dict[str, object]]) -> list[dict[str, object]]:
        return [{name: value for name, value in record.items() if name != "seconds"} for record in records]

    whole = result(*COMMAND, "-o", str(FILE))["records"]
    lines = FILE.read_bytes().splitlines(keepends=True)
    FILE.write_bytes(b"".join(lines[:4]) + lines[4][:9])
    kept = [json.loads(line) for line in lines[1:4]]
    resumed = result(*COMMAND, "-o", str(FILE), "--jobs", "2")["records"]
    assert plain(resumed) == plain(whole)
    assert [json.loads(line) for line in FILE.read_text().splitlines()[1:4]] == kept


@pytest.mark.usefixtures("files")
def test_the_table_names_each_sample() -> None:
    done = spikec(*COMMAND)
    assert done.code == 0
    assert "least number of flips known" in done.out


@pytest.mark.usefixtures("files")
@pytest.mark.parametrize(
    ("options", "words"),
    [
        pytest.param(("--set", "l0:k=1"), ("--set", "meaningless with --least-flips"), id="set"),
        pytest.param(("--work", "3"), ("--work", "meaningless with --least-flips"), id="work"),
        pytest.param(("--seconds", "0"), ("--seconds", "must be positive"), id="seconds"),
        pytest.param(("-o", "none/flips.jsonl"), ("does not exist",), id="folder"),
    ],
)
def test_what_does_not_fit_is_refused(options: tuple[str, ...], words: tuple[str, ...]) -> None:
    text = refusal(*COMMAND, *options)
    for word in words:
        assert word in text


@pytest.mark.usefixtures("files")
def test_floats_and_images_are_refused() -> None:
    assert "add --quantise 6" in refusal("certify", "spikes.spk", "--data", "spikes.npz", "--least-flips")
    images = ("certify", "direct.spk", "--data", "direct.npz", "--least-flips", "--quantise", "6")
    assert "flips are of spikes" in refusal(*images)


@pytest.mark.usefixtures("files")
def test_the_file_of_other_options_is_refused() -> None:
    result(*COMMAND, "-o", str(FILE))
    before = FILE.read_bytes()
    assert "of another flip study" in refusal(*COMMAND[:-1], "5", "-o", str(FILE))
    assert FILE.read_bytes() == before
