"""`spikec train`: a network learns, in torch, on fused kernels or on the simulated accelerator."""

from __future__ import annotations

import hashlib
import json
import os
import sys
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, replace

import numpy as np

from compiler.ir import Graph
from compiler.ir.file import save_graph
from frontends.datasets import Samples
from frontends.descent import DescentRecipe
from frontends.robust.trainer import RobustTrainer
from frontends.torch_training import TorchTrainer
from hwmodel.config import load_config
from hwmodel.errors import CompileError, Loc
from runtime.fused.spikes.explain import Explained
from spikec.commands.talk import Bar, print_json, print_table, progress_bar
from spikec.models import load_model
from spikec.training.checkpoint import CheckpointFile, Identity
from spikec.training.data import training_data
from spikec.training.fused import FusedFacts, FusedTrainer, fused_facts
from spikec.training.h2learn import Accelerators, H2LearnTrainer, same_as_golden
from spikec.training.history import History, fresh_order
from spikec.training.loop import TrainingLoop, time_first
from spikec.training.processes import Processes, place_of, together
from spikec.training.request import Backend, BatchNorms, TrainRequest, identity, without_batch_norms
from spikec.training.robust import RobustFacts, robust_facts, robust_rows
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
    optimiser: str
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
    processes: Processes | None  # None: this one alone

    def trainer(self) -> TorchTrainer | H2LearnTrainer:
        match self.request.backend:
            case Backend.TORCH if self.request.robust is not None:
                presentations = self.recipe.epochs * len(self.train)
                return RobustTrainer(self.graph, self.recipe, self.request.robust.settings(), presentations)
            case Backend.TORCH:
                return TorchTrainer(self.graph, self.recipe)
            case Backend.FUSED:
                group = self.processes.group if self.processes is not None else ""
                return FusedTrainer(
                    self.graph,
                    self.recipe,
                    sharing=self.processes,
                    group=group,
                    kernels=self.request.kernels,
                    recompute=self.request.recomputes,
                )
            case Backend.H2LEARN:
                return H2LearnTrainer(self.graph, self.recipe, self.accelerators)

    def identity(self) -> Identity:
        """All that decides the run's bits."""
        count = self.processes.place.count if self.processes is not None else 1
        return identity(self.request, self.recipe, self.graph, (self.train, self.test), self.accelerators, count)

    def learn(
        self,
        trainer: Trainer,
        title: str,
        checkpoint: CheckpointFile | None = None,
        processes: Processes | None = None,
    ) -> History:
        with _bar(title, processes) as bar:
            loop = TrainingLoop(
                trainer=trainer,
                recipe=self.recipe,
                samples=self.train,
                seed=self.request.seed,
                checkpoint=checkpoint,
                progress=bar.training if bar is not None else None,
                in_some_process=processes.in_some if processes is not None else bool,
            )
            return loop.run()

    def accuracy(self, trainer: Trainer) -> float:
        """Of the test samples."""
        return float(np.mean(trainer.predict(time_first(self.test, slice(None))) == self.test.y))


def run_train(request: TrainRequest, *, as_json: bool) -> int:
    """Train, save, check, compare, report; exit code 1 if the engines' bits differ."""
    place = place_of(os.environ)
    if place is None:
        return _train(request, None, as_json=as_json)
    return together(place, lambda processes: _train(request, processes, as_json=as_json))


def _train(request: TrainRequest, processes: Processes | None, *, as_json: bool) -> int:
    start = time.perf_counter()
    run, batch_norm = _prepared(request, processes)
    trainer = run.trainer()
    history = _learn(run, trainer)
    seconds_training = time.perf_counter() - start
    if processes is not None and not processes.leads:
        return 0
    if request.output is not None:
        save_graph(trainer.graph(), request.output)
    explained = _explained(request, trainer)
    report = _report(run, trainer, history, str(batch_norm))
    facts: FusedFacts | RobustFacts | None = None
    if request.backend is Backend.FUSED:
        facts = fused_facts(run.graph, processes, kernels=request.kernels, recompute=request.recomputes)
    elif request.robust is not None:
        facts = robust_facts(request.robust, trainer.graph(), run.test)
    report = replace(report, seconds_training=seconds_training, seconds=time.perf_counter() - start)
    if as_json:
        more = {} if explained is None else {"spike_kernels": [asdict(row) for row in explained[0]]}
        print_json({**asdict(report), **(asdict(facts) if facts is not None else {}), **more})
    else:
        _show(report, facts)
        if explained is not None:
            print(explained[1])
    return CHECK_FAILED if report.bit_exact_vs_golden is False else 0


def _explained(request: TrainRequest, trainer: Trainer) -> tuple[list[Explained], str] | None:
    """What the last step of training chose, before any prediction; None if nobody asks."""
    if not request.explain or not isinstance(trainer, FusedTrainer):
        return None
    return trainer.explained(), trainer.explanation()


def _prepared(request: TrainRequest, processes: Processes | None) -> tuple[_Run, BatchNorms]:
    """All that a run needs, checked, and what became of the batch norms."""
    request.verify()
    recipe = request.recipe()
    accelerators = Accelerators(
        config=load_config(request.config),
        machines=request.machines,
        sub_batch=request.sub_batch,
        master_weights=request.master_weights,
    )
    graph, batch_norm = without_batch_norms(_loaded(request, processes), recipe)
    train, test = training_data(request.data, graph)
    if processes is not None:
        _check_processes(request, processes, recipe, train)
    run = _Run(
        request=request,
        recipe=recipe,
        graph=graph,
        train=train,
        test=test,
        accelerators=accelerators,
        processes=processes,
    )
    return run, batch_norm


def _loaded(request: TrainRequest, processes: Processes | None) -> Graph:
    with _bar("loading the network", processes) as bar:
        return load_model(
            request.model,
            timesteps=request.timesteps,
            seed=request.seed,
            input_shape=request.input_shape,
            progress=bar.training if bar is not None else None,
        ).graph


def _check_processes(request: TrainRequest, processes: Processes, recipe: DescentRecipe, train: Samples) -> None:
    if request.backend is not Backend.FUSED:
        raise CompileError(
            f"{request.backend} trains in one process, and torchrun started {processes.place.count}",
            Loc("--backend"),
            hint=f"use --backend {Backend.FUSED}, or start the command without torchrun",
        )
    processes.check_batch(recipe.batch, len(train))


def _learn(run: _Run, trainer: Trainer) -> History:
    """Train from the checkpoint on, if there is one; an interrupted run says how it goes on."""
    request, processes, checkpoint = run.request, run.processes, None
    leads = processes is None or processes.leads
    if processes is not None:
        _check_same(processes, run)
    if request.checkpoint is not None:
        checkpoint = CheckpointFile(
            path=request.checkpoint, identity=run.identity(), every=request.checkpoint_every, writes=leads
        )
    try:
        return run.learn(trainer, "training", checkpoint, processes)
    except KeyboardInterrupt:
        if checkpoint is not None and leads:
            print(f"interrupted; the same command goes on from {request.checkpoint}", file=sys.stderr)
        raise


def _check_same(processes: Processes, run: _Run) -> None:
    """All processes begin at the same weights, with the same samples before them."""
    processes.check_same(json.dumps(run.identity(), sort_keys=True), "network, data and options")
    checkpoint = run.request.checkpoint
    if checkpoint is not None:
        content = checkpoint.read_bytes() if checkpoint.is_file() else b""
        processes.check_same(hashlib.sha256(content).hexdigest(), str(checkpoint))


def _bar(title: str, processes: Processes | None) -> AbstractContextManager[Bar | None]:
    """Progress of a run, shown by one of its processes."""
    return progress_bar(title) if processes is None or processes.leads else nullcontext()


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
        optimiser=str(recipe.optimiser),
        momentum=recipe.momentum,
        weight_decay=recipe.weight_decay,
        batch_norm=batch_norm,
        seed=request.seed,
        timesteps=run.graph.timesteps,
        output=str(request.output) if request.output is not None else None,
        checkpoint=str(request.checkpoint) if request.checkpoint is not None else None,
    )
    if isinstance(trainer, H2LearnTrainer):
        report = _with_accelerator(report, run, trainer)
    return replace(report, accuracy_test_torch=_accuracy_in_torch(run) if _compares(run.request) else None)


def _compares(request: TrainRequest) -> bool:
    """Whether to train in torch too; not asked, only where the arithmetic is another."""
    if request.compare is None:
        return request.backend is Backend.H2LEARN
    return request.compare and request.backend is not Backend.TORCH


def _with_accelerator(report: TrainReport, run: _Run, trainer: H2LearnTrainer) -> TrainReport:
    """What only the simulated accelerator has, and its comparison with golden engines."""
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


def _show(report: TrainReport, facts: FusedFacts | RobustFacts | None) -> None:
    rows = [("accuracy on test samples", f"{report.accuracy_test:.4f}")]
    if report.accuracy_test_torch is not None:
        rows.append(("the same training in torch, f32", f"{report.accuracy_test_torch:.4f}"))
    rows += [
        ("accuracy in the last epoch", f"{report.accuracy_train:.4f}"),
        *((f"{report.loss_function}, epoch {n}", f"{loss:.4f}") for n, loss in enumerate(report.losses, start=1)),
        ("steps, samples of a batch", f"{report.steps:,}, {report.batch}"),
        ("learning rate", f"{report.learning_rate:g}, {report.schedule}"),
        ("optimiser, momentum, weight decay", f"{report.optimiser}, {report.momentum:g}, {report.weight_decay:g}"),
        ("batch norm", report.batch_norm),
        *_accelerator_rows(report),
        *(robust_rows(facts) if isinstance(facts, RobustFacts) else _fused_rows(facts)),
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


def _fused_rows(facts: FusedFacts | None) -> Iterator[tuple[str, str]]:
    if facts is None:
        return
    yield "processes", f"{facts.processes}"
    yield "kernels for spikes", facts.kernels
    yield "fused stages, nodes left to torch", f"{len(facts.stages)}, {len(facts.torch_nodes)}"
    yield "kept for the backward pass, a sample", f"{facts.kept_bytes_per_sample:,} B"
    yield "the same without fusion", f"{facts.kept_bytes_per_sample_torch:,} B"
