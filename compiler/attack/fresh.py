"""How often an example fools the network over fresh draws of its encoding."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch

from compiler.attack.goal import succeeds
from compiler.attack.randomness import Purpose, uniform_draws
from compiler.attack.settings import Outcome
from compiler.attack.victim import BLOCK, Victim
from compiler.ir import Encoding


@dataclass(frozen=True, slots=True, kw_only=True)
class Fresh:
    """Successes of one example over independent draws; one draw tells all where the network draws nothing."""

    outcome: Outcome
    successes: int
    draws: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Share:
    """A share of successes with an interval that holds it with the confidence."""

    value: float
    low: float
    high: float
    confidence: float


def clopper_pearson(successes: int, trials: int, confidence: float = 0.95) -> Share:
    """The exact interval of a binomial share. Raises: ValueError for no trial."""
    from scipy.stats import binomtest

    found = binomtest(successes, trials).proportion_ci(confidence, method="exact")
    return Share(value=successes / trials, low=float(found.low), high=float(found.high), confidence=confidence)


def over_fresh_draws(victim: Victim, outcomes: Iterable[Outcome], *, draws: int, seed: int) -> Iterator[Fresh]:
    """Judge each outcome's example by draws that no attack has seen, in their order.

    Shapes: as `attack`. Units: draws of a sample.
    """
    for outcome in outcomes:
        if victim.encoding is not Encoding.BERNOULLI:
            yield Fresh(outcome=outcome, successes=_successes(victim, outcome, None, [0]), draws=1)
            continue
        hits = 0
        for start in range(0, draws, BLOCK):
            steps = range(start, min(start + BLOCK, draws))
            hits += _successes(victim, outcome, seed, steps)
        yield Fresh(outcome=outcome, successes=hits, draws=draws)


def _successes(victim: Victim, outcome: Outcome, seed: int | None, steps: Sequence[int]) -> int:
    """Of some draws."""
    x = torch.from_numpy(outcome.adversarial)
    case = outcome.case
    if seed is None:
        seen = x.unsqueeze(int(victim.has_time))
    else:
        samples = [case.sample] * len(steps)
        uniform = uniform_draws(seed, Purpose.FRESH, samples, steps, (victim.graph.timesteps, *x.shape))
        seen = (uniform < x).to(torch.float32)
    scores = victim.scores(seen)
    wanted = torch.full((len(scores),), case.label if case.target is None else case.target)
    return int(succeeds(scores, wanted, targeted=case.target is not None).sum())
