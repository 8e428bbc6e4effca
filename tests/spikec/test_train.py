"""`spikec train` from end to end: what it prints and writes when all is well, on both backends."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from compiler.h2learn.compile_training import CompiledTraining
from compiler.ir import Graph
from compiler.ir.file import load_graph
from compiler.ir.ops import BatchNorm
from frontends.descent import F32, BatchResult, Labels, descent_recipe
from frontends.torch_training import TorchTrainer
from spikec.commands import train as command
from spikec.training.h2learn import H2LearnTrainer
from tests.spikec.command import Outcome, result, spikec
from tests.spikec.conftest import WriteModule
from tests.spikec.graphs import saved
from tests.spikec.test_models import IMAGE, nets
from tests.spikec.training import NETWORK, few_digits

QUICK = ("--epochs", "2", "--batch", "6")  # 48 samples: 8 steps an epoch, the last sub-batch half empty
MACHINE = ("--backend", "h2learn", "--no-compare", "--no-golden-check")


@pytest.fixture(autouse=True)
def digits(workplace: Path) -> Path:
    return few_digits(workplace / "few.npz")


def test_report_in_torch(workplace: Path) -> None:
    report = result(*NETWORK, *QUICK, "-o", "out/net.spk", "--lr", "0.25", "--weight-decay", "0.001")
    recipe = descent_recipe("digits-fc")
    assert report["backend"] == "torch"
    assert (report["epochs"], report["batch"], report["steps"]) == (2, 6, 16)
    assert (report["learning_rate"], report["weight_decay"]) == (0.25, 0.001)
    assert (report["momentum"], report["loss_function"]) == (recipe.momentum, recipe.loss)
    assert report["batch_norm"] == "folded"
    assert len(report["losses"]) == 2
    assert report["loss"] == report["losses"][-1] < report["losses"][0]
    assert report["accuracy_test"] * 12 == pytest.approx(round(report["accuracy_test"] * 12))
    for name in ("accuracy_test_torch", "bit_exact_vs_golden", "updates_lost", "loss_scale", "machines"):
        assert report[name] is None
    graph = load_graph(Path("out/net.spk"))
    assert graph.timesteps == report["timesteps"] == 2
    assert not any(isinstance(node.op, BatchNorm) for node in graph.nodes)


def test_report_on_the_accelerator(workplace: Path) -> None:
    report = result(*NETWORK, *QUICK, "--backend", "h2learn", "-o", "out/net.spk")
    assert report["bit_exact_vs_golden"] is True
    assert report["golden_samples"] == 6
    layers = {"layers.fc1", "layers.fc2", "layers.fc3"}
    assert set(report["updates_lost"]) == layers
    assert all(0 <= lost < 1 for lost in report["updates_lost"].values())
    assert set(report["sparsity"]) <= layers
    assert all(0 <= share <= 1 for row in report["sparsity"].values() for share in row.values())
    assert (report["machines"], report["sub_batch"], report["master_weights"]) == (1, 4, False)
    assert report["accuracy_test_torch"] is not None
    assert report["loss"] < report["losses"][0]
    # the file holds what was trained: the accuracy of the program that it compiles to is the report's
    x, y = np.load("few.npz")["x"], np.load("few.npz")["y"]
    assert spikec("compile", "out/net.spk", "-o", "out/net.h2l").code == 0
    predictions = result("run", "out/net.h2l", "--data", "few.npz")["predictions"]
    held_out = command.training_data("few.npz", load_graph(Path("out/net.spk")))[1]
    hits = [predictions[int(np.argmax((x == one).all((1, 2, 3))))] for one in held_out.x] == held_out.y
    assert report["accuracy_test"] == pytest.approx(np.mean(hits), abs=1e-12)
    assert len(y) == 60


def test_tables(workplace: Path) -> None:
    outcome = spikec(*NETWORK, *QUICK, "--backend", "h2learn", "--checkpoint", "out/c")
    assert (outcome.code, outcome.err) == (0, "")
    for text in (
        "zoo:digits-fc trained on few.npz with h2learn",
        "the same training in torch, f32",
        "engines agree in a step of 6",
        "updates lost in FP16, layers.fc2",
        "mse, epoch 2",
        "out/c",
    ):
        assert text in outcome.out
    assert "engines agree" not in spikec(*NETWORK, *QUICK, *MACHINE).out
    assert "loss scale" not in spikec(*NETWORK, *QUICK).out


def test_same_seed_same_bytes(workplace: Path) -> None:
    def trained(*options: str) -> bytes:
        assert spikec(*NETWORK, *QUICK, *options, "-o", "out/net.spk").code == 0
        return Path("out/net.spk").read_bytes()

    for options in ((), MACHINE):
        first = trained(*options)
        assert trained(*options) == first
        assert trained(*options, "--seed", "1") != first


def test_both_backends_see_the_same_batches_at_the_same_rates(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shown: dict[type, list[tuple[bytes, bytes, float]]] = {TorchTrainer: [], H2LearnTrainer: []}
    for kind, notes in shown.items():
        monkeypatch.setattr(kind, "step", noting(kind.step, notes))  # type: ignore[attr-defined]
    result(*NETWORK, *QUICK, "--backend", "h2learn", "--no-golden-check")
    assert shown[TorchTrainer] == shown[H2LearnTrainer]
    assert len(shown[TorchTrainer]) == 16


Step = Callable[[object, F32, Labels, float], BatchResult]


def noting(step: Step, notes: list[tuple[bytes, bytes, float]]) -> Step:
    def noted(self: object, x: F32, labels: Labels, rate: float) -> BatchResult:
        notes.append((x.tobytes(), labels.tobytes(), rate))
        return step(self, x, labels, rate)

    return noted


def test_machines_and_master_weights(workplace: Path) -> None:
    report = result(*NETWORK, *QUICK, "--backend", "h2learn", "--machines", "2", "--master-weights", "--no-compare")
    assert (report["machines"], report["master_weights"], report["bit_exact_vs_golden"]) == (2, True, True)
    report = result(*NETWORK, *QUICK, *MACHINE, "--sub-batch", "2", "--loss-scale", "64")
    assert (report["sub_batch"], report["loss_scale"]) == (2, 64.0)


def test_a_failed_check_is_exit_code_1(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def different(compiled: CompiledTraining, x: F32, labels: Labels, rate: float) -> bool:
        assert len(x) == len(labels) == 6
        return False

    monkeypatch.setattr(command, "same_as_golden", different)
    outcome = spikec(*NETWORK, *QUICK, "--backend", "h2learn", "--no-compare")
    assert outcome.code == 1
    assert "NO" in outcome.out


def test_a_comparison_that_diverges_costs_only_itself(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def diverging(self: object, x: F32, labels: Labels, rate: float) -> BatchResult:
        return BatchResult(loss=float("nan"), correct=0, samples=len(labels))

    monkeypatch.setattr(TorchTrainer, "step", diverging)
    outcome = spikec(*NETWORK, *QUICK, "--backend", "h2learn", "--no-golden-check", "--json")
    assert outcome.code == 0
    assert outcome.json["accuracy_test_torch"] is None
    assert outcome.err.startswith("no comparison with torch: training on few.npz: error: the loss is nan in epoch 1")


@pytest.mark.parametrize("options", [(), MACHINE], ids=["torch", "h2learn"])
def test_an_interrupted_run_goes_on(workplace: Path, monkeypatch: pytest.MonkeyPatch, options: tuple[str, ...]) -> None:
    """The step that is interrupted is the 11th of 16; every number but the seconds is that of a run without."""

    def run(*more: str) -> Outcome:
        return spikec(*NETWORK, *QUICK, *options, "-o", "out/net.spk", "--json", *more)

    whole = run()
    want = Path("out/net.spk").read_bytes()
    Path("out/net.spk").unlink()
    kind = H2LearnTrainer if options else TorchTrainer
    with monkeypatch.context() as patch:
        patch.setattr(kind, "step", interrupted_at(kind.step, 11))
        outcome = run("--checkpoint", "out/c")
    assert outcome.code != 0
    assert "interrupted; the same command goes on from out/c" in outcome.err
    assert not Path("out/net.spk").exists()
    resumed = run("--checkpoint", "out/c")
    assert Path("out/net.spk").read_bytes() == want
    assert metrics(resumed) == metrics(whole)
    assert metrics(run("--checkpoint", "out/c")) == metrics(whole)


def metrics(outcome: Outcome) -> dict[str, object]:
    assert outcome.code == 0, outcome.err
    aside = ("seconds", "seconds_training", "checkpoint")
    return {name: value for name, value in outcome.json.items() if name not in aside}


def interrupted_at(step: Step, number: int) -> Step:
    import signal

    done = 0

    def interrupted(self: object, x: F32, labels: Labels, rate: float) -> BatchResult:
        nonlocal done
        done += 1
        if done == number:
            signal.raise_signal(signal.SIGINT)
        return step(self, x, labels, rate)

    return interrupted


def test_a_network_of_a_file_with_its_own_arrays(workplace: Path) -> None:
    before = load_graph(saved(Path("net.spk"), {"b1": np.zeros(4, np.float32)}))
    report = result("train", "net.spk", "--data", "few.npz", "--epochs", "1", "-o", "out/net.spk")
    assert report["batch_norm"] == "none"
    after = load_graph(Path("out/net.spk"))
    assert [node.name for node in after.nodes] == [node.name for node in before.nodes]
    moved = {name for name, array in after.parameters.items() if (array != before.parameters[name]).any()}
    assert moved == {"w1", "b1", "w2", "w3"}


def test_a_module_of_a_function(workplace: Path, write_module: WriteModule) -> None:
    write_module("nets", nets(small="Network(timesteps=2)"))
    own = ("train", "nets:small", *IMAGE, "--data", "few.npz", "--timesteps", "2", "--epochs", "1")
    for options in ((), MACHINE):
        assert result(*own, *options, "-o", "out/n.spk")["steps"] == 2
        assert isinstance(load_graph(Path("out/n.spk")), Graph)


def test_batch_norms_are_kept_in_torch_when_asked(workplace: Path) -> None:
    report = result(*NETWORK, *QUICK, "--no-fold-batch-norm", "-o", "out/net.spk")
    assert report["batch_norm"] == "kept"
    graph = load_graph(Path("out/net.spk"))
    assert sum(isinstance(node.op, BatchNorm) for node in graph.nodes) == 3
    assert spikec("compile", "out/net.spk", "-o", "out/net.h2l").code == 0


def test_a_bernoulli_coded_network(workplace: Path) -> None:
    rng = np.random.default_rng(0)
    np.savez("images.npz", x=rng.random((10, 1, 28, 28), np.float32), y=np.arange(10))
    own = ("train", "zoo:certify-fc", "--data", "images.npz", "--timesteps", "2", "--epochs", "1", "--batch", "4")
    for options in ((), MACHINE):
        first, second = (result(*own, *options, "--seed", seed) for seed in "01")
        assert first["losses"] != second["losses"]
