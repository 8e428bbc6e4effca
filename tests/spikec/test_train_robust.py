"""`spikec train --robust`: what it prints and refuses, and that an interrupted run goes on as if it had not been."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from compiler.ir.file import load_graph
from frontends.datasets import train_and_test
from frontends.descent import F32, BatchResult, Labels
from frontends.robust.certified import certified
from frontends.robust.settings import Linf
from frontends.robust.trainer import RobustTrainer
from tests.golden import Golden
from tests.spikec.command import result, spikec
from tests.spikec.graphs import saved
from tests.spikec.test_refusals import messages
from tests.spikec.training import few_digits

TRAIN = ("train", "net.spk", "--data", "few.npz", "--epochs", "2", "--batch", "8")  # 6 steps an epoch
ROBUST = (*TRAIN, "--robust", "linf:eps=0.02")


@pytest.fixture(autouse=True)
def files(workplace: Path) -> Path:
    few_digits(workplace / "few.npz")
    saved(workplace / "net.spk", {"b1": np.zeros(4, np.float32)})
    return workplace


def test_report(files: Path) -> None:
    options = ("--robust-timesteps", "2", "--robust-weight", "0.5", "--robust-kappa", "0.25", "--robust-samples", "7")
    report = result(*ROBUST, *options, "-o", "out/net.spk")
    assert (report["loss_function"], report["optimiser"], report["schedule"]) == ("cross_entropy", "adam", "constant")
    assert (report["robust"], report["robust_timesteps"]) == ("linf:eps=0.02", 2)
    assert (report["robust_warmup"], report["robust_weight"], report["robust_kappa"]) == (5 / 6, 0.5, 0.25)
    assert (report["steps"], report["certified_samples"]) == (12, 7)
    graph = load_graph(Path("out/net.spk"))
    assert graph.timesteps == 4
    test = train_and_test("few.npz")[1].take(slice(7))
    assert report["certified_accuracy"] == certified(graph, test, Linf(eps=0.02)).mean()
    assert 0 <= report["certified_accuracy"] <= 1


def test_table(files: Path) -> None:
    outcome = spikec(*ROBUST)
    assert (outcome.code, outcome.err) == (0, "")
    for text in ("certified by S-IBP, first 12 test samples", "linf:eps=0.02, 4", "0.833333, 0.6, 0"):
        assert text in outcome.out


def test_an_interrupted_run_ends_with_the_same_bytes(files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert spikec(*ROBUST, "-o", "out/whole.spk").code == 0
    own = RobustTrainer.step
    shown: list[int] = []

    def stops(self: RobustTrainer, x: F32, labels: Labels, learning_rate: float) -> BatchResult:
        shown.append(len(labels))
        if len(shown) == 8:
            raise InterruptedError
        return own(self, x, labels, learning_rate)

    command = (*ROBUST, "-o", "out/net.spk", "--checkpoint", "c", "--checkpoint-every", "1")
    with monkeypatch.context() as patch:
        patch.setattr(RobustTrainer, "step", stops)
        with pytest.raises(InterruptedError):
            spikec(*command)
    assert spikec(*command).code == 0
    assert Path("out/net.spk").read_bytes() == Path("out/whole.spk").read_bytes()
    other = spikec(*command, "--robust-weight", "0.3")
    assert other.code == 2
    assert "robust weight is 0.6 there and 0.3 here" in other.err


def test_refusals(files: Path, golden: Golden) -> None:
    begin = (*TRAIN, "-o", "out/n.spk")
    robust = (*begin, "--robust", "linf:eps=0.02")
    cases = {
        "unknown set": (*begin, "--robust", "l2:eps=1"),
        "no width": (*begin, "--robust", "linf:eps=0"),
        "flips of real values": (*begin, "--robust", "l0:k=4"),
        "numbers without a set": (*begin, "--robust-weight", "0.5"),
        "no time steps": (*robust, "--robust-timesteps", "0"),
        "weight": (*robust, "--robust-weight", "1.1"),
        "warm-up": (*robust, "--robust-warmup", "-1"),
        "kappa": (*robust, "--robust-kappa", "nan"),
        "no samples": (*robust, "--robust-samples", "0"),
        "on the accelerator": (*robust, "--backend", "h2learn", "--optimiser", "sgd"),
        "on fused kernels": (*robust, "--backend", "fused"),
        "a layer of plasticity": ("train", "stdp:10", "--data", "few.npz", "--robust", "l0:k=4"),
    }
    golden("train_robust.txt", messages(cases))
