"""What outcomes of attacks on spikes have to hold to, and the least number of flips by enumeration."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations

import numpy as np
import torch
from torch import Tensor

from compiler.attack import Case, Outcome, Settings, Status, Victim, perturbation
from compiler.attack.goal import succeeds, wins
from compiler.attack.methods import Attack
from compiler.evaluate import evaluate
from compiler.ir import Graph


@dataclass(frozen=True, eq=False)
class Counted(Victim):
    """Counts what it is asked."""

    asked: Counter[str] = field(default_factory=Counter)

    def scores(self, x: Tensor, places: Sequence[int] | None = None) -> Tensor:
        self.asked["queries"] += x.shape[1]
        return super().scores(x, places)

    def gradient(self, x: Tensor, classes: Tensor, places: Sequence[int] | None = None) -> Tensor:
        self.asked["gradients"] += x.shape[1]
        return super().gradient(x, classes, places)


def counted(victim: Counted, outcomes: Iterable[Outcome], before: Sequence[Outcome] = ()) -> list[Outcome]:
    """Outcomes whose counts are what the network was asked for them, those added where they go on from others."""
    victim.asked.clear()
    found = list(outcomes)
    for name in ("queries", "gradients"):
        assert victim.asked[name] == sum(getattr(o, name) for o in found) - sum(getattr(o, name) for o in before)
    return found


def check_claims(victim: Victim, outcome: Outcome, settings: Settings) -> None:
    case, after = outcome.case, outcome.adversarial
    assert np.isin(after, (0, 1)).all()
    assert outcome.perturbation == perturbation(case.x, after)
    if settings.budget is not None and settings.budget.flips is not None:
        assert outcome.perturbation.l0 <= settings.budget.flips
    is_outside = outcome.perturbation.dissertation > settings.epsilon
    assert (outcome.status is Status.OUT_OF_BOUND) == is_outside
    scores = victim.scores(torch.from_numpy(after).unsqueeze(1), [case.sample])
    wanted = torch.tensor([case.label if case.target is None else case.target])
    match outcome.status:
        case Status.SUCCESS:
            assert bool(succeeds(scores, wanted, targeted=case.target is not None)[0])
        case Status.CLEAN_ERROR:
            assert not bool(wins(scores, torch.tensor([case.label]))[0])
            assert np.array_equal(after, case.x)
            assert (outcome.queries, outcome.gradients, outcome.iterations) == (1, 0, 0)
        case Status.VANISHED:
            assert outcome.vanished
            assert not settings.flipping


def check_alone(
    attack: Attack, victim: Victim, cases: Sequence[Case], settings: Settings, order: Sequence[int]
) -> dict[int, Outcome]:
    """An outcome is the same to the last bit beside whatever others."""
    whole = {outcome.case.sample: outcome for outcome in attack(victim, cases, settings)}
    assert sorted(whole) == [case.sample for case in cases]
    for outcome in attack(victim, [cases[at] for at in order], settings):
        want = whole[outcome.case.sample]
        assert outcome.adversarial.tobytes() == want.adversarial.tobytes()
        assert replace(outcome, adversarial=want.adversarial, case=want.case) == want
    return whole


def least_flips(graph: Graph, case: Case, most: int) -> int | None:
    """The smallest number of flips that any example has, by trying them all; None if it is above `most`."""
    for count in range(1, most + 1):
        if any(_any_succeeds(graph, case, part) for part in _sets(case.x.size, count)):
            return count
    return None


def _sets(elements: int, count: int) -> Iterator[Tensor]:
    every = np.array(list(combinations(range(elements), count)))
    yield from torch.split(torch.from_numpy(every), 16384)


def _any_succeeds(graph: Graph, case: Case, flips: Tensor) -> bool:
    x = torch.from_numpy(case.x).reshape(-1).repeat(len(flips), 1)
    x.scatter_(1, flips, 1 - x.gather(1, flips))
    scores = evaluate(graph, x.reshape(len(flips), *case.x.shape).transpose(0, 1)).output
    wanted = torch.full((len(flips),), case.label if case.target is None else case.target)
    return bool(succeeds(scores, wanted, targeted=case.target is not None).any())
