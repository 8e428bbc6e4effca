"""`spikec train stdp:N` from end to end: what it prints and writes, how it goes on, and what it refuses."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from compiler.evaluate import evaluate
from compiler.ir.file import load_graph
from frontends.datasets import train_and_test
from frontends.stdp.trainer import StdpTrainer
from tests.spikec.command import refusal, result, spikec
from tests.spikec.test_train import interrupted_at, metrics
from tests.spikec.training import few_digits

LAYER = ("train", "stdp:12", "--data", "few.npz", "--timesteps", "5", "--epochs", "2", "--batch", "8")


@pytest.fixture(autouse=True)
def digits(workplace: Path) -> Path:
    return few_digits(workplace / "few.npz", 80)


def test_report_and_file_agree(workplace: Path) -> None:
    report = result(*LAYER, "-o", "out/net.spk", "--lr", "0.1")
    assert (report["rule"], report["neurons"], report["timesteps"]) == ("stdp", 12, 5)
    assert (report["epochs"], report["batch"], report["steps"]) == (2, 8, 16)
    assert report["learning_rate"] == 0.1
    assert len(report["accuracies"]) == len(report["weight_changes"]) == 2
    graph = load_graph(Path("out/net.spk"))
    _, test = train_and_test("few.npz")
    classes = evaluate(graph, torch.from_numpy(test.x)).output.argmax(1).numpy()
    assert report["accuracy_test"] == pytest.approx(np.mean(classes == test.y), abs=1e-12)
    assert 0 <= report["accuracy_test_inhibited"] <= 1
    assert 0 <= report["neurons_silent"] <= 12


def test_table(workplace: Path) -> None:
    outcome = spikec(*LAYER, "--rule", "stdp", "-o", "out/net.spk", "--checkpoint", "out/c")
    assert (outcome.code, outcome.err) == (0, "")
    for text in ("stdp:12 trained on few.npz by plasticity", "with lateral inhibition", "epoch 2", "out/net.spk"):
        assert text in outcome.out


def test_same_seed_same_bytes(workplace: Path) -> None:
    def trained(*options: str) -> bytes:
        assert spikec(*LAYER, *options, "-o", "out/net.spk").code == 0
        return Path("out/net.spk").read_bytes()

    assert trained() == trained()
    assert trained("--seed", "1") != trained()


def test_an_interrupted_run_goes_on(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = (*LAYER, "-o", "out/net.spk", "--json")
    whole = spikec(*run)
    want = Path("out/net.spk").read_bytes()
    Path("out/net.spk").unlink()
    with monkeypatch.context() as patch:
        patch.setattr(StdpTrainer, "step", interrupted_at(StdpTrainer.step, 11))
        outcome = spikec(*run, "--checkpoint", "out/c")
    assert outcome.code != 0
    assert "interrupted; the same command goes on from out/c" in outcome.err
    resumed = spikec(*run, "--checkpoint", "out/c")
    assert Path("out/net.spk").read_bytes() == want
    assert metrics(resumed) == metrics(whole)


def test_the_checkpoint_of_another_run(workplace: Path) -> None:
    assert spikec(*LAYER, "--checkpoint", "out/c").code == 0
    text = refusal(*LAYER, "--checkpoint", "out/c", "--lr", "0.3")
    assert "is a checkpoint of another run: learning_rate is" in text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("stdp:none",), "stdp:none: error: 'none' is no number of neurons"),
        (("stdp:0",), "--neurons: error: is 0, must be at least 1"),
        (("stdp:",), "stdp:: error: '' is no number of neurons"),
        (("stdp:5", "--rule", "bptt"), "--rule: error: bptt does not train stdp:5"),
        (("zoo:digits-fc", "--rule", "stdp"), "--rule: error: stdp trains one layer, not zoo:digits-fc"),
        (("stdp:5", "--momentum", "0.5"), "--momentum: error: means nothing for stdp"),
        (("stdp:5", "--backend", "torch"), "--backend: error: means nothing for stdp"),
        (("stdp:5", "--timesteps", "0"), "--timesteps: error: is 0, must be at least 1"),
        (("stdp:5", "--epochs", "0"), "--epochs: error: is 0"),
        (("stdp:5", "--lr", "-1"), "--lr: error: is -1, must be positive and finite"),
        (("stdp:5", "--seed", "-1"), "--seed: error: is -1"),
        (("stdp:5", "-o", "out/net.onnx"), "out/net.onnx: error: a network's file must end in .spk"),
        (("stdp:5", "-o", "nowhere/net.spk"), "the folder nowhere does not exist"),
        (("stdp:5", "--checkpoint-every", "3"), "--checkpoint-every: error: needs a file to write to"),
    ],
)
def test_refusals(workplace: Path, arguments: tuple[str, ...], message: str) -> None:
    model, *options = arguments
    assert message in refusal("train", model, "--data", "few.npz", *options)


def test_samples_that_are_no_probabilities(workplace: Path) -> None:
    np.savez("large.npz", x=np.full((10, 1, 4, 4), 7.0, np.float32), y=np.arange(10))
    assert "holds values from 7 to 7" in refusal("train", "stdp:5", "--data", "large.npz")
    assert "has no labels" in refusal("train", "stdp:5", "--data", "synthetic:1x4x4")


def test_several_processes(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("WORLD_SIZE", "2"), ("RANK", "0"), ("MASTER_ADDR", "localhost"), ("MASTER_PORT", "29400")):
        monkeypatch.setenv(name, value)
    assert "stdp trains in one process, and torchrun started 2" in refusal(*LAYER)
