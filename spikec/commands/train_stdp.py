"""`spikec train stdp:N`: a layer learns by spike timing-dependent plasticity, the baseline of BPTT."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Set
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np

import spikec
from compiler.ir.file import save_graph
from frontends.datasets import Samples, train_and_test
from frontends.stdp.freeze import measured
from frontends.stdp.recipe import StdpRecipe
from frontends.stdp.trainer import StdpTrainer, check_images
from hwmodel.errors import CompileError, Loc
from spikec.commands.talk import print_json, print_table, progress_bar
from spikec.training.checkpoint import CheckpointFile, Identity
from spikec.training.history import History
from spikec.training.loop import TrainingLoop
from spikec.training.processes import place_of
from spikec.training.request import check_files

STDP = "stdp"
_PREFIX = f"{STDP}:"
_OPTIONS = frozenset(
    (
        *("model", "data", "rule", "output", "epochs", "batch", "lr", "seed", "timesteps"),
        *("checkpoint", "checkpoint_every", "json"),
    )
)
_SEEDS = 1 << 63


def by_stdp(model: str, rule: str | None, given: Set[str]) -> bool:
    """Whether the command asks for plasticity; given: names of the parameters that the user gave.

    Raises: CompileError for a rule that does not fit the model, or options that mean nothing for plasticity.
    """
    layer = model.startswith(_PREFIX)
    if not layer and rule == STDP:
        hint = f"give {_PREFIX}N as the model: a layer of N neurons"
        raise CompileError(f"{STDP} trains one layer, not {model}", Loc("--rule"), hint=hint)
    if layer and rule not in (None, STDP):
        raise CompileError(f"{rule} does not train {model}", Loc("--rule"), hint=f"{model} is a layer for {STDP}")
    foreign = given - _OPTIONS
    if layer and foreign:
        options = ", ".join(f"--{name.replace('_', '-')}" for name in sorted(foreign))
        raise CompileError(f"means nothing for {STDP}", Loc(options), hint="leave out")
    return layer


@dataclass(frozen=True, slots=True, kw_only=True)
class StdpRequest:
    """The command's arguments; None leaves a choice to the recipe."""

    model: str
    data: str
    epochs: int | None
    batch: int | None
    learning_rate: float | None
    seed: int
    timesteps: int | None
    output: Path | None
    checkpoint: Path | None
    checkpoint_every: int | None

    def recipe(self) -> StdpRecipe:
        """The recipe for the layer that the model names.

        Raises: CompileError for another model, or numbers out of range.
        """
        text = self.model.removeprefix(_PREFIX)
        if not (text.isascii() and text.isdigit()) or len(text) > 6:
            raise CompileError(f"{text!r} is no number of neurons", Loc(self.model), hint=f"for example {_PREFIX}400")
        if not 0 <= self.seed < _SEEDS:
            raise CompileError(f"is {self.seed}, must be from 0 to {_SEEDS - 1}", Loc("--seed"))
        fields = ("epochs", "batch", "learning_rate", "timesteps")
        given = {name: value for name in fields if (value := getattr(self, name)) is not None}
        recipe = replace(StdpRecipe(neurons=int(text)), **given)
        recipe.verify()
        return recipe


@dataclass(frozen=True, slots=True, kw_only=True)
class StdpReport:
    """What training reached. Fractions, and seconds of this machine and of this call.

    accuracy_test: of the saved network through `evaluate`, which has no lateral inhibition; accuracy_test_inhibited:
    of the layer as it was trained. accuracies: of each epoch, under inhibition, each batch before its update.
    weight_changes: of each epoch, the mean over batches of the mean change of a weight, as a share of the mean weight.
    """

    network: str
    rule: str
    data: str
    accuracy_test: float
    accuracy_test_inhibited: float
    accuracies: tuple[float, ...]
    weight_changes: tuple[float, ...]
    neurons: int
    neurons_silent: int  # of the saved network, over the test samples
    steps: int
    epochs: int
    batch: int
    learning_rate: float
    seed: int
    timesteps: int
    output: str | None
    checkpoint: str | None
    seconds_training: float
    seconds: float


def run_train_stdp(request: StdpRequest, *, as_json: bool) -> int:
    """Train, assign classes to neurons, save, measure, report."""
    start = time.perf_counter()
    recipe = request.recipe()
    _check_place(request)
    train, test = train_and_test(request.data)
    for samples in (train, test):
        check_images(samples)
    trainer = StdpTrainer(recipe, train, request.seed)
    history = _learn(request, recipe, trainer, (train, test))
    seconds_training = time.perf_counter() - start
    with progress_bar("assigning classes to neurons"):
        graph = trainer.graph()
    if request.output is not None:
        save_graph(graph, request.output)
    accuracy, silent = measured(graph, test)
    report = StdpReport(
        network=request.model,
        rule=STDP,
        data=request.data,
        accuracy_test=accuracy,
        accuracy_test_inhibited=float(np.mean(trainer.predict(test.x) == test.y)),
        accuracies=tuple(history.accuracies),
        weight_changes=tuple(history.losses),
        neurons=recipe.neurons,
        neurons_silent=silent,
        steps=history.step,
        epochs=recipe.epochs,
        batch=recipe.batch,
        learning_rate=recipe.learning_rate,
        seed=request.seed,
        timesteps=recipe.timesteps,
        output=str(request.output) if request.output is not None else None,
        checkpoint=str(request.checkpoint) if request.checkpoint is not None else None,
        seconds_training=seconds_training,
        seconds=time.perf_counter() - start,
    )
    if as_json:
        print_json(asdict(report))
    else:
        _show(report)
    return 0


def _check_place(request: StdpRequest) -> None:
    """Refuse files and processes that training would only find out about at its end."""
    every = request.checkpoint_every
    if every is not None and every < 1:
        raise CompileError(f"is {every}, must be at least 1", Loc("--checkpoint-every"))
    check_files(request.output, request.checkpoint, every)
    place = place_of(os.environ)
    if place is not None:
        message = f"{STDP} trains in one process, and torchrun started {place.count}"
        raise CompileError(message, Loc("--rule"), hint="start the command without torchrun")


def _learn(request: StdpRequest, recipe: StdpRecipe, trainer: StdpTrainer, sets: tuple[Samples, Samples]) -> History:
    """Train from the checkpoint on, if there is one; an interrupted run says how it goes on."""
    checkpoint = None
    if request.checkpoint is not None:
        identity = _identity(request, recipe, sets)
        checkpoint = CheckpointFile(path=request.checkpoint, identity=identity, every=request.checkpoint_every)
    try:
        with progress_bar("training by plasticity, batches") as bar:
            return TrainingLoop(
                trainer=trainer,
                recipe=recipe,
                samples=sets[0],
                seed=request.seed,
                checkpoint=checkpoint,
                progress=lambda state: bar.samples(state.done, state.total),
            ).run()
    except KeyboardInterrupt:
        if checkpoint is not None:
            print(f"interrupted; the same command goes on from {request.checkpoint}", file=sys.stderr)
        raise


def _identity(request: StdpRequest, recipe: StdpRecipe, sets: tuple[Samples, Samples]) -> Identity:
    """All that decides the bits of a run."""
    return {
        "spikec": spikec.__version__,
        "rule": STDP,
        "training samples": sets[0].digest(),
        "test samples": sets[1].digest(),
        "seed": request.seed,
        **asdict(recipe),
    }


def _show(report: StdpReport) -> None:
    rows = [
        ("accuracy on test samples, without inhibition", f"{report.accuracy_test:.4f}"),
        ("the same with lateral inhibition, as trained", f"{report.accuracy_test_inhibited:.4f}"),
        *((f"accuracy in epoch {n}", f"{value:.4f}") for n, value in enumerate(report.accuracies, start=1)),
        *(
            (f"change of a weight in a batch, epoch {n}", f"{value:.2%}")
            for n, value in enumerate(report.weight_changes, start=1)
        ),
        ("neurons, of them silent", f"{report.neurons}, {report.neurons_silent}"),
        ("steps, samples of a batch", f"{report.steps:,}, {report.batch}"),
        ("time steps of a presentation", f"{report.timesteps}"),
    ]
    files = (("network", report.output), ("checkpoint", report.checkpoint))
    rows += [(name, path) for name, path in files if path is not None]
    rows.append(("seconds in all", f"{report.seconds:.1f}"))
    print_table(f"{report.network} trained on {report.data} by plasticity", rows)
