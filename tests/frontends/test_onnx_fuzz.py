"""Damaged and hostile ONNX files are refused or imported rightly: no crash, no hang, no file outside the folder."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.frontends.onnx_mutations import campaign

ROOT = Path(__file__).parents[2]


def test_damaged_files(tmp_path: Path) -> None:
    outcomes = campaign(150, 0, tmp_path)
    assert outcomes.total() == 150
    assert outcomes["refused"] > 50


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(1, 5))
def test_many_damaged_files(seed: int) -> None:
    """In a process of its own, so that a crash would be seen, and memory can be measured."""
    command = [sys.executable, "-m", "tests.frontends.onnx_mutations", "500", str(seed)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=3600, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert sum(json.loads(done.stdout.splitlines()[-1])["outcomes"].values()) == 500
