"""What black-box searches share: counted queries, margins, random numbers and outcomes."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from compiler.attack.goal import succeeds, wins
from compiler.attack.network import Network
from compiler.attack.perturbation import perturbation
from compiler.attack.randomness import Purpose, stream_of
from compiler.attack.searches import Answer, Ask
from compiler.attack.settings import Case, Floats, Outcome, Settings, Status
from compiler.attack.victim import BLOCK
from compiler.ir import DType

Asking = Generator[Ask, Answer, "Replies"]

QUERIES = 64  # of a search, for each iteration that the settings allow


def takes_spikes(victim: Network) -> bool:
    """Whether the attacked input is spikes; else it is values in [0, 1]."""
    return victim.graph.types[victim.graph.input.name].dtype is DType.SPIKE


@dataclass(frozen=True, slots=True, kw_only=True)
class Replies:
    """Of each asked input, in order.

    margins: label's score over the best other, or of a targeted case the best other's over the target's; what an
    attacker lowers, below 0 for every success.
    draws: steps of the Bernoulli codes.
    """

    margins: Tensor
    successes: list[bool]
    draws: list[int]

    @property
    def best(self) -> int:
        """The first of those with the lowest margin."""
        return int(self.margins.argmin())


@dataclass(slots=True)
class Probe:
    """One search's queries: the n-th, from 0, gets the code of step n."""

    case: Case
    settings: Settings
    queries: int = 0
    clean_margin: float = field(init=False, default=0.0)
    rng: np.random.Generator = field(init=False)

    def __post_init__(self) -> None:
        self.rng = stream_of(self.settings.seed, Purpose.SEARCH, self.case.sample)

    @property
    def clean(self) -> Tensor:
        """The sample's own values; not to be written to."""
        return torch.from_numpy(self.case.x)

    def inside(self, x: Tensor) -> Tensor:
        """Values brought back to the budget, if there is one. Shapes: one sample's."""
        budget = self.settings.budget
        return x if budget is None else torch.from_numpy(budget.projected(self.case.x, x.numpy()))

    def asked(self, x: Tensor) -> Asking:
        """Queries, a block at once. Shapes: x (K, ...), any K."""
        rows, draws = [], []
        for part in torch.split(x, BLOCK):
            steps = list(range(self.queries, self.queries + len(part)))
            answer = yield Ask(x=part, steps=steps)
            rows.append(answer.values)
            draws += steps
            self.queries += len(part)
        scores = torch.cat(rows)
        return self._replies(scores, draws)

    def clean_error(self) -> Generator[Ask, Answer, Outcome | None]:
        """The first query: the outcome of a sample that is misclassified as it is."""
        answer = yield Ask(x=self.clean.unsqueeze(0), steps=[0])
        self.queries = 1
        self.clean_margin = float(self._replies(answer.values, [0]).margins[0])
        if bool(wins(answer.values, torch.tensor([self.case.label]))[0]):
            return None
        return self.outcome(Status.CLEAN_ERROR, self.clean, 0, 0)

    def outcome(self, status: Status, x: Tensor, iterations: int, draw: int) -> Outcome:
        """What became of the sample; no success lies beyond epsilon or the budget."""
        adversarial: Floats = np.ascontiguousarray(x.numpy())
        size = perturbation(self.case.x, adversarial)
        budget = self.settings.budget
        is_outside = size.dissertation > self.settings.epsilon
        is_outside |= budget is not None and size.named()[budget.norm] > budget.bound
        return Outcome(
            case=self.case,
            status=Status.OUT_OF_BOUND if is_outside else status,
            adversarial=adversarial,
            perturbation=size,
            iterations=iterations,
            vanished=0,
            queries=self.queries,
            gradients=0,
            draw=draw,
        )

    def _replies(self, scores: Tensor, draws: list[int]) -> Replies:
        target = self.case.target
        wanted = torch.full((len(scores),), self.case.label if target is None else target)
        own = scores.gather(1, wanted[:, None])[:, 0]
        others = scores.scatter(1, wanted[:, None], -torch.inf).amax(1)
        return Replies(
            margins=own - others if target is None else others - own,
            successes=succeeds(scores, wanted, targeted=target is not None).tolist(),
            draws=draws,
        )
