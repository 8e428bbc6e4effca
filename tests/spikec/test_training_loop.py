"""The loop, its order of samples and its checkpoints, with a trainer that only takes notes."""

from __future__ import annotations

import math
import signal
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from compiler.ir import Graph
from frontends.datasets import Samples
from frontends.descent import F32, BatchResult, DescentRecipe, Labels, State
from frontends.recipe import Progress
from hwmodel.errors import CompileError
from spikec.training.checkpoint import CheckpointFile, Identity
from spikec.training.history import History
from spikec.training.loop import TrainingLoop

RECIPE = DescentRecipe(epochs=3, batch=4, learning_rate=0.5)
SAMPLES = Samples(x=np.arange(10, dtype=np.float32).reshape(-1, 1, 1, 1), y=np.arange(10), name="ten")
RUN: Identity = {"seed": 5, "network": "net"}


@dataclass
class Notes:
    """A trainer whose one weight is a sum over all that it was shown; `before` may interfere with a step."""

    before: Callable[[int], None] = lambda step: None
    shown: list[list[float]] = field(default_factory=list)
    rates: list[float] = field(default_factory=list)
    weight: float = 0.0
    loss: float = 1.0

    def step(self, x: F32, labels: Labels, learning_rate: float) -> BatchResult:
        self.before(len(self.rates) + 1)
        values = x.ravel().tolist()
        self.shown.append(values)
        self.rates.append(learning_rate)
        self.weight = math.sin(self.weight + learning_rate * float(values @ np.arange(len(values))))
        return BatchResult(loss=self.loss + self.weight, correct=int(values[0]) % 2, samples=len(labels))

    def predict(self, x: F32) -> Labels:
        raise NotImplementedError

    def weights(self) -> Mapping[str, F32]:
        raise NotImplementedError

    def graph(self) -> Graph:
        raise NotImplementedError

    def state(self) -> State:
        return {"weight": np.array(self.weight)}

    def restore(self, state: Mapping[str, npt.NDArray[np.generic]]) -> None:
        self.weight = float(state["weight"])  # type: ignore[arg-type]


class StopError(Exception):
    """What a test raises in the middle of a run."""


def stop_at(step: int) -> Callable[[int], None]:
    def stop(current: int) -> None:
        if current == step:
            raise StopError

    return stop


def loop(trainer: Notes, checkpoint: CheckpointFile | None = None, **changed: object) -> TrainingLoop:
    return TrainingLoop(
        trainer=trainer,
        recipe=replace(RECIPE, **changed),  # type: ignore[arg-type]
        samples=SAMPLES,
        seed=5,
        checkpoint=checkpoint,
    )


def test_every_epoch_shows_each_sample_once_in_an_order_of_its_own() -> None:
    trainer = Notes()
    history = loop(trainer).run()
    assert [len(batch) for batch in trainer.shown] == [4, 4, 2] * 3
    epochs = [[value for batch in trainer.shown[i : i + 3] for value in batch] for i in (0, 3, 6)]
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 3
    assert (history.epoch, history.batches, history.step) == (3, 0, 9)
    assert trainer.rates == [RECIPE.rate(step, 9) for step in range(9)]


def test_the_order_depends_on_the_seed_only() -> None:
    first, second, other = Notes(), Notes(loss=3.0), Notes()
    loop(first).run()
    loop(second, learning_rate=0.1).run()
    replaced = loop(other)
    replaced.seed = 6
    replaced.run()
    assert first.shown == second.shown
    assert first.shown != other.shown


def test_losses_are_means_over_samples_not_over_batches() -> None:
    class Shrinking(Notes):
        def step(self, x: F32, labels: Labels, learning_rate: float) -> BatchResult:
            return BatchResult(loss=float(len(labels)), correct=1, samples=len(labels))

    history = loop(Shrinking()).run()
    assert history.losses == [(4 * 4 + 4 * 4 + 2 * 2) / 10] * 3
    assert history.accuracies == [0.3] * 3


def test_a_batch_larger_than_the_data() -> None:
    trainer = Notes()
    assert loop(trainer, batch=64).run().step == 3
    assert [len(batch) for batch in trainer.shown] == [10] * 3


def test_sequences_are_shown_time_first() -> None:
    class Shapes(Notes):
        def step(self, x: F32, labels: Labels, learning_rate: float) -> BatchResult:
            assert x.shape == (7, len(labels), 1, 2, 3)
            assert x.flags.c_contiguous
            return BatchResult(loss=0.0, correct=0, samples=len(labels))

    events = Samples(x=np.zeros((10, 7, 1, 2, 3), np.float32), y=SAMPLES.y, name="events")
    TrainingLoop(trainer=Shapes(), recipe=RECIPE, samples=events, seed=0).run()


def test_progress_counts_every_batch() -> None:
    seen: list[Progress] = []
    running = loop(Notes())
    running.progress = seen.append
    running.run()
    assert [(p.epoch, p.done, p.total, p.epochs) for p in seen] == [
        (epoch, 3 * (epoch - 1) + batch, 9, 3) for epoch in (1, 2, 3) for batch in (1, 2, 3)
    ]


@pytest.mark.parametrize("every", [1, 2, 4, None])
@pytest.mark.parametrize("step", range(1, 10))
def test_a_run_that_dies_in_any_step_ends_as_one_that_does_not(tmp_path: Path, step: int, every: int | None) -> None:
    whole = Notes()
    want = loop(whole).run()
    file = CheckpointFile(path=tmp_path / "c", identity=RUN, every=every)
    with pytest.raises(StopError):
        loop(Notes(before=stop_at(step)), file).run()
    resumed = Notes()
    assert loop(resumed, file).run() == want
    assert resumed.weight == whole.weight
    saved = max(done for done in range(step) if done % 3 == 0 or (every is not None and done % every == 0))
    assert len(resumed.shown) == 9 - saved
    again = Notes()
    assert loop(again, file).run() == want
    assert (again.shown, again.weight) == ([], whole.weight)


def test_a_checkpoint_is_due_by_time(tmp_path: Path) -> None:
    now = 0.0
    saved: list[int] = []

    class Watched(CheckpointFile):
        def save(self, history: History, trainer: object) -> None:
            saved.append(history.step)
            super().save(history, trainer)  # type: ignore[arg-type]

    def tick(step: int) -> None:
        nonlocal now
        now += 6.0

    loop(Notes(before=tick), Watched(path=tmp_path / "c", identity=RUN, clock=lambda: now), batch=1).run()
    ends = {10, 20, 30}
    by_time = [step for step in saved if step not in ends]
    assert ends <= set(saved)
    # 6 s a step: 12 s after the last one written, be it of this kind or an epoch's
    assert by_time == [2, 4, 6, 8, 12, 14, 16, 18, 22, 24, 26, 28]


@pytest.mark.parametrize("step", [1, 2, 3, 8, 9])
def test_an_interrupt_waits_for_the_step_and_saves_it(tmp_path: Path, step: int) -> None:
    def interrupt(current: int) -> None:
        if current == step:
            signal.raise_signal(signal.SIGINT)

    before = signal.getsignal(signal.SIGINT)
    whole, stopped, resumed = Notes(), Notes(before=interrupt), Notes()
    file = CheckpointFile(path=tmp_path / "c", identity=RUN, every=1000)
    want = loop(whole).run()
    with pytest.raises(KeyboardInterrupt):
        loop(stopped, file).run()
    assert len(stopped.shown) == step
    assert signal.getsignal(signal.SIGINT) is before
    assert loop(resumed, file).run() == want
    assert len(resumed.shown) == 9 - step
    assert resumed.weight == whole.weight


def test_a_second_interrupt_does_not_wait(tmp_path: Path) -> None:
    def interrupt(current: int) -> None:
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)

    stopped = Notes(before=interrupt)
    # a process that once was a worker of `spikec explore` ignores interrupts
    earlier = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            loop(stopped, CheckpointFile(path=tmp_path / "c", identity=RUN)).run()
    finally:
        signal.signal(signal.SIGINT, earlier)
    assert stopped.shown == []


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_names_epoch_and_step(tmp_path: Path, value: float) -> None:
    class Diverging(Notes):
        def step(self, x: F32, labels: Labels, learning_rate: float) -> BatchResult:
            result = super().step(x, labels, learning_rate)
            return replace(result, loss=value) if len(self.rates) == 5 else result

    file = CheckpointFile(path=tmp_path / "c", identity=RUN, every=1)
    with pytest.raises(CompileError) as caught:
        loop(Diverging(), file).run()
    assert str(caught.value) == (
        f"training on ten: error: the loss is {value} in epoch 2, step 5\n  hint: lower the learning rate (--lr)"
    )
    resumed = Notes()
    loop(resumed, file).run()
    assert len(resumed.shown) == 5  # the step that failed was not saved
