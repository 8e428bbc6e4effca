"""How an attack goes about it, and what became of a sample."""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
import numpy.typing as npt

from compiler.attack.budget import Budget
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


class Flow(StrEnum):
    """How often an input is changed before the verdict."""

    BIM = "bim"  # until it succeeds (equation 5.3)
    FGSM = "fgsm"  # once (equation 5.2)


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
    """Algorithm 5's numbers, which of its parts are used, and what goes beyond it.

    step: what one unit of a spike gradient changes an intensity by; of direct coding, of the gradient's sign. None
        stands for 1 and for 0.02; for a linf budget's whole bound where direct coding is changed but once.
    epsilon: bound of the mean square perturbation; a case that passes it ends without success.
    pull: c of equation 5.9, back to the clean image.
    restarts: how often a case without success begins again with other random numbers, direct coding at a random
        start; spikes whose gradients are neither sampled nor vanish go the same way again.
    draws: Bernoulli codes whose changes are averaged in each iteration; the first is the one that is judged.
    budget: what no iterate leaves; an iterate that would is brought back, and the case goes on.

    Raises: CompileError for a number outside its range.
    Source: section 5.4.1 for the defaults.
    """

    iterations: int = 25
    gamma: float = 0.05
    step: float | None = None
    epsilon: float = math.inf
    pull: float = 0.0
    sampling: bool = True
    flipping: bool = True
    seed: int = 0
    flow: Flow = Flow.BIM
    restarts: int = 0
    draws: int = 1
    budget: Budget | None = None

    def __post_init__(self) -> None:
        whole = (("iterations", 1), ("seed", 0), ("restarts", 0), ("draws", 1))
        for name, least in whole:
            value = getattr(self, name)
            if value < least:
                raise CompileError(f"{name} is {value}, must be at least {least}", Loc("attack"))
        for name, number in (("step", self.step), ("epsilon", self.epsilon)):
            if number is not None and not number > 0.0:
                raise CompileError(f"{name} is {number:g}, must be positive", Loc("attack"))
        if self.step == math.inf:
            raise CompileError("step is inf, must be finite", Loc("attack"))
        if not 0.0 < self.gamma <= 1.0:
            raise CompileError(f"gamma is {self.gamma:g}, must be above 0 and at most 1", Loc("attack"))
        if not 0.0 <= self.pull < math.inf:
            raise CompileError(f"the pull is {self.pull:g}, must be at least 0 and finite", Loc("attack"))

    @property
    def updates(self) -> int:
        """How often an input is changed at most before a restart."""
        return 1 if self.flow is Flow.FGSM else self.iterations


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What became of a sample.

    adversarial: its last values, the example where the status is success.
    iterations: updates done, of all restarts; vanished: those without a gradient.
    queries, gradients: scores that were judged, and gradients taken. The clean sample is judged once, and no restart
        judges where it begins.
    draw: step of the Bernoulli code that the status was told by, 0 where the network draws none.
    vanished_at_start: whether the first gradient was zero everywhere (table 5.3).
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
    vanished_at_start: bool = False
