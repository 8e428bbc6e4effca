"""Twins of one structure, trained plainly and against all images around each sample, as chapter 6 compares them."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
import torch

from compiler.attack import Case, Settings, Victim, attack
from compiler.attack.budget import Budget, Norm
from compiler.attack.fresh import over_fresh_draws
from compiler.ir import Encoding, Graph
from compiler.losses import Loss
from compiler.passes import PrependEncode
from frontends.datasets import Samples, train_and_test
from frontends.descent import DescentRecipe
from frontends.from_torch import from_torch
from frontends.robust.certified import certified
from frontends.robust.recipes import default_robust_recipe
from frontends.robust.settings import Linf, RobustSettings
from frontends.robust.trainer import RobustTrainer
from frontends.spiking_network import spiking_network
from frontends.torch_training import TorchTrainer
from frontends.zoo import entry
from spikec.training.loop import TrainingLoop

Progress = Callable[[str], None]

DATA = "digits"
NOTATIONS = {"fc": "64FC-32FC-10FC", "conv": "8C3S2-16C3S2-32FC-10FC"}  # table 6.1's, for images of 8 x 8
EPSILON = 0.03  # half the width of the intervals in training
DRAWS = 8  # codes that an attacked sample is judged by
_TIMED = 7  # steps of training whose median counts


@dataclass(frozen=True, slots=True, kw_only=True)
class Training:
    """Which twin: of what structure, and against what; eps 0 is plain training."""

    structure: str
    eps: float = 0.0
    timesteps: int | None = None  # of robust training; None: the network's own


@dataclass(frozen=True, slots=True, kw_only=True)
class Twin:
    """A trained network, and the share of test samples that it tells rightly."""

    graph: Graph
    accuracy: float


@dataclass(eq=False)
class RobustStudy:
    """Trains each twin once and keeps what was measured of it.

    epochs: of each training. samples: of the test samples, that are attacked and certified.
    """

    progress: Progress
    epochs: int = 24
    samples: int = 100
    notations: dict[str, str] = field(default_factory=lambda: dict(NOTATIONS))
    _twins: dict[Training, Twin] = field(default_factory=dict)
    _errors: dict[tuple[Training, float], float] = field(default_factory=dict)

    @property
    def basis(self) -> str:
        """What the measurements rest on."""
        small = ", ".join(f"{name} {notation}" for name, notation in self.notations.items())
        return (
            f"{DATA}, small networks ({small}), {self.epochs} epochs, {self.samples} test samples attacked, judged by "
            f"{DRAWS} fresh codes each, and certified; training by S-IBP's margins unless said otherwise, "
            "intervals clipped to [0, 1]"
        )

    def twin(self, training: Training) -> Twin:
        """The network of a training."""
        if training not in self._twins:
            self.progress(f"training {training.structure}, half-width {training.eps:g}, {training.timesteps or 'all'}")
            train, test = self.data
            trainer = self._trainer(training, self.recipe.epochs * len(train))
            TrainingLoop(trainer, self.recipe, train, seed=0).run()
            accuracy = float((trainer.predict(test.x) == test.y).mean())
            self._twins[training] = Twin(graph=trainer.graph(), accuracy=accuracy)
        return self._twins[training]

    def attack_error(self, training: Training, eps: float) -> float:
        """Of codes drawn afresh of what an attack within eps of every pixel made, the share told as another class.

        An attack that draws a new code in each iteration succeeds by luck too, which fresh codes do not.
        """
        key = (training, eps)
        if key not in self._errors:
            victim = Victim(self.twin(training).graph, loss=Loss.CROSS_ENTROPY)
            self.progress(f"attack of {training.structure}, trained at {training.eps:g}, within {eps:g}")
            samples = zip(self.test.x, self.test.y, strict=True)
            cases = [Case(sample=n, x=x, label=int(y)) for n, (x, y) in enumerate(samples)]
            outcomes = attack(victim, cases, Settings(budget=Budget(norm=Norm.LINF, bound=eps)))
            judged = list(over_fresh_draws(victim, outcomes, draws=DRAWS, seed=0))
            self._errors[key] = sum(one.successes for one in judged) / sum(one.draws for one in judged)
        return self._errors[key]

    def certified_share(self, training: Training, eps: float) -> float:
        """The share of the samples that S-IBP certifies within eps, all of the network's steps, under its own draws."""
        return float(certified(self.twin(training).graph, self.test, Linf(eps=eps)).mean())

    def step_ratio(self, structure: str, timesteps: int) -> float:
        """Time of a step of robust training by S-CROWN's margins over one of plain training, of medians in turns."""
        train, _ = self.data
        settings = RobustSettings(threat=Linf(eps=EPSILON), timesteps=timesteps, warmup=0.0, kappa=1.0)
        graph = self.network(structure)
        trainers = (TorchTrainer(graph, self.recipe), RobustTrainer(graph, self.recipe, settings, 10 * len(train)))
        x, labels = train.x[: self.recipe.batch], train.y[: self.recipe.batch]
        seconds: tuple[list[float], list[float]] = ([], [])
        for _ in range(_TIMED + 1):
            for trainer, own in zip(trainers, seconds, strict=True):
                started = time.perf_counter()
                trainer.step(x, labels, self.recipe.learning_rate)
                own.append(time.perf_counter() - started)
        plain, robust = (statistics.median(own[1:]) for own in seconds)  # the first step warms up
        return robust / plain

    @cached_property
    def data(self) -> tuple[Samples, Samples]:
        """Training and test samples."""
        return train_and_test(DATA)

    @property
    def test(self) -> Samples:
        """The samples that are attacked and certified."""
        return self.data[1].take(np.arange(self.samples))

    @property
    def recipe(self) -> DescentRecipe:
        """Of every training."""
        return replace(default_robust_recipe(), epochs=self.epochs)

    def network(self, structure: str) -> Graph:
        """A fresh network."""
        own = replace(entry("certify-fc"), notation=self.notations[structure], input_shape=(1, 8, 8))
        module = spiking_network(own, seed=0, timesteps=own.timesteps)
        example = torch.zeros(own.example_shape(2, own.timesteps))
        return PrependEncode(Encoding.BERNOULLI, 0)(from_torch(module, example, own.timesteps, name=structure))

    def _trainer(self, training: Training, presentations: int) -> TorchTrainer:
        graph = self.network(training.structure)
        if training.eps == 0.0:
            return TorchTrainer(graph, self.recipe)
        settings = RobustSettings(threat=Linf(eps=training.eps), timesteps=training.timesteps)
        return RobustTrainer(graph, self.recipe, settings, presentations)
