"""What `spikec train` is refused with, before it trains; nothing is left behind."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from compiler.ir import Surrogate, SurrogateKind
from frontends.descent import F32, BatchResult, Labels
from frontends.torch_training import TorchTrainer
from spikec.training.h2learn import H2LearnTrainer
from tests.golden import Golden
from tests.spikec.command import refusal, spikec
from tests.spikec.graphs import saved
from tests.spikec.test_refusals import messages
from tests.spikec.training import NETWORK, few_digits

TRAIN = ("train", "net.spk", "--data", "few.npz", "--epochs", "1", "-o", "out/n.spk")
MACHINE = ("--backend", "h2learn", "--no-compare", "--no-golden-check")


@pytest.fixture(autouse=True)
def files(workplace: Path) -> Path:
    few_digits(workplace / "few.npz")
    saved(workplace / "net.spk")
    return workplace


def test_options(files: Path, golden: Golden) -> None:
    Path("folder.spk").mkdir()
    names = ("epochs", "batch", "machines", "sub-batch", "checkpoint-every")
    cases = {f"no {name}": (*TRAIN, f"--{name}", "0") for name in names}
    for option, values in {
        "lr": ("0", "-1", "nan", "inf"),
        "momentum": ("-0.1", "1", "nan"),
        "weight-decay": ("-1", "inf"),
        "loss-scale": ("0", "-2", "inf", "nan"),
    }.items():
        cases |= {f"{option} {value}": (*TRAIN, f"--{option}", value) for value in values}
    cases |= {
        "negative seed": (*TRAIN, "--seed", "-1"),
        "no time steps": (*TRAIN, "--timesteps", "0"),
        "checkpoints without a file": (*TRAIN, "--checkpoint-every", "5"),
        "output of another kind": (*TRAIN[:-1], "out/n.h2l"),
        "output in an absent folder": (*TRAIN[:-1], "nowhere/n.spk"),
        "output is a folder": (*TRAIN[:-1], "folder.spk"),
        "checkpoint in an absent folder": (*TRAIN, "--checkpoint", "nowhere/c"),
        "checkpoint is a folder": (*TRAIN, "--checkpoint", "out"),
        "checkpoint is a network": (*TRAIN, "--checkpoint", "net.spk"),
        "checkpoint is data": (*TRAIN, "--checkpoint", "few.npz"),
        "unknown preset": (*TRAIN, "--config", "h3learn"),
        "large sub-batch": (*TRAIN, *MACHINE, "--sub-batch", "100000"),
    }
    golden("train_options.txt", messages(cases))
    before = few_digits(Path("again.npz")).read_bytes()
    assert Path("few.npz").read_bytes() == before


def test_words_that_are_no_choice(files: Path) -> None:
    for option in ("--loss", "--backend"):
        outcome = spikec(*TRAIN, option, "hinge")
        assert (outcome.code, outcome.out) == (2, "")
        assert option in outcome.err
        assert "'hinge' is not one of" in outcome.err


def test_data(files: Path, golden: Golden) -> None:
    digits = np.load("few.npz")
    np.savez("eleven.npz", x=digits["x"], y=np.arange(60) % 11)
    np.savez("four.npz", x=digits["x"][:4], y=digits["y"][:4])
    cases = {
        "unknown": "letters",
        "no labels": "synthetic:1x8x8",
        "a sequence": "synthetic:4x1x8x8",
        "a class too many": "eleven.npz",
        "nothing to hold out": "four.npz",
        "absent": "absent.npz",
    }
    np.savez("wide.npz", x=np.zeros((10, 1, 8, 9), np.float32), y=np.zeros(10, np.int64))
    cases["another shape"] = "wide.npz"
    golden("train_data.txt", messages({name: (*TRAIN[:3], data, *TRAIN[4:]) for name, data in cases.items()}))


def test_what_the_accelerator_cannot_train(files: Path, golden: Golden) -> None:
    saved(files / "smooth.spk", lif1={"surrogate": Surrogate(kind=SurrogateKind.ATAN)})
    cases = {
        "another surrogate": ("train", "smooth.spk", *TRAIN[2:], *MACHINE),
        "loss scale": (*TRAIN, *MACHINE, "--loss-scale", "1e9"),
        "another optimiser": (*TRAIN, *MACHINE, "--optimiser", "adam"),
    }
    golden("train_machine.txt", messages(cases))
    hint = "fold it into the weights first (--fold-batch-norm), or use the torch backend"
    assert hint in refusal(*NETWORK, *MACHINE, "--no-fold-batch-norm")


def test_a_checkpoint_of_another_run(files: Path) -> None:
    run = (*NETWORK, "--epochs", "1", "--batch", "16", "--checkpoint", "c")
    assert spikec(*run).code == 0
    before = Path("c").read_bytes()
    for option, value, said in (
        ("--seed", "1", "seed is 0 there and 1 here"),
        ("--epochs", "2", "epochs is 1 there and 2 here"),
        ("--lr", "0.25", "learning_rate is"),
        ("--loss", "cross_entropy", "loss is mse there and cross_entropy here"),
        ("--backend", "h2learn", "backend is torch there and h2learn here"),
        ("--no-fold-batch-norm", "", "fold_batch_norm is True there and False here"),
    ):
        message = refusal(*run, *filter(None, (option, value)))
        assert "c: error: is a checkpoint of another run: " in message
        assert said in message
    few_digits(Path("few.npz"), samples=55)
    assert "training samples is" in refusal(*run)
    assert Path("c").read_bytes() == before


def test_the_same_options_on_another_accelerator_are_another_run(files: Path) -> None:
    Path("small.toml").write_text('base = "h2learn"\nname = "small"\n[forward]\ncols = 8\n')
    run = (*TRAIN, *MACHINE, "--checkpoint", "c")
    assert spikec(*run).code == 0
    for options, said in (
        (("--config", "small.toml"), "config is"),
        (("--sub-batch", "2"), "sub_batch is 4 there and 2 here"),
        (("--machines", "3"), "machines is 1 there and 3 here"),
        (("--master-weights",), "master_weights is False there and True here"),
        (("--loss-scale", "2"), "loss_scale is"),
    ):
        assert said in refusal(*run, *options)


@pytest.mark.parametrize("kind", [TorchTrainer, H2LearnTrainer])
def test_a_loss_that_is_not_finite(files: Path, monkeypatch: pytest.MonkeyPatch, kind: type) -> None:
    step, done = kind.step, []  # type: ignore[attr-defined]

    def poisoned(self: object, x: F32, labels: Labels, rate: float) -> BatchResult:
        done.append(rate)
        result: BatchResult = step(self, x, labels, rate)
        return replace(result, loss=float("nan")) if len(done) == 3 else result

    monkeypatch.setattr(kind, "step", poisoned)
    message = refusal(*TRAIN, "--batch", "16", *(MACHINE if kind is H2LearnTrainer else ()))
    assert message == (
        "training on few.npz: error: the loss is nan in epoch 1, step 3\n  hint: lower the learning rate (--lr)\n"
    )
    assert os.listdir("out") == []


def test_an_unwritable_folder(files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(dir: Path) -> None:  # as the function replaced
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr("spikec.training.request.tempfile.TemporaryFile", refused)
    assert refusal(*TRAIN) == "out/n.spk: error: the folder out cannot be written: Read-only file system\n"
    assert refusal(*TRAIN[:-2], "--checkpoint", "out/c").startswith("out/c: error: the folder out cannot be written")
