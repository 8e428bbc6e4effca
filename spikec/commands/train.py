"""`spikec train`: a network learns, in torch or on the simulated accelerator."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace

import numpy as np

from compiler.ir import Graph
from compiler.ir.file import save_graph
from frontends.datasets import Samples
from frontends.descent import DescentRecipe
from frontends.torch_training import TorchTrainer
from hwmodel.config import load_config
from hwmodel.errors import CompileError
from spikec.commands.talk import print_json, print_table, progress_bar
from spikec.models import load_model
from spikec.training.checkpoint import CheckpointFile
from spikec.training.data import training_data
from spikec.training.h2learn import Accelerators, H2LearnTrainer, same_as_golden
from spikec.training.history import History, fresh_order
from spikec.training.loop import TrainingLoop, time_first
from spikec.training.request import Backend, TrainRequest, identity, without_batch_norms
from spikec.training.trainer import Trainer

CHECK_FAILED = 1
GOLDEN_SUB_BATCHES = 2  # of the first batch: enough for both memories to take turns


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainReport:
    """What training reached; None where the backend or the options have no such number.

    Fractions, losses as the mean over samples, seconds of this machine and of this call.
    """

    network: str
    backend: str
    data: str
    accuracy_test: float
    accuracy_test_torch: float | None  # of the same network and batches, in f32
    accuracy_train: float  # of the last epoch, each batch before its update
    loss: float  # of the last epoch
    losses: tuple[float, ...]
    steps: int
    epochs: int
    batch: int
    loss_function: str
    learning_rate: float
    schedule: str
    warmup: float  # share of the steps
    momentum: float
    weight_decay: float
    batch_norm: str
    seed: int
    timesteps: int
    loss_scale: float | None = None
    master_weights: bool | None = None
    machines: int | None = None
    sub_batch: int | None = None
    bit_exact_vs_golden: bool | None = None
    golden_samples: int | None = None
    updates_lost: dict[str, float] | None = None  # by layer, of the updates that are not zero
    sparsity: dict[str, dict[str, float]] | None = None
    output: str | None = None
    checkpoint: str | None = None
    seconds_training: float = 0.0
    seconds: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class _Run:
    """What the parts of a run share."""

    request: TrainRequest
    recipe: DescentRecipe
    graph: Graph
    train: Samples
    test: Samples
    accelerators: Accelerators

    def trainer(self) -> TorchTrainer | H2LearnTrainer:
        if self.request.backend is Backend.TORCH:
            return TorchTrainer(self.graph, self.recipe)
        return H2LearnTrainer(self.graph, self.recipe, self.accelerators)

    def learn(self, trainer: Trainer, title: str, checkpoint: CheckpointFile | None = None) -> History:
        with progress_bar(title) as bar:
            loop = TrainingLoop(
                trainer=trainer,
                recipe=self.recipe,
                samples=self.train,
                seed=self.request.seed,
                checkpoint=checkpoint,
                progress=bar.training,
            )
            return loop.run()

    def accuracy(self, trainer: Trainer) -> float:
        """Of the test samples."""
        return float(np.mean(trainer.predict(time_first(self.test, slice(None))) == self.test.y))


def run_train(request: TrainRequest, *, as_json: bool) -> int:
    """Train, save, check, compare, report; exit code 1 if the engines' bits differ."""
    start = time.perf_counter()
    request.verify()
    recipe = request.recipe()
    accelerators = Accelerators(
        config=load_config(request.config),
        machines=request.machines,
        sub_batch=request.sub_batch,
        master_weights=request.master_weights,
    )
    with progress_bar("loading the network") as bar:
        model = load_model(
            request.model,
            timesteps=request.timesteps,
            seed=request.seed,
            input_shape=request.input_shape,
            progress=bar.training,
        )
    graph, batch_norm = without_batch_norms(model.graph, recipe)
    train, test = training_data(request.data, graph)
    run = _Run(request=request, recipe=recipe, graph=graph, train=train, test=test, accelerators=accelerators)
    trainer = run.trainer()
    history = _learn(run, trainer)
    seconds_training = time.perf_counter() - start
    if request.output is not None:
        save_graph(trainer.graph(), request.output)
    report = _report(run, trainer, history, str(batch_norm))
    report = replace(report, seconds_training=seconds_training, seconds=time.perf_counter() - start)
    if as_json:
        print_json(asdict(report))
    else:
        _show(report)
    return CHECK_FAILED if report.bit_exact_vs_golden is False else 0


def _learn(run: _Run, trainer: Trainer) -> History:
    """Train from the checkpoint on, if there is one; an interrupted run says how it goes on."""
    request, checkpoint = run.request, None
    if request.checkpoint is not None:
        known = identity(request, run.recipe, run.graph, (run.train, run.test), run.accelerators)
        checkpoint = CheckpointFile(path=request.checkpoint, identity=known, every=request.checkpoint_every)
    try:
        return run.learn(trainer, "training", checkpoint)
    except KeyboardInterrupt:
        if checkpoint is not None:
            print(f"interrupted; the same command goes on from {request.checkpoint}", file=sys.stderr)
        raise


def _report(run: _Run, trainer: TorchTrainer | H2LearnTrainer, history: History, batch_norm: str) -> TrainReport:
    request, recipe = run.request, run.recipe
    report = TrainReport(
        network=request.model,
        backend=str(request.backend),
        data=request.data,
        accuracy_test=run.accuracy(trainer),
        accuracy_test_torch=None,
        accuracy_train=history.accuracies[-1],
        loss=history.losses[-1],
        losses=tuple(history.losses),
        steps=history.step,
        epochs=recipe.epochs,
        batch=recipe.batch,
        loss_function=str(recipe.loss),
        learning_rate=recipe.learning_rate,
        schedule=str(recipe.schedule),
        warmup=recipe.warmup,
        momentum=recipe.momentum,
        weight_decay=recipe.weight_decay,
        batch_norm=batch_norm,
        seed=request.seed,
        timesteps=run.graph.timesteps,
        output=str(request.output) if request.output is not None else None,
        checkpoint=str(request.checkpoint) if request.checkpoint is not None else None,
    )
    return report if isinstance(trainer, TorchTrainer) else _with_accelerator(report, run, trainer)


def _with_accelerator(report: TrainReport, run: _Run, trainer: H2LearnTrainer) -> TrainReport:
    """What only the simulated accelerator has, and its comparison with golden engines and with torch."""
    program = trainer.compiled.program
    first = History(random=fresh_order(run.request.seed)).order(len(run.train))
    first = first[: min(run.recipe.batch, GOLDEN_SUB_BATCHES * program.batch)]
    exact = None
    if run.request.golden_check:
        x, labels = time_first(run.train, first), run.train.y[first]
        with progress_bar("a step on the golden engines"):
            exact = same_as_golden(trainer.compiled, x, labels, run.recipe.learning_rate)
    return replace(
        report,
        accuracy_test_torch=_accuracy_in_torch(run) if run.request.compare else None,
        loss_scale=run.recipe.loss_scale,
        master_weights=run.accelerators.master_weights,
        machines=run.accelerators.machines,
        sub_batch=program.batch,
        bit_exact_vs_golden=exact,
        golden_samples=len(first) if run.request.golden_check else None,
        updates_lost=trainer.updates_lost(),
        sparsity={
            row.layer: {"input": row.input_sparsity, "output": row.output_sparsity} for row in trainer.sparsity()
        },
    )


def _accuracy_in_torch(run: _Run) -> float | None:
    """The same network, batches and rates in f32; None where that training fails."""
    trainer = TorchTrainer(run.graph, run.recipe)
    try:
        run.learn(trainer, "training in torch")
    except CompileError as fault:
        print(f"no comparison with torch: {fault}", file=sys.stderr)
        return None
    return run.accuracy(trainer)


def _show(report: TrainReport) -> None:
    rows = [("accuracy on test samples", f"{report.accuracy_test:.4f}")]
    if report.accuracy_test_torch is not None:
        rows.append(("the same training in torch, f32", f"{report.accuracy_test_torch:.4f}"))
    rows += [
        ("accuracy in the last epoch", f"{report.accuracy_train:.4f}"),
        *((f"{report.loss_function}, epoch {n}", f"{loss:.4f}") for n, loss in enumerate(report.losses, start=1)),
        ("steps, samples of a batch", f"{report.steps:,}, {report.batch}"),
        ("learning rate", f"{report.learning_rate:g}, {report.schedule}"),
        ("momentum, weight decay", f"{report.momentum:g}, {report.weight_decay:g}"),
        ("batch norm", report.batch_norm),
        *_accelerator_rows(report),
    ]
    files = (("network", report.output), ("checkpoint", report.checkpoint))
    rows += [(name, path) for name, path in files if path is not None]
    rows.append(("seconds in all", f"{report.seconds:.1f}"))
    print_table(f"{report.network} trained on {report.data} with {report.backend}", rows)


def _accelerator_rows(report: TrainReport) -> Iterator[tuple[str, str]]:
    """Of a report of the accelerator; none of torch's."""
    if report.loss_scale is None:
        return
    yield "loss scale", f"{report.loss_scale:g}"
    yield "machines, samples of a sub-batch", f"{report.machines}, {report.sub_batch}"
    if report.bit_exact_vs_golden is not None:
        exact = "yes" if report.bit_exact_vs_golden else "NO"
        yield f"engines agree in a step of {report.golden_samples}", exact
    for name, lost in (report.updates_lost or {}).items():
        yield f"updates lost in FP16, {name}", f"{lost:.1%}"
    for name, row in (report.sparsity or {}).items():
        yield f"gradient sparsity in, out, {name}", f"{row['input']:.1%}, {row['output']:.1%}"
