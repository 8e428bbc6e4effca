"""What gradient-guided searches over spikes share: one sample's questions and their number, and sets of flips."""

from __future__ import annotations

import math
from collections.abc import Generator
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from compiler.attack.goal import succeeds, wins
from compiler.attack.perturbation import perturbation
from compiler.attack.searches import Answer, Ask
from compiler.attack.settings import Case, Outcome, Settings, Status
from compiler.attack.victim import BLOCK, Victim
from compiler.ir import CompileError, DType

Result = TypeVar("Result")
Asking = Generator[Ask, Answer, Result]
Indices = npt.NDArray[np.int64]


@dataclass(slots=True)
class Inquiry:
    """A sample, what was asked about it, and the answers in the attacker's terms.

    most: queries after which a search that has a limit asks no more.
    Shapes: inputs x are (T, C, ...), several of them (K, T, C, ...).
    """

    case: Case
    most: float = math.inf
    queries: int = 0
    gradients: int = 0
    iterations: int = 0
    vanished: int = 0
    vanished_at_start: bool = False

    @property
    def clean(self) -> Tensor:
        """The sample as it is."""
        return torch.from_numpy(self.case.x.copy())

    @property
    def left(self) -> float:
        """Queries that may still be asked."""
        return self.most - self.queries

    def scores(self, x: Tensor) -> Asking[Tensor]:
        """Class scores of inputs. Shapes: (K, T, C, ...) -> (K, classes)."""
        parts = []
        for part in torch.split(x, BLOCK):
            answer = yield Ask(x=part, steps=[0] * len(part))
            parts.append(answer.values)
        self.queries += len(x)
        return torch.cat(parts)

    def judged(self, x: Tensor) -> Asking[tuple[Tensor, bool]]:
        """One input's scores, and whether it is what the attacker wants."""
        scores = yield from self.scores(x.unsqueeze(0))
        return scores, self.hits(scores)[0]

    def started(self) -> Asking[Tensor | None]:
        """The clean sample's scores; None where it is misclassified."""
        scores = yield from self.scores(self.clean.unsqueeze(0))
        return scores if bool(wins(scores, torch.tensor([self.case.label]))[0]) else None

    def hits(self, scores: Tensor) -> list[bool]:
        """Which scores are what the attacker wants. Shapes: (K, classes)."""
        target = self.case.target
        wanted = torch.full((len(scores),), self.case.label if target is None else target)
        return [bool(hit) for hit in succeeds(scores, wanted, targeted=target is not None)]

    def margins(self, scores: Tensor) -> npt.NDArray[np.float64]:
        """The lead of the target, or of the best class other than the label. Shapes: (K, classes) -> (K,)."""
        values = scores.numpy().astype(np.float64)
        own = class_of(self.case)
        lead: npt.NDArray[np.float64] = values[:, own] - np.delete(values, own, 1).max(1, initial=-np.inf)
        return -lead if self.case.target is None else lead

    def ascent(self, x: Tensor, scores: Tensor) -> Asking[Tensor]:
        """The direction in which the margin grows, by the input: of two losses, the difference of their gradients.

        d loss_a / ds - d loss_b / ds is 2 (e_b - e_a) / K for the mean square error and, with the scale of the rates,
        scale (e_b - e_a) for cross entropy, so that what is left is the gradient of s_b - s_a. Untargeted, a is the
        label and b the best other class; targeted, b is the target and a the best other.

        Shapes: x (T, C, ...), scores (1, classes) -> as x.
        """
        own = class_of(self.case)
        others = scores[0].numpy().copy()
        others[own] = -np.inf
        of_own = yield from self._gradient(x, own)
        of_rival = yield from self._gradient(x, int(others.argmax()))
        ascent = of_own - of_rival if self.case.target is None else of_rival - of_own
        gone = not bool((ascent != 0).any())
        self.vanished_at_start |= gone and self.gradients == 2
        self.vanished += gone
        return ascent

    def _gradient(self, x: Tensor, wanted: int) -> Asking[Tensor]:
        answer = yield Ask(x=x.unsqueeze(0), steps=[0], wanted=wanted)
        self.gradients += 1
        return answer.values[0]

    def outcome(self, status: Status, x: Tensor) -> Outcome:
        """What became of the sample."""
        adversarial = np.ascontiguousarray(x.numpy())
        return Outcome(
            case=self.case,
            status=status,
            adversarial=adversarial,
            perturbation=perturbation(self.case.x, adversarial),
            iterations=self.iterations,
            vanished=self.vanished,
            queries=self.queries,
            gradients=self.gradients,
            vanished_at_start=self.vanished_at_start,
        )


def class_of(case: Case) -> int:
    """The target, or else the label."""
    return case.label if case.target is None else case.target


def gains(x: Tensor, ascent: Tensor) -> npt.NDArray[np.float32]:
    """What flipping each element adds to the margin in first order. Shapes: both (T, C, ...) -> flat."""
    found: npt.NDArray[np.float32] = ((1 - 2 * x) * ascent).flatten().numpy()
    return found


def with_flips(x: Tensor, flips: Indices) -> Tensor:
    """The input with some elements flipped, counted in the flattened input."""
    flipped = x.clone(memory_format=torch.contiguous_format)
    flat = flipped.view(-1)
    flat[flips] = 1 - flat[flips]
    return flipped


def most_flips(settings: Settings, elements: int) -> int:
    """How many flips the budget and epsilon of the settings allow in an input of so many elements."""
    within = elements
    if settings.epsilon < 1.0:
        # The mean square of flips is their share, compared in the arithmetic that `perturbation` uses.
        within = int(settings.epsilon * elements) + 1
        while within / elements > settings.epsilon:
            within -= 1
    budget = None if settings.budget is None else settings.budget.flips
    return within if budget is None else min(within, budget)


def check_spikes(victim: Victim, what: str) -> None:
    """Raises: CompileError for a network that does not take spikes."""
    node = victim.graph.input
    if victim.graph.types[node.name].dtype is not DType.SPIKE:
        raise CompileError(
            f"{node.name}: {what}, and the network takes intensities", node.loc, hint="attack it with bim"
        )
