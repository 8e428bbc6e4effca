"""Trains a graph on simulated H2Learn accelerators."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from compiler.h2learn.compile import compile_inference
from compiler.h2learn.compile_training import CompiledTraining, compile_training
from compiler.h2learn.emit_sgd import Descent
from compiler.ir import Graph
from frontends.descent import F32, BatchResult, DescentRecipe, Labels, State
from hwmodel.config import H2LearnConfig
from runtime.session import engines_for, run_program
from runtime.sparsity import Sparsity
from runtime.training_session import StepReport, TrainingSession

_COUNTS = "updates."


@dataclass(frozen=True, slots=True, kw_only=True)
class Accelerators:
    """What trains: the configuration, how many, and where the weights are kept."""

    config: H2LearnConfig
    machines: int = 1
    sub_batch: int | None = None  # None: the configuration's own
    master_weights: bool = False  # in f32 on the host


class H2LearnTrainer:
    """A graph in training, bit for bit as on the accelerators.

    Raises: CompileError for what H2Learn cannot train, and where a value leaves FP16.
    """

    def __init__(self, graph: Graph, recipe: DescentRecipe, accelerators: Accelerators) -> None:
        self._graph = graph
        self._accelerators = accelerators
        self.compiled = compiled_for(graph, recipe, accelerators)
        self._session = TrainingSession(self.compiled.program)
        layers = [layer.name for layer in self.compiled.program.layers if layer.kind != "pool"]
        self._updates = {name: np.zeros(2, np.int64) for name in layers}  # shown and lost

    def step(self, x: F32, labels: Labels, learning_rate: float) -> BatchResult:
        """One update by the gradient of the mean loss over a batch of any size."""
        report = self._session.step(x, labels, learning_rate=learning_rate)
        self._count(report)
        return BatchResult(loss=report.loss, correct=report.correct, samples=report.samples)

    def predict(self, x: F32) -> Labels:
        """The class of each sample by an inference program with the current weights."""
        config, batch = self._accelerators.config, self._accelerators.sub_batch
        program = compile_inference(self.graph(), config, batch=batch).program
        return np.asarray(run_program(program, x).outputs.argmax(1))

    def weights(self) -> dict[str, F32]:
        """The trained parameters by their names in the graph; the master weights where there are some."""
        return self._session.weights()

    def graph(self) -> Graph:
        """The network with its current parameters."""
        return self._graph.with_nodes(self._graph.nodes, parameters=self.weights())

    def state(self) -> State:
        """All that later steps and the report depend on."""
        counts = {_COUNTS + name: counts.copy() for name, counts in self._updates.items()}
        return {**self._session.state(), **counts}

    def restore(self, state: Mapping[str, npt.NDArray[np.generic]]) -> None:
        """Continue from a state of the same network, bit for bit.

        Raises: CompileError for a state of another network.
        """
        self._session.restore({name: a for name, a in state.items() if not name.startswith(_COUNTS)})
        for name, counts in self._updates.items():
            counts[...] = state[_COUNTS + name]

    def updates_lost(self) -> dict[str, float]:
        """By layer, the fraction of the updates that are not zero which FP16 rounds away."""
        return {name: int(lost) / max(1, int(shown + lost)) for name, (shown, lost) in self._updates.items()}

    def sparsity(self) -> tuple[Sparsity, ...]:
        """Zeros in the backward pass of all steps so far, by layer."""
        return self._session.sparsity()

    def _count(self, report: StepReport) -> None:
        for name in self._updates:
            self._updates[name] += (report.changed.get(name, 0), report.lost.get(name, 0))


def compiled_for(graph: Graph, recipe: DescentRecipe, accelerators: Accelerators) -> CompiledTraining:
    """The training program of a recipe."""
    samples = accelerators.sub_batch or accelerators.config.sub_batch
    descent = Descent(
        learning_rate=recipe.learning_rate,
        momentum=recipe.momentum,
        weight_decay=recipe.weight_decay,
        loss_scale=recipe.loss_scale,
        batch_group=-(-recipe.batch // samples),
        machines=accelerators.machines,
        master_weights=accelerators.master_weights,
    )
    return compile_training(graph, accelerators.config, loss=recipe.loss, descent=descent, batch=accelerators.sub_batch)


def same_as_golden(compiled: CompiledTraining, x: F32, labels: Labels, learning_rate: float) -> bool:
    """Whether fast and golden engines agree in every bit of a first step: loss, gradients, momentum, weights.

    Shapes: x (N, ...) or (T, N, ...), labels (N,).
    """
    program = compiled.program
    fast, golden = (
        _first_step(TrainingSession(program, engines_for(program, use_golden=golden)), x, labels, learning_rate)
        for golden in (False, True)
    )
    return all(_same(fast[name], golden[name]) for name in {*fast, *golden})


def _first_step(session: TrainingSession, x: F32, labels: Labels, learning_rate: float) -> State:
    _, gradients = session.gradients(x, labels)
    report = session.step(x, labels, learning_rate=learning_rate)
    named: State = {f"gradient.{name}": array for name, array in gradients.items()}
    return {**session.state(), **named, "loss": np.array(report.loss)}


def _same(first: npt.NDArray[np.generic], second: npt.NDArray[np.generic]) -> bool:
    return (first.dtype, first.shape, first.tobytes()) == (second.dtype, second.shape, second.tobytes())
