"""The training loop, the same for every backend."""

from __future__ import annotations

import math
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import Protocol

import numpy as np
import numpy.typing as npt

from frontends.datasets import Samples
from frontends.descent import F32, BatchResult
from frontends.recipe import Progress
from hwmodel.errors import CompileError, Loc
from spikec.training.checkpoint import CheckpointFile
from spikec.training.history import History, fresh_order
from spikec.training.trainer import Trainer

ProgressCallback = Callable[[Progress], None]


class Plan(Protocol):
    """What the loop asks of a recipe."""

    @property
    def epochs(self) -> int: ...

    @property
    def batch(self) -> int: ...

    def rate(self, step: int, steps: int) -> float:
        """The learning rate of a step, counted from 0, of a run of so many."""
        ...


@dataclass(slots=True)
class TrainingLoop:
    """Shows a trainer the samples, epoch by epoch, in an order that depends on the seed only.

    With a checkpoint file, continues from it, and saves there from time to time, when the run is over and when it
    is interrupted.
    """

    trainer: Trainer
    recipe: Plan
    samples: Samples
    seed: int
    checkpoint: CheckpointFile | None = None
    progress: ProgressCallback | None = None
    in_some_process: Callable[[bool], bool] = bool  # whether a flag is set in one of the run's processes
    _interrupted: bool = False

    def run(self) -> History:
        """Train to the end.

        Raises: CompileError where the loss stops being finite, naming epoch and step; KeyboardInterrupt, when the
        current step is done and saved.
        """
        history = self._start()
        with self._interrupts():
            while history.epoch < self.recipe.epochs:
                self._epoch(history)
        self._save(history)
        return history

    @property
    def _batches(self) -> int:
        return -(-len(self.samples) // self.recipe.batch)

    @property
    def _steps(self) -> int:
        return self._batches * self.recipe.epochs

    def _start(self) -> History:
        found = self.checkpoint.load(self.trainer) if self.checkpoint is not None else None
        return found if found is not None else History(random=fresh_order(self.seed))

    def _epoch(self, history: History) -> None:
        """The rest of the current epoch."""
        size = self.recipe.batch
        order = history.order(len(self.samples))
        for batch in range(history.batches, self._batches):
            result = self._step(history, order[batch * size : (batch + 1) * size])
            history.count(result)
            self._show(history, result)
            if batch + 1 < self._batches:
                self._after_step(history)
        history.end_epoch(len(self.samples))
        self._save(history)
        if self.in_some_process(self._interrupted):
            raise KeyboardInterrupt

    def _step(self, history: History, index: npt.NDArray[np.int64]) -> BatchResult:
        rate = self.recipe.rate(history.step, self._steps)
        try:
            result = self.trainer.step(time_first(self.samples, index), self.samples.y[index], rate)
        except CompileError as fault:
            message = f"{fault.message}, epoch {history.epoch + 1}"
            raise CompileError(message, fault.loc, hint=fault.hint) from fault
        if not math.isfinite(result.loss):
            raise CompileError(
                f"the loss is {result.loss} in epoch {history.epoch + 1}, step {history.step + 1}",
                Loc(f"training on {self.samples.name}"),
                hint="lower the learning rate (--lr)",
            )
        return result

    def _after_step(self, history: History) -> None:
        if self.in_some_process(self._interrupted):
            self._save(history)
            raise KeyboardInterrupt
        if self.checkpoint is not None:
            self.checkpoint.after_step(history, self.trainer)

    def _save(self, history: History) -> None:
        if self.checkpoint is not None:
            self.checkpoint.save(history, self.trainer)

    def _show(self, history: History, result: BatchResult) -> None:
        if self.progress is not None:
            self.progress(
                Progress(
                    epoch=history.epoch + 1,
                    epochs=self.recipe.epochs,
                    done=history.step,
                    total=self._steps,
                    loss=result.loss,
                )
            )

    @contextmanager
    def _interrupts(self) -> Iterator[None]:
        """With a checkpoint to save, an interrupt waits for the current step to be done; a second one does not."""
        if self.checkpoint is None or threading.current_thread() is not threading.main_thread():
            yield
            return

        def note(number: int, frame: FrameType | None) -> None:
            self._interrupted = True
            signal.signal(signal.SIGINT, before)

        before = signal.signal(signal.SIGINT, note)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, before)


def time_first(samples: Samples, index: npt.NDArray[np.int64] | slice) -> F32:
    """The chosen samples as a network takes them. Shapes: (N, ...) or (T, N, ...)."""
    x = samples.x[index]
    return np.ascontiguousarray(x.swapaxes(0, 1) if samples.has_time else x)
