"""How an attack goes about it, and what became of a sample."""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
import numpy.typing as npt

from compiler.attack.perturbation import Perturbation
from hwmodel.errors import CompileError, Loc

Floats = npt.NDArray[np.float32]


class Status(StrEnum):
    """What became of a sample."""

    SUCCESS = "success"
    CLEAN_ERROR = "clean_error"  # misclassified before any change; no attack counts it
    FAILURE = "failure"  # all iterations done
    OUT_OF_BOUND = "out_of_bound"  # the perturbation passed epsilon
    VANISHED = "vanished"  # the gradient was zero, and flipping was switched off


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """A sample to attack: its index, from which its random numbers follow, its values, label and target.

    Shapes: x as one sample of the input without N: (C, ...) or (T, C, ...).
    """

    sample: int
    x: Floats
    label: int
    target: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Algorithm 5's numbers, and which of its parts are used.

    step: what one unit of a spike gradient changes an intensity by; of direct coding, of the gradient's sign.
    epsilon: bound of the mean square perturbation; none is searched for beyond it.
    pull: c of equation 5.9, back to the clean image.
    Source: section 5.4.1 for the defaults.
    """

    iterations: int = 25
    gamma: float = 0.05
    step: float = 1.0
    epsilon: float = math.inf
    pull: float = 0.0
    sampling: bool = True
    flipping: bool = True
    seed: int = 0

    def __post_init__(self) -> None:
        for name, value, least in (("iterations", self.iterations, 1), ("seed", self.seed, 0)):
            if value < least:
                raise CompileError(f"{name} is {value}, must be at least {least}", Loc("attack"))
        for name, number in (("step", self.step), ("epsilon", self.epsilon)):
            if not number > 0.0:
                raise CompileError(f"{name} is {number:g}, must be positive", Loc("attack"))
        if not 0.0 < self.gamma <= 1.0:
            raise CompileError(f"gamma is {self.gamma:g}, must be above 0 and at most 1", Loc("attack"))
        if not 0.0 <= self.pull < math.inf:
            raise CompileError(f"the pull is {self.pull:g}, must be at least 0 and finite", Loc("attack"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What became of a sample.

    adversarial: its last values, the example where the status is success.
    iterations: updates done, of all restarts; vanished: those without a gradient; queries, gradients: passes through
    the network. draw: step of the Bernoulli code that the status was told by, 0 where the network draws none.
    """

    case: Case
    status: Status
    adversarial: Floats
    perturbation: Perturbation
    iterations: int
    vanished: int
    queries: int
    gradients: int
    draw: int = 0
