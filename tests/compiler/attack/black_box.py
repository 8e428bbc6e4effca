"""What the tests of black-box attacks share: a victim that counts, and what every outcome holds to."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from compiler.attack import Case, Outcome, Settings, Status, Victim, perturbation
from compiler.attack.goal import succeeds, wins
from compiler.attack.randomness import Purpose, uniform_draws
from compiler.ir import DType, Encoding, Graph

Attack = Callable[[Victim, Iterable[Case], Settings], Iterator[Outcome]]


@dataclass(frozen=True, eq=False)
class CountingVictim(Victim):
    """Counts the inputs that it scores, and refuses gradients."""

    asked: list[int] = field(default_factory=list)

    def scores(self, x: Tensor, places: Sequence[int] | None = None) -> Tensor:
        self.asked.append(x.shape[int(self.has_time)])
        return super().scores(x, places)

    def gradient(self, x: Tensor, classes: Tensor, places: Sequence[int] | None = None) -> Tensor:
        raise AssertionError("a black-box attack takes no gradient")


def scores_of(victim: Victim, outcome: Outcome, seed: int) -> Tensor:
    """At the recorded draw and the sample's own place, computed anew."""
    x, case = torch.from_numpy(outcome.adversarial), outcome.case
    if victim.encoding is Encoding.BERNOULLI:
        shape = (victim.graph.timesteps, *x.shape)
        seen = (uniform_draws(seed, Purpose.ENCODE, [case.sample], [outcome.draw], shape) < x).float()
    else:
        seen = x.unsqueeze(int(victim.has_time))
    return victim.scores(seen, [case.sample])


def check_outcomes(attack: Attack, graph: Graph, cases: Sequence[Case], setup: Settings) -> dict[int, Outcome]:
    """Values, verdicts, counts and limits; and that an outcome is that of its sample alone."""
    victim = CountingVictim(graph)
    outcomes = {outcome.case.sample: outcome for outcome in attack(victim, cases, setup)}
    assert sorted(outcomes) == sorted(case.sample for case in cases)
    assert sum(victim.asked) == sum(outcome.queries for outcome in outcomes.values())
    for outcome in outcomes.values():
        _check(victim, outcome, setup)
    some = list(cases)[1:3]
    for outcome in attack(Victim(graph), some[::-1], setup):
        want = outcomes[outcome.case.sample]
        assert outcome.adversarial.tobytes() == want.adversarial.tobytes()
        assert replace(outcome, adversarial=want.adversarial, case=want.case) == want
    return outcomes


def _check(victim: Victim, outcome: Outcome, setup: Settings) -> None:
    case, after = outcome.case, outcome.adversarial
    spikes = victim.graph.types[victim.graph.input.name].dtype is DType.SPIKE
    assert np.isin(after, (0, 1)).all() if spikes else ((after >= 0) & (after <= 1)).all()
    assert outcome.perturbation == perturbation(case.x, after)
    assert (outcome.gradients, outcome.vanished) == (0, 0)
    budget = setup.budget
    is_inside = outcome.perturbation.dissertation <= setup.epsilon
    is_inside &= budget is None or outcome.perturbation.named()[budget.norm] <= budget.bound
    assert is_inside or outcome.status is Status.OUT_OF_BOUND
    scores = scores_of(victim, outcome, setup.seed)
    match outcome.status:
        case Status.SUCCESS:
            wanted = torch.tensor([case.label if case.target is None else case.target])
            assert bool(succeeds(scores, wanted, targeted=case.target is not None)[0])
        case Status.CLEAN_ERROR:
            assert not bool(wins(scores, torch.tensor([case.label]))[0])
            assert (outcome.queries, outcome.iterations, outcome.perturbation.l0) == (1, 0, 0)
        case Status.OUT_OF_BOUND:
            assert not is_inside
        case Status.FAILURE:
            assert is_inside
        case Status.VANISHED:
            raise AssertionError("no gradient is taken")
