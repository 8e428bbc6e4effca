"""A run that is killed at any moment and begun again ends with the bytes of one that is left alone."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.spikec.command import spikec
from tests.spikec.training import NETWORK, few_digits

ROOT = Path(__file__).parents[2]
PROGRAM = "import sys; sys.argv[0] = 'spikec'; from spikec.cli import main; main()"
ASIDE = ("seconds", "seconds_training", "checkpoint")


def arguments(backend: str, epochs: int, *more: str) -> list[str]:
    options = ("--backend", backend, "--epochs", str(epochs), "--batch", "4", "--no-compare", "--no-golden-check")
    return [*NETWORK, *options, "-o", "net.spk", "--json", *more]


def saves(checkpoint: Path) -> int:
    return checkpoint.stat().st_mtime_ns if checkpoint.exists() else 0


def killed_once(command: list[str], folder: Path, checkpoint: Path, wait_s: float) -> None:
    """Run until a checkpoint is written and some time longer, then SIGKILL."""
    before = saves(checkpoint)
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    run = subprocess.Popen(command, cwd=folder, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    while saves(checkpoint) == before and run.poll() is None:
        time.sleep(0.005)
    time.sleep(wait_s)
    run.kill()
    _, talk = run.communicate()
    assert run.returncode == -9, f"ended before it was killed: {talk.decode()}"


def check(folder: Path, backend: str, kills: int, epochs: int, longest_s: float) -> None:
    few_digits(folder / "few.npz")
    whole = spikec(*arguments(backend, epochs))
    assert whole.code == 0, whole.err
    want = (folder / "net.spk").read_bytes()
    (folder / "net.spk").unlink()
    command = [
        sys.executable,
        "-c",
        PROGRAM,
        *arguments(backend, epochs, "--checkpoint", "c", "--checkpoint-every", "1"),
    ]
    moments = random.Random(kills)
    for _ in range(kills):
        killed_once(command, folder, folder / "c", moments.uniform(0, longest_s))
        assert not (folder / "net.spk").exists()
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    last = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=True)
    assert (folder / "net.spk").read_bytes() == want
    assert sorted(os.listdir(folder)) == ["c", "few.npz", "net.spk", "out"]
    ours, theirs = json.loads(last.stdout), dict(whole.json)
    for name in ASIDE:
        del ours[name], theirs[name]
    assert ours == theirs


def test_killed_twice(workplace: Path) -> None:
    check(workplace, "torch", kills=2, epochs=60, longest_s=0.3)


@pytest.mark.slow
@pytest.mark.parametrize(("backend", "epochs"), [("torch", 300), ("h2learn", 120)])
def test_killed_ten_times(workplace: Path, backend: str, epochs: int) -> None:
    check(workplace, backend, kills=10, epochs=epochs, longest_s=0.5)
