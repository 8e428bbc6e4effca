"""`spikec train --backend fused`: the schedule and the numbers of the torch backend, but for rounding."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest

from compiler.fused.spikes.costs import SpikeKernels
from compiler.ir import Graph
from compiler.ir.file import load_graph
from compiler.ir.ops import BatchNorm
from compiler.losses import Loss
from compiler.passes import FoldBatchNorm
from frontends.descent import F32, BatchResult, DescentRecipe, Labels
from frontends.torch_training import TorchTrainer
from hwmodel.errors import CompileError, Loc
from spikec.commands.train import TrainReport
from spikec.models import load_model
from spikec.training.fused import FusedFacts, FusedTrainer, fused_facts
from tests.golden import Golden
from tests.spikec.command import refusal, result, spikec
from tests.spikec.graphs import saved
from tests.spikec.test_refusals import messages
from tests.spikec.test_train_killed import check
from tests.spikec.training import NETWORK, few_digits

STEPS = 2
RECIPE = DescentRecipe(epochs=1, batch=8, learning_rate=0.2, momentum=0.5, weight_decay=0.01, threads=1)
FORCED = (SpikeKernels.LOOKUP, SpikeKernels.EVENTS)
ROUNDING = 1e-5  # two orders of summation of f32: 1e-7 of each term, over some hundred terms of size 1


def graph_of(name: str) -> Graph:
    return load_model(f"zoo:{name}", timesteps=STEPS, seed=1).graph


def batches(count: int, graph: Graph, samples: int, seed: int = 0) -> list[tuple[F32, Labels]]:
    rng = np.random.default_rng(seed)
    shape = graph.types[graph.input.name].shape[1:]
    return [(rng.random((samples, *shape), np.float32), rng.integers(0, 10, samples)) for _ in range(count)]  # type: ignore[arg-type]


@pytest.mark.parametrize("loss", Loss)
@pytest.mark.parametrize(("name", "fold"), [("digits-fc", True), ("digits-fc", False), ("certify-fc", False)])
def test_first_steps_are_those_of_torch(name: str, fold: bool, loss: Loss) -> None:
    """The encoded network draws the same Bernoulli code: another one moves the loss by some percent."""
    graph = FoldBatchNorm()(graph_of(name)) if fold else graph_of(name)
    recipe = replace(RECIPE, loss=loss)
    theirs, ours = TorchTrainer(graph, recipe), FusedTrainer(graph, recipe)
    for number, (x, labels) in enumerate(batches(3, graph, 7), start=1):
        want, got = (trainer.step(x, labels, 0.05 / number) for trainer in (theirs, ours))
        assert got.loss == pytest.approx(want.loss, rel=ROUNDING)
        assert (got.correct, got.samples) == (want.correct, want.samples)
    for parameter, value in theirs.weights().items():
        np.testing.assert_allclose(ours.weights()[parameter], value, rtol=0, atol=ROUNDING, err_msg=parameter)
    for parameter, value in theirs.graph().parameters.items():  # running statistics too
        np.testing.assert_allclose(ours.graph().parameters[parameter], value, atol=ROUNDING, rtol=ROUNDING)
    x = batches(1, graph, 9, seed=1)[0][0]
    np.testing.assert_array_equal(ours.predict(x), theirs.predict(x))


@pytest.mark.parametrize("kernels", [*FORCED, SpikeKernels.OFF])
@pytest.mark.parametrize("name", ["digits-fc", "certify-fc"])
def test_first_steps_with_given_kernels_are_those_of_torch(name: str, kernels: SpikeKernels) -> None:
    graph = FoldBatchNorm()(graph_of(name))
    theirs, ours = TorchTrainer(graph, RECIPE), FusedTrainer(graph, RECIPE, kernels=kernels)
    for x, labels in batches(3, graph, 7):
        want, got = (trainer.step(x, labels, 0.05) for trainer in (theirs, ours))
        assert got.loss == pytest.approx(want.loss, rel=ROUNDING)
    for parameter, value in theirs.weights().items():
        np.testing.assert_allclose(ours.weights()[parameter], value, rtol=0, atol=ROUNDING, err_msg=parameter)
    forward = {row.way for row in ours.explained() if row.of == "forward"}
    assert forward == (set() if kernels is SpikeKernels.OFF else {str(kernels)})


@pytest.mark.parametrize("kernels", SpikeKernels)
def test_results_that_are_computed_again_have_the_same_bits(kernels: SpikeKernels) -> None:
    graph = FoldBatchNorm()(graph_of("certify-fc"))
    again, kept = (FusedTrainer(graph, RECIPE, kernels=kernels, recompute=flag) for flag in (True, False))
    for x, labels in batches(3, graph, 5):
        assert again.step(x, labels, 0.1) == kept.step(x, labels, 0.1)
    assert bits(again) == bits(kept)


def test_states_do_not_depend_on_the_layout_in_memory() -> None:
    """A state continues bit for bit, whoever reads it; torch's continues here, with the same bytes."""
    graph = graph_of("digits-conv")
    first, *rest = batches(3, graph, 4)
    whole, again, theirs = FusedTrainer(graph, RECIPE), FusedTrainer(graph, RECIPE), TorchTrainer(graph, RECIPE)
    for trainer in (whole, theirs):
        trainer.step(*first, 0.1)
    weights = [value for value in whole.graph().parameters.values() if value.ndim == 4]
    assert weights
    assert all(array.flags.c_contiguous for array in (*whole.state().values(), *weights))
    again.restore(whole.state())
    for x, labels in rest:
        assert whole.step(x, labels, 0.1) == again.step(x, labels, 0.1)
    assert bits(whole) == bits(again)
    again.restore(theirs.state())
    assert set(again.state()) == set(theirs.state())
    assert all((again.state()[name] == array).all() for name, array in theirs.state().items())


def test_report(workplace: Path) -> None:
    few_digits(workplace / "few.npz")
    quick = (*NETWORK, "--epochs", "2", "--batch", "6", "--no-fold-batch-norm")
    torch_report = result(*quick, "-o", "out/torch.spk")
    assert list(torch_report) == [field.name for field in fields(TrainReport)]
    report = result(*quick, "--backend", "fused", "--compare", "-o", "out/net.spk")
    assert list(report) == [field.name for field in (*fields(TrainReport), *fields(FusedFacts))]
    assert (report["backend"], report["batch_norm"], report["steps"], report["processes"]) == ("fused", "kept", 16, 1)
    assert (report["kernels"], report["recompute"]) == ("measured", True)
    assert report["accuracy_test_torch"] == torch_report["accuracy_test"]
    assert report["losses"][0] == pytest.approx(torch_report["losses"][0], rel=0.01)  # one spike of rounding's moves it
    assert len(report["stages"]) == 3
    assert report["torch_nodes"] == ["layers.flatten1", "layers.fc1", "readout"]
    ours, theirs = (load_graph(Path(f"out/{name}.spk")) for name in ("net", "torch"))
    assert sum(isinstance(node.op, BatchNorm) for node in ours.nodes) == 3
    assert [node.name for node in ours.nodes] == [node.name for node in theirs.nodes]


def test_what_is_kept_for_the_backward_pass() -> None:
    """In f32: the 64 pixels, 128 currents once, 64 and 10 currents at each step; no potential and no spike."""
    facts = fused_facts(FoldBatchNorm()(graph_of("digits-fc")), None)
    assert facts.kept_bytes_per_sample == 4 * (64 + 128 + STEPS * (64 + 10))
    # autograd alone keeps the layers' inputs at each step, and at least a potential for each neuron
    assert facts.kept_bytes_per_sample_torch >= 4 * STEPS * (64 + 128 + 64 + (128 + 64 + 10))


def test_results_that_are_computed_again_are_not_kept() -> None:
    """`certify-fc` with all kernels forced: the spikes as bits and the mask of gradients, not the currents."""
    graph = graph_of("certify-fc")
    sizes = {
        recompute: fused_facts(graph, None, kernels=SpikeKernels.EVENTS, recompute=recompute).kept_bytes_per_sample
        for recompute in (True, False)
    }
    assert sizes[True] < sizes[False]


@pytest.mark.parametrize("kernels", FORCED)
def test_a_broken_run_goes_on_with_the_same_bits(
    kernels: SpikeKernels, workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    few_digits(workplace / "few.npz")
    options = ("--backend", "fused", "--epochs", "2", "--batch", "8", "--spike-kernels", str(kernels))
    run = (*NETWORK, *options, "--checkpoint", "c", "--checkpoint-every", "1")
    whole = result(*NETWORK, *options, "--explain", "-o", "whole.spk")
    assert whole["kernels"] == str(kernels)
    assert {row["way"] for row in whole["spike_kernels"] if row["of"] == "forward"} == {str(kernels)}
    with monkeypatch.context() as patch:
        patch.setattr(FusedTrainer, "step", breaking(FusedTrainer.step, after=8))  # of 12
        assert "breaks" in refusal(*run)
    other = [SpikeKernels.OFF.value if word == kernels else word for word in run]
    assert f"spike_kernels is {kernels} there and off here" in refusal(*other)
    rest = result(*run, "--no-recompute", "-o", "rest.spk")
    assert (rest["losses"], rest["recompute"]) == (whole["losses"], False)
    assert Path("rest.spk").read_bytes() == Path("whole.spk").read_bytes()


def test_refusals_are_those_of_the_torch_backend(workplace: Path, golden: Golden) -> None:
    few_digits(workplace / "few.npz")
    saved(workplace / "net.spk")
    run = ("train", "net.spk", "--data", "few.npz", "--epochs", "1", "--backend", "fused")
    np.savez("wide.npz", x=np.zeros((10, 1, 8, 9), np.float32), y=np.zeros(10, np.int64))
    cases = {
        "no batch": (*run, "--batch", "0"),
        "another shape": (*run[:3], "wide.npz", *run[4:]),
        "absent data": (*run[:3], "absent.npz", *run[4:]),
        "a sequence": ("train", "zoo:nmnist", *run[2:], "--timesteps", "2"),
        "checkpoint in an absent folder": (*run, "--checkpoint", "nowhere/c"),
        "checkpoint is data": (*run, "--checkpoint", "few.npz"),
        "output is no network": (*run, "-o", "out/n.h2l"),
    }
    said = messages(cases)
    golden("train_fused.txt", said)
    in_torch = {name: tuple("torch" if word == "fused" else word for word in words) for name, words in cases.items()}
    assert messages(in_torch) == said


def test_a_checkpoint_of_the_other_backend(workplace: Path) -> None:
    few_digits(workplace / "few.npz")
    run = (*NETWORK, "--epochs", "1", "--batch", "16", "--checkpoint", "c", "--backend")
    result(*run, "torch")
    before = Path("c").read_bytes()
    assert "backend is torch there and fused here" in refusal(*run, "fused")
    assert Path("c").read_bytes() == before


@pytest.mark.parametrize("backend", ["torch", "h2learn"])
@pytest.mark.parametrize(
    "option", [("--spike-kernels", "off"), ("--recompute",), ("--no-recompute",), ("--explain",)], ids=lambda o: o[0]
)
def test_options_of_the_kernels_for_another_backend(option: tuple[str, ...], backend: str, workplace: Path) -> None:
    few_digits(workplace / "few.npz")
    want = f"{option[0]}: error: is about the kernels of fused training\n  hint: use --backend fused\n"
    assert refusal(*NETWORK, "--backend", backend, *option) == want


def test_several_options_of_the_kernels_for_another_backend(workplace: Path) -> None:
    said = refusal(*NETWORK, "--spike-kernels", "events", "--no-recompute", "--explain")
    assert said.startswith("--spike-kernels, --no-recompute, --explain: error: ")


def test_kernels_that_are_no_choice(workplace: Path) -> None:
    outcome = spikec(*NETWORK, "--backend", "fused", "--spike-kernels", "lookup")
    assert (outcome.code, outcome.out) == (2, "")
    assert "'lookup' is not one of" in outcome.err


def test_killed(workplace: Path) -> None:
    check(workplace, "fused", kills=1, epochs=60, longest_s=0.3)


@pytest.mark.slow
def test_killed_ten_times(workplace: Path) -> None:
    check(workplace, "fused", kills=10, epochs=300, longest_s=0.5)


def test_digits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two epochs in torch and fused: the first losses by rounding, the accuracies as two samplings of 360."""
    losses: dict[type, list[float]] = {TorchTrainer: [], FusedTrainer: []}
    monkeypatch.setattr(TorchTrainer, "step", noting(TorchTrainer.step, losses))
    run = ("train", "zoo:digits-conv", "--data", "digits", "--epochs", "2", "--seed", "0", "--timesteps", "4")
    theirs, ours = (result(*run, "--backend", name) for name in ("torch", "fused"))
    want, got = losses.values()
    assert len(got) == len(want) == 2 * math.ceil(1437 / 8)
    np.testing.assert_allclose(got[:10], want[:10], rtol=ROUNDING)
    assert ours["accuracy_test_torch"] is None
    # once rounding has moved a spike the runs part; each accuracy then has the spread of 360 samples
    rate = theirs["accuracy_test"]
    assert rate > 0.8
    assert abs(ours["accuracy_test"] - rate) <= 3 * math.sqrt(2 * rate * (1 - rate) / 360)


Step = Callable[[TorchTrainer, F32, Labels, float], BatchResult]


def bits(trainer: TorchTrainer) -> dict[str, bytes]:
    return {name: array.tobytes() for name, array in trainer.state().items()}


def breaking(step: Step, after: int) -> Step:
    """Steps of which so many are done."""
    done: list[BatchResult] = []

    def stepped(self: TorchTrainer, x: F32, labels: Labels, rate: float) -> BatchResult:
        if len(done) == after:
            raise CompileError("breaks", Loc("this process"))
        done.append(step(self, x, labels, rate))
        return done[-1]

    return stepped


def noting(step: Step, losses: dict[type, list[float]]) -> Step:
    def noted(self: TorchTrainer, x: F32, labels: Labels, rate: float) -> BatchResult:
        found = step(self, x, labels, rate)
        losses[type(self)].append(found.loss)
        return found

    return noted
