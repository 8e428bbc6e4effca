"""Five hundred designs for the training of CIFAR10's network, with its time."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from hwmodel.config import load_config
from spikec.explore.space import default_space
from spikec.reproduce.facts import load_facts
from spikec.reproduce.networks import time_of
from tests.spikec.command import result
from tests.spikec.explore.studies import records

COMMAND = ("explore", "zoo:cifar10", "--mode", "train", "--points", "500", "--jobs", "2")


@pytest.mark.slow
def test_five_hundred_designs(workplace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report = result(*COMMAND, "-o", "r.jsonl", "--figure", "f.svg")
    with capsys.disabled():
        print(f"\n{' '.join(COMMAND)}: {report['seconds']:.1f} s")
    lines = records(Path("r.jsonl"))
    assert [line["point"] for line in lines] == list(range(report["designs"]))
    assert report["designs"] in (500, 501)  # the base may be among those drawn
    config = load_config("h2learn")
    want = 1 / time_of(load_facts(), "cifar10", config).seconds_per_sample(16)
    assert lines[0]["samples_per_second"] == pytest.approx(want, rel=1e-12)
    axes = {axis.path: axis.values for axis in default_space().axes}
    seen = {(path, value) for line in lines for path, value in line["changes"].items()}
    assert seen <= {(path, value) for path, values in axes.items() for value in values}
    assert len(seen) == sum(len(values) - 1 for values in axes.values())  # every value but the base's own
    assert json.loads(Path("r.jsonl").read_text().splitlines()[0])["densities"] == "published:cifar10"
