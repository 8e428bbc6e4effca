"""An exploration on a disk that fills up, by a real limit of the size of files."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from tests.spikec.command import result
from tests.spikec.explore.studies import MODEL, records, space_file

ROOT = Path(__file__).parents[3]
PROGRAM = "import sys; sys.argv[0] = 'spikec'; from spikec.cli import main; main()"
FILE = Path("r.jsonl")


def limited(command: list[str], size: int) -> subprocess.CompletedProcess[str]:
    """The command in a process none of whose files may be larger."""
    return subprocess.run(
        [sys.executable, "-c", PROGRAM, *command],
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (size, size)),
        env=os.environ | {"PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize("jobs", ["1", pytest.param("2", marks=pytest.mark.slow)])
def test_one_error_and_finished_points_stay(workplace: Path, jobs: str) -> None:
    """The file ends where the limit is, in the middle of a line; the same command goes on from there."""
    command = [*MODEL, "--space", str(space_file(workplace)), "--points", "0", "-o", str(FILE)]
    result(*command, "--jobs", "1")
    want = FILE.read_bytes()
    FILE.unlink()
    size = len(want) // 2
    run = limited([*command, "--jobs", jobs], size)
    assert (run.returncode, run.stdout, run.stderr) == (2, "", "r.jsonl: error: cannot be written: File too large\n")
    left = FILE.read_bytes()
    assert len(left) == size
    assert not left.endswith(b"\n")
    lines = set(want.splitlines())
    whole = left.splitlines()[:-1]
    assert len(whole) == len(records(FILE)) + 1 > 2
    assert lines.issuperset(whole)
    assert sorted(os.listdir()) == ["out", "r.jsonl", "space.toml"]
    result(*command, "--jobs", jobs)
    assert FILE.read_bytes() == want


@pytest.mark.slow
def test_no_room_for_the_header(workplace: Path) -> None:
    command = [*MODEL, "--space", str(space_file(workplace)), "--points", "1", "--jobs", "1", "-o", str(FILE)]
    run = limited(command, 100)
    assert (run.returncode, run.stderr) == (2, "r.jsonl: error: cannot be written: File too large\n")
    assert sorted(os.listdir()) == ["out", "space.toml"]
