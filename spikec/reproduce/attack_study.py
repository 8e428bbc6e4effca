"""Attacks on networks of one structure, trained by MSE and by cross entropy, swept as chapter 5 sweeps them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from compiler.attack import Case, Outcome, Settings, Status, Victim, attack, penultimate
from compiler.attack.fresh import Share, clopper_pearson
from compiler.attack.goal import wins
from compiler.attack.inputs import Batch, View, attackable
from compiler.attack.randomness import Purpose, uniform_draws
from compiler.attack.spike_gradients import sampling_mask
from compiler.evaluate import evaluate
from compiler.ir import CompileError, Encoding, Graph, Loc
from compiler.losses import Loss
from frontends.ann_twin import TrainedTwin, train_ann_twin
from frontends.datasets import Samples, Split, load, train_and_test
from spikec.reproduce.facts import Value

Progress = Callable[[str], None]

_EVALUATED = 250  # samples at once


SHORT = {Loss.MSE: "mse", Loss.CROSS_ENTROPY: "ce"}
BOTH = tuple(SHORT)


class Goal(StrEnum):
    """What an attack wants."""

    UNTARGETED = "untargeted"
    TARGETED = "targeted"  # towards each other class in turn


@dataclass(frozen=True, slots=True, kw_only=True)
class Subjects:
    """What is attacked: networks by the loss that trained them, and the first test samples of each class.

    untargeted, targeted: samples of a class.
    """

    networks: Mapping[Loss, Graph]
    name: str
    data: str
    untargeted: int
    targeted: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """What became of the cases whose clean sample is classified rightly.

    success: share of them, by one judged draw. metric: mean square perturbation, mean over successes, 0 without any.
    vanished: mean number of iterations without a gradient.
    """

    success: Share
    metric: float
    vanished: float

    @classmethod
    def of(cls, outcomes: Iterable[Outcome]) -> Summary:
        """Raises: CompileError if there is no such case."""
        attacked = [outcome for outcome in outcomes if outcome.status is not Status.CLEAN_ERROR]
        if not attacked:
            raise CompileError("no sample is classified rightly", Loc("attack"), hint="train the network first")
        hits = [outcome for outcome in attacked if outcome.status is Status.SUCCESS]
        metrics = [outcome.perturbation.dissertation for outcome in hits]
        return cls(
            success=clopper_pearson(len(hits), len(attacked)),
            metric=float(np.mean(metrics)) if metrics else 0.0,
            vanished=float(np.mean([outcome.vanished for outcome in attacked])),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Measure:
    """Our number for an item, and what it says beyond it."""

    item: str
    value: Value
    text: str = ""


def shown(summary: Summary) -> str:
    """A success rate with its interval, and the perturbation."""
    return f"{percent(summary.success)}, mean square {summary.metric:.4f}"


def percent(share: Share) -> str:
    """A share with its interval."""
    return f"{100 * share.value:.1f} % ({100 * share.low:.1f} to {100 * share.high:.1f})"


@dataclass(eq=False)
class Study:
    """Runs attacks on the subjects, each setting once.

    Raises: CompileError for networks or data that do not fit.
    """

    subjects: Subjects
    progress: Progress
    _done: dict[tuple[object, ...], tuple[Outcome, ...]] = field(default_factory=dict)

    @cached_property
    def samples(self) -> Samples:
        """Test samples, in their order."""
        return load(self.subjects.data, split=Split.TEST)

    @property
    def basis(self) -> str:
        """What the numbers rest on."""
        subjects = self.subjects
        timesteps = self.graph(Loss.MSE).timesteps
        cases = {goal: len(self.cases(goal)) for goal in Goal}
        return (
            f"{subjects.name} on {subjects.data}, T = {timesteps}, {cases[Goal.UNTARGETED]} untargeted and "
            f"{cases[Goal.TARGETED]} targeted cases, one judged code each, 95 % intervals"
        )

    def accuracy(self, loss: Loss) -> float:
        """Of all test samples, by one code each; the first class wins a tie."""
        x, hits = torch.from_numpy(self.samples.x), 0
        for first in range(0, len(self.samples), _EVALUATED):
            scores = evaluate(self.graph(loss), x[first : first + _EVALUATED], first_sample=first).output
            hits += int((scores.argmax(1).numpy() == self.samples.y[first : first + _EVALUATED]).sum())
        return hits / len(self.samples)

    def graph(self, loss: Loss) -> Graph:
        """The network that was trained by the loss."""
        return self.subjects.networks[loss]

    def outcomes(
        self, loss: Loss, goal: Goal, settings: Settings | None = None, *, threshold: float | None = None
    ) -> tuple[Outcome, ...]:
        """One attack on all cases; algorithm 5's own numbers unless settings say otherwise."""
        chosen = settings or Settings()
        key = (loss, goal, chosen, threshold)
        if key not in self._done:
            self.progress(f"attack, {loss}, {goal}, {len(self._done) + 1}")
            victim = Victim(self.graph(loss), loss=loss, threshold=threshold)
            self._done[key] = tuple(attack(victim, self.cases(goal), chosen))
        return self._done[key]

    def summary(
        self, loss: Loss, goal: Goal, settings: Settings | None = None, *, threshold: float | None = None
    ) -> Summary:
        """Of `outcomes`."""
        return Summary.of(self.outcomes(loss, goal, settings, threshold=threshold))

    def cases(self, goal: Goal) -> list[Case]:
        """Each chosen sample, with each target that there is."""
        count = self.subjects.untargeted if goal is Goal.UNTARGETED else self.subjects.targeted
        cases = []
        for sample in self.chosen(count):
            case = Case(sample=sample, x=self.samples.x[sample], label=int(self.samples.y[sample]))
            others = [name for name in range(self.classes) if name != case.label]
            cases += [case] if goal is Goal.UNTARGETED else [replace(case, target=name) for name in others]
        return cases

    @cached_property
    def classes(self) -> int:
        """How many classes there are."""
        return int(self.samples.y.max()) + 1

    def chosen(self, count: int) -> list[int]:
        """The first samples of each class, by their place among the test samples."""
        picks = [np.flatnonzero(self.samples.y == name)[:count] for name in range(self.classes)]
        return sorted(int(pick) for pick in np.concatenate(picks))

    @cached_property
    def _twin(self) -> TrainedTwin:
        self.progress("training the ANN of the structure")
        train, test = train_and_test(self.subjects.data)
        return train_ann_twin(self.graph(Loss.CROSS_ENTROPY), train, test)

    @property
    def twin(self) -> Graph:
        """The graph whose `AnnTwin` is an ANN trained on the same data."""
        return self._twin.graph

    @property
    def twin_accuracy(self) -> float:
        """Of the ANN, on test samples."""
        return self._twin.training.accuracy_test

    def accuracy_loss(self, loss: Loss, outcomes: Sequence[Outcome]) -> float:
        """The share of all cases that are right before the attack and wrong after it, each by its judged code."""
        attacked = [outcome for outcome in outcomes if outcome.status is not Status.CLEAN_ERROR]
        if not attacked:
            return 0.0
        victim = Victim(self.graph(loss), loss=loss)
        kind, lost = attackable(victim, Settings()), 0
        for first in range(0, len(attacked), _EVALUATED):
            part = attacked[first : first + _EVALUATED]
            x = torch.stack([torch.from_numpy(outcome.adversarial) for outcome in part])
            steps = [outcome.draw for outcome in part]
            batch = Batch(samples=[outcome.case.sample for outcome in part], steps=steps, clean=x, now=x)
            labels = torch.tensor([outcome.case.label for outcome in part])
            lost += int((~wins(victim.scores(kind.seen(batch)), labels)).sum())
        return lost / len(outcomes)

    def vanished_at_first(self, loss: Loss) -> Share:
        """The share of cases without a gradient in the first iteration (table 5.3)."""
        outcomes = self.outcomes(loss, Goal.UNTARGETED, Settings(iterations=1))
        attacked = [outcome for outcome in outcomes if outcome.status is not Status.CLEAN_ERROR]
        return clopper_pearson(sum(outcome.vanished_at_start for outcome in attacked), len(attacked))

    def masked_out(self, loss: Loss) -> float:
        """The share of elements with a gradient that probabilistic sampling leaves out (figure 5.5)."""
        batch, seen, gradient = self._first_gradient(Victim(self.graph(loss), loss=loss))
        draws = uniform_draws(0, Purpose.SAMPLE, batch.samples, batch.steps, (seen.shape[0], *seen.shape[2:]))
        before = int(torch.count_nonzero(gradient))
        after = int(torch.count_nonzero(gradient * sampling_mask(gradient, draws)))
        return 1 - after / before if before else 0.0

    def penultimate_spikes(self, loss: Loss, iterations: int, *, threshold: float | None = None) -> list[float]:
        """Spikes of the penultimate layer, the mean over samples, in each iteration of an attack that never stops.

        They are those of the network that the gradient is taken of: with the threshold, where there is one.
        Source: figures 5.7 and 5.8.
        """
        victim = Victim(self.graph(loss), loss=loss, threshold=threshold)
        kind, batch = attackable(victim, Settings()), self._clean_batch()
        layer = penultimate(victim.sequence).name
        tuned = {} if threshold is None else {layer: threshold}
        counts = []
        for step in range(iterations):
            batch = replace(batch, steps=[step] * len(batch.samples))
            seen = kind.seen(batch)
            traced = evaluate(victim.sequence, seen, traces=[layer], thresholds=tuned).traces[layer]
            counts.append(float(traced.sum()) / len(batch.samples))
            gradient = victim.gradient(seen, self._labels(batch))
            batch = replace(batch, now=kind.changed(batch, [View(seen, gradient)]))
        return counts

    def _clean_batch(self) -> Batch:
        samples = self.chosen(self.subjects.targeted)
        x = torch.from_numpy(self.samples.x[samples])
        return Batch(samples=samples, steps=[0] * len(samples), clean=x, now=x)

    def _labels(self, batch: Batch) -> Tensor:
        return torch.from_numpy(self.samples.y[list(batch.samples)])

    def _first_gradient(self, victim: Victim) -> tuple[Batch, Tensor, Tensor]:
        batch = self._clean_batch()
        seen = attackable(victim, Settings()).seen(batch)
        return batch, seen, victim.gradient(seen, self._labels(batch))


def check_subjects(subjects: Subjects) -> None:
    """Raises: CompileError for networks that draw no Bernoulli code, as chapter 5's image networks do."""
    for graph in subjects.networks.values():
        if Victim(graph).encoding is not Encoding.BERNOULLI:
            raise CompileError("chapter 5 attacks images behind a Bernoulli code", Loc(graph.name))
