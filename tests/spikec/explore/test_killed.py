"""An exploration that is killed at any moment and begun again: the same bytes, and no point twice."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.spikec.command import result
from tests.spikec.explore.studies import MODEL, SIZE, records, space_file

ROOT = Path(__file__).parents[3]
PROGRAM = "import sys; sys.argv[0] = 'spikec'; from spikec.cli import main; main()"
FILE = Path("r.jsonl")


def arguments(folder: Path, *more: str) -> list[str]:
    return [*MODEL, "--space", str(space_file(folder)), "--points", "0", "-o", str(FILE), *more]


def killed_once(command: list[str], folder: Path, wait_s: float) -> None:
    """Run until the file grows and some time longer, then SIGKILL."""
    before = FILE.stat().st_size if FILE.exists() else 0
    run = subprocess.Popen(
        command,
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )
    while (FILE.stat().st_size if FILE.exists() else 0) == before and run.poll() is None:
        time.sleep(0.001)
    time.sleep(wait_s)
    run.kill()
    _, talk = run.communicate()
    assert run.returncode == -9, f"ended before it was killed: {talk.decode()}"


def check(folder: Path, kills: int, longest_s: float, *options: str) -> None:
    result(*arguments(folder, "--jobs", "1"))
    want = FILE.read_bytes()
    FILE.unlink()
    command = [sys.executable, "-c", PROGRAM, *arguments(folder, *options)]
    moments = random.Random(kills)
    before = b""
    for _ in range(kills):
        killed_once(command, folder, moments.uniform(0, longest_s))
        content = FILE.read_bytes()
        assert content.startswith(before)  # what was finished stays, and is not written again
        before = content[: content.rfind(b"\n") + 1]
        points = [record["point"] for record in records(FILE)]
        assert len(points) == len(set(points)) <= SIZE
    result(*arguments(folder, *options))
    assert FILE.read_bytes() == want
    assert sorted(os.listdir(folder)) == ["out", "r.jsonl", "space.toml"]


def test_killed_once(workplace: Path) -> None:
    check(workplace, 1, 0.02, "--jobs", "1")


@pytest.mark.slow
@pytest.mark.parametrize("jobs", ["1", "2"])
def test_killed_five_times(workplace: Path, jobs: str) -> None:
    check(workplace, 5, 0.02, "--jobs", jobs)


@pytest.mark.slow
def test_workers_end_with_their_parent(workplace: Path) -> None:
    """A killed run leaves no process behind that still holds its folder."""
    command = [sys.executable, "-c", PROGRAM, *arguments(workplace, "--jobs", "2")]
    killed_once(command, workplace, 0)
    deadline = time.monotonic() + 30
    while (left := [path for path in Path("/proc").glob("[0-9]*/cwd") if _leads_to(path, workplace)]) and (
        time.monotonic() < deadline
    ):
        time.sleep(0.1)
    assert [path for path in left if path.parent.name != str(os.getpid())] == []


def _leads_to(link: Path, folder: Path) -> bool:
    try:
        return link.parent.name != str(os.getpid()) and link.resolve() == folder.resolve()
    except OSError:
        return False


@pytest.mark.slow
def test_a_dask_cluster_gives_the_same_file(workplace: Path) -> None:
    result(*arguments(workplace, "--jobs", "1"))
    want = FILE.read_bytes()
    FILE.unlink()
    result(*arguments(workplace, "--jobs", "2", "--cluster", "local"))
    assert FILE.read_bytes() == want


@pytest.mark.slow
def test_a_dask_cluster_by_its_address(workplace: Path) -> None:
    from distributed import LocalCluster

    result(*arguments(workplace, "--jobs", "1"))
    want = FILE.read_bytes()
    FILE.unlink()
    with LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster:
        result(*arguments(workplace, "--cluster", cluster.scheduler_address))
    assert FILE.read_bytes() == want
