"""Shares over fresh draws: against a direct count, and the interval against its definition."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from compiler.attack import Outcome, Settings, Status, Victim, attack
from compiler.attack.fresh import clopper_pearson, over_fresh_draws
from compiler.attack.goal import succeeds
from compiler.attack.randomness import Purpose, uniform_draws
from compiler.ir import Encoding
from tests.compiler.attack.test_iterate import classified
from tests.compiler.attack.test_victim import two_layers


def outcomes(victim: Victim) -> list[Outcome]:
    return list(attack(victim, classified(victim, 30, 0), Settings(step=0.2)))


def test_of_spikes_one_draw_tells_what_the_attack_said() -> None:
    victim = Victim(two_layers())
    for fresh in over_fresh_draws(victim, outcomes(victim), draws=50, seed=1):
        assert fresh.draws == 1
        assert bool(fresh.successes) == (fresh.outcome.status is Status.SUCCESS)


@pytest.mark.parametrize("draws", [1, 16, 21])
def test_of_intensities_each_draw_counts(draws: int) -> None:
    victim = Victim(two_layers(Encoding.BERNOULLI))
    found = outcomes(victim)
    got = list(over_fresh_draws(victim, found, draws=draws, seed=1))
    assert [fresh.outcome for fresh in got] == found
    shares = set()
    for fresh in got:
        case, hits = fresh.outcome.case, 0
        for step in range(draws):
            shape = (4, *case.x.shape)
            uniform = uniform_draws(1, Purpose.FRESH, [case.sample], [step], shape)
            scores = victim.scores((uniform < torch.from_numpy(fresh.outcome.adversarial)).float(), [step % 16])
            hits += int(succeeds(scores, torch.tensor([case.label]), targeted=False)[0])
        assert (fresh.successes, fresh.draws) == (hits, draws)
        shares.add(hits)
    assert len(shares) > 1


@given(st.integers(1, 200), st.data(), st.sampled_from([0.9, 0.95, 0.99]))
def test_the_interval_of_clopper_and_pearson(trials: int, data: st.DataObject, confidence: float) -> None:
    """At each end the tail of the binomial distribution beyond the count has half of what is left."""
    successes = data.draw(st.integers(0, trials))
    share = clopper_pearson(successes, trials, confidence)
    tail = (1 - confidence) / 2
    assert share.low <= share.value == successes / trials <= share.high
    if successes > 0:
        np.testing.assert_allclose(stats.binom.sf(successes - 1, trials, share.low), tail, rtol=1e-6)
    else:
        assert share.low == 0
    if successes < trials:
        np.testing.assert_allclose(stats.binom.cdf(successes, trials, share.high), tail, rtol=1e-6)
    else:
        assert share.high == 1
