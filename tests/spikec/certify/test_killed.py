"""A certification that is killed or shared by workers: the same bytes, and no sample twice."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.spikec.certify.certified import SAMPLES, written
from tests.spikec.command import result

ROOT = Path(__file__).parents[3]
PROGRAM = "import sys; sys.argv[0] = 'spikec'; from spikec.cli import main; main()"
FILE = Path("r.jsonl")


def arguments(*more: str) -> list[str]:
    """All samples; the files are there."""
    options = ("--samples", str(SAMPLES), "--set", "linf:eps=0.04", "-o", str(FILE))
    return ["certify", "direct.spk", "--data", "direct.npz", *options, *more]


def wanted() -> bytes:
    """The file of an undisturbed run; it is gone then."""
    written(Path(), "direct")
    result(*arguments())
    content = FILE.read_bytes()
    FILE.unlink()
    return content


def killed_once(command: list[str], wait_s: float) -> None:
    """Run until the file has another line and some time longer, then SIGKILL."""
    before = FILE.stat().st_size if FILE.exists() else 0
    run = subprocess.Popen(
        command, env=os.environ | {"PYTHONPATH": str(ROOT)}, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )
    while not FILE.exists() or FILE.read_bytes().count(b"\n") < 2 or FILE.stat().st_size == before:
        assert run.poll() is None, run.communicate()
        time.sleep(0.001)
    time.sleep(wait_s)
    run.kill()
    _, talk = run.communicate()
    assert run.returncode == -9, f"ended before it was killed: {talk.decode()}"


def check(kills: int, *options: str) -> None:
    want = wanted()
    command = [sys.executable, "-c", PROGRAM, *arguments(*options)]
    moments = random.Random(kills)
    before = b""
    for _ in range(kills):
        killed_once(command, moments.uniform(0, 0.02))
        content = FILE.read_bytes()
        assert content.startswith(before)  # what was finished stays, and is not written again
        before = content[: content.rfind(b"\n") + 1]
        samples = [json.loads(line)["sample"] for line in before.splitlines()[1:]]
        assert 1 <= len(samples) == len(set(samples)) < SAMPLES
    result(*arguments(*options))
    assert FILE.read_bytes() == want
    assert sorted(os.listdir()) == ["direct.npz", "direct.spk", "out", "r.jsonl"]


def test_killed_once(workplace: Path) -> None:
    check(1)


@pytest.mark.slow
@pytest.mark.parametrize("jobs", ["1", "2"])
def test_killed_twice(workplace: Path, jobs: str) -> None:
    check(2, "--jobs", jobs)


@pytest.mark.slow
def test_two_processes_give_the_same_bytes(workplace: Path) -> None:
    want = wanted()
    result(*arguments("--jobs", "2"))
    assert FILE.read_bytes() == want


@pytest.mark.slow
def test_a_dask_cluster_gives_the_same_bytes(workplace: Path) -> None:
    want = wanted()
    result(*arguments("--jobs", "2", "--cluster", "local"))
    assert FILE.read_bytes() == want
