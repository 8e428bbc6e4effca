"""Recipes of stochastic gradient descent, which torch and the accelerator's own update follow alike."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from types import MappingProxyType

import numpy as np
import numpy.typing as npt

from compiler.losses import Loss
from frontends.zoo import entry
from hwmodel.errors import CompileError, Loc

F32 = npt.NDArray[np.float32]
Labels = npt.NDArray[np.int64]
State = dict[str, npt.NDArray[np.generic]]


class Schedule(StrEnum):
    """How the learning rate goes over the steps of a run."""

    CONSTANT = "constant"
    COSINE = "cosine"  # half a period, from the full rate down to zero


class Optimiser(StrEnum):
    """The update."""

    SGD = "sgd"  # heavy-ball gradient descent
    ADAM = "adam"  # first moments decay by the momentum, second ones by 0.999


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchResult:
    """One update: mean loss and correct predictions of its batch, before the update."""

    loss: float
    correct: int
    samples: int


@dataclass(frozen=True, slots=True, kw_only=True)
class DescentRecipe:
    """How one network is trained: heavy-ball gradient descent without dampening, or Adam.

    Units: loss_scale multiplies the loss before its gradient is rounded to FP16; f32 has no need of it.
    """

    epochs: int
    batch: int  # samples of an update
    learning_rate: float
    optimiser: Optimiser = Optimiser.SGD
    momentum: float = 0.9
    weight_decay: float = 0.0
    loss: Loss = Loss.MSE
    loss_scale: float = 1024.0
    schedule: Schedule = Schedule.COSINE
    warmup: float = 0.0  # share of the run over which the rate rises linearly, on top of the schedule
    fold_batch_norm: bool = False  # train the network that remains when batch norms are folded into its weights
    threads: int | None = None  # of torch; None: as it is set. The bits of the weights depend on it

    def verify(self) -> None:
        """Refuse numbers out of range.

        Raises: CompileError naming the option.
        """
        for name, value in (("epochs", self.epochs), ("batch", self.batch)):
            if value < 1:
                raise _fault(name, f"is {value}, must be at least 1")
        for name, number in (("lr", self.learning_rate), ("loss-scale", self.loss_scale)):
            if not 0.0 < number < math.inf:
                raise _fault(name, f"is {number:g}, must be positive and finite")
        if not 0.0 <= self.momentum < 1.0:
            raise _fault("momentum", f"is {self.momentum:g}, must be at least 0 and below 1")
        if not 0.0 <= self.weight_decay < math.inf:
            raise _fault("weight-decay", f"is {self.weight_decay:g}, must be at least 0 and finite")

    def rate(self, step: int, steps: int) -> float:
        """The learning rate of a step, counted from 0, of a run of so many."""
        rise = min(1.0, (step + 1) / (self.warmup * steps + 1))
        match self.schedule:
            case Schedule.CONSTANT:
                return self.learning_rate * rise
            case Schedule.COSINE:
                return self.learning_rate * rise * (1 + math.cos(math.pi * step / steps)) / 2


# Without batch norm, a high rate or a high momentum at the beginning leaves last neurons that never fire again. One
# thread is as fast as two for networks this small, and makes the weights independent of the number of cores.
_DIGITS = DescentRecipe(epochs=3, batch=8, learning_rate=1.0, momentum=0.3, warmup=1 / 3, threads=1)
_DEFAULT = DescentRecipe(epochs=5, batch=32, learning_rate=0.05, warmup=0.1)
_RECIPES: Mapping[str, DescentRecipe] = MappingProxyType(
    {
        "digits-conv": _DIGITS,
        "digits-fc": replace(_DIGITS, epochs=6, learning_rate=0.8, momentum=0.5),
        "attack-image-small": DescentRecipe(
            epochs=4, batch=64, learning_rate=1e-3, optimiser=Optimiser.ADAM, warmup=0.02
        ),
        "mnist": DescentRecipe(epochs=2, batch=16, learning_rate=0.05, warmup=0.1),
    }
)


def descent_recipe(name: str) -> DescentRecipe:
    """The recipe of a zoo network; its batch norms are folded, since the accelerator has no unit for them.

    Raises: CompileError for an unknown name.
    """
    return replace(_RECIPES.get(name, _DEFAULT), fold_batch_norm=entry(name).batch_norm)


def default_recipe() -> DescentRecipe:
    """The recipe of a network that is none of the zoo."""
    return _DEFAULT


def _fault(option: str, message: str) -> CompileError:
    return CompileError(message, Loc(f"--{option}"))
