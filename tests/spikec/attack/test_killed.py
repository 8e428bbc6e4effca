"""An attack that is killed, runs out of disk or is shared by workers: the same bytes, and no case twice."""

from __future__ import annotations

import json
import os
import random
import resource
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.spikec.attack.attacked import SAMPLES, written
from tests.spikec.command import result

ROOT = Path(__file__).parents[3]
PROGRAM = "import sys; sys.argv[0] = 'spikec'; from spikec.cli import main; main()"
FILE = Path("r.jsonl")
CASES = 9 * SAMPLES


def arguments(*more: str) -> list[str]:
    """Every sample towards every other class; the files are there."""
    options = ("--samples", str(SAMPLES), "--target", "all", "--fresh", "9", "--restarts", "3", "-o", str(FILE))
    return ["attack", "bernoulli.spk", "--data", "bernoulli.npz", *options, *more]


def wanted() -> bytes:
    """The file of an undisturbed run; it is gone then."""
    written(Path(), "bernoulli")
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
    while _lines() < 2 or FILE.stat().st_size == before:
        assert run.poll() is None, run.communicate()
        time.sleep(0.001)
    time.sleep(wait_s)
    run.kill()
    _, talk = run.communicate()
    assert run.returncode == -9, f"ended before it was killed: {talk.decode()}"


def _lines() -> int:
    return FILE.read_bytes().count(b"\n") if FILE.exists() else 0


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
        cases = [json.loads(line)["case"] for line in before.splitlines()[1:]]
        assert 1 <= len(cases) == len(set(cases)) < CASES
    result(*arguments(*options))
    assert FILE.read_bytes() == want
    assert sorted(os.listdir()) == ["bernoulli.npz", "bernoulli.spk", "out", "r.jsonl"]


def test_killed_once(workplace: Path) -> None:
    check(1)


@pytest.mark.slow
@pytest.mark.parametrize("jobs", ["1", "2"])
def test_killed_three_times(workplace: Path, jobs: str) -> None:
    check(3, "--jobs", jobs)


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


def test_a_disk_that_fills_up(workplace: Path) -> None:
    """One error, and what is finished stays; by a real limit of the size of files."""
    want = wanted()
    size = len(want) // 2
    run = subprocess.run(
        [sys.executable, "-c", PROGRAM, *arguments()],
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (size, size)),
        env=os.environ | {"PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (run.returncode, run.stdout, run.stderr) == (2, "", "r.jsonl: error: cannot be written: File too large\n")
    left = FILE.read_bytes()
    assert len(left) == size
    assert set(want.splitlines()).issuperset(left.splitlines()[:-1])
    assert sorted(os.listdir()) == ["bernoulli.npz", "bernoulli.spk", "out", "r.jsonl"]
    result(*arguments())
    assert FILE.read_bytes() == want
