"""Random search keeps to its budget and its queries, finds examples, and makes flips fewer."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from compiler.attack import Settings, Status, Victim
from compiler.attack.budget import Budget, Norm
from compiler.attack.random_search import attack, share
from compiler.ir import CompileError, DType, Encoding, Graph
from tests.compiler.attack.black_box import check_outcomes
from tests.compiler.attack.networks import cases, victims
from tests.compiler.attack.test_iterate import classified
from tests.compiler.attack.test_victim import two_layers

FEW = settings(max_examples=10, deadline=None)


@FEW
@given(victims(), st.booleans(), st.sampled_from([1.0, 0.02]), st.integers(0, 9))
def test_what_every_outcome_holds_to(graph: Graph, targeted: bool, epsilon: float, seed: int) -> None:
    is_spikes = graph.types[graph.input.name].dtype is DType.SPIKE
    budget = Budget(norm=Norm.L0, bound=3) if is_spikes else Budget(norm=Norm.LINF, bound=0.2)
    setup = Settings(iterations=1, epsilon=epsilon, seed=seed, budget=budget)
    given_cases = cases(graph, 5, seed, targeted=targeted)
    for outcome in check_outcomes(attack, graph, given_cases, setup).values():
        assert outcome.queries <= 64 + 1


@pytest.mark.parametrize("queries", [1, 2, 17, 40])
@pytest.mark.parametrize("kind", [None, Encoding.BERNOULLI, Encoding.DIRECT])
def test_no_query_beyond_the_limit(kind: Encoding | None, queries: int) -> None:
    victim = Victim(two_layers(kind))
    setup = Settings(budget=Budget(norm=Norm.LINF, bound=1.0) if kind is None else Budget(norm=Norm.LINF, bound=0.01))
    for outcome in attack(victim, classified(victim, 10, 0), setup, queries=queries):
        assert outcome.queries - (outcome.status is Status.SUCCESS) <= queries


@pytest.mark.parametrize("targeted", [False, True])
@pytest.mark.parametrize("kind", [None, Encoding.BERNOULLI, Encoding.DIRECT])
def test_examples_are_found(kind: Encoding | None, targeted: bool) -> None:
    victim = Victim(two_layers(kind))
    start = classified(victim, 40, 0)
    if targeted:
        start = [replace(case, target=(case.label + 1) % 3) for case in start]
    budget = None if kind is None else Budget(norm=Norm.LINF, bound=0.5)
    outcomes = list(attack(victim, start, Settings(budget=budget, gamma=0.3), queries=400))
    found = [outcome for outcome in outcomes if outcome.status is Status.SUCCESS]
    assert len(found) >= (0.2 if kind is Encoding.DIRECT else 0.5) * len(outcomes)


def test_more_queries_leave_fewer_flips() -> None:
    victim = Victim(two_layers())
    start = classified(victim, 40, 0)
    sizes = []
    for queries in (64, 640):
        outcomes = list(attack(victim, start, Settings(gamma=0.4), queries=queries))
        found = [outcome.perturbation.l0 for outcome in outcomes if outcome.status is Status.SUCCESS]
        assert len(found) >= 0.5 * len(outcomes)
        sizes.append(np.mean(found))
    assert sizes[1] < 0.8 * sizes[0]


def test_intensities_are_moved_to_the_ends_of_the_budget() -> None:
    """Whatever squares lie over each other."""
    victim = Victim(two_layers(Encoding.BERNOULLI))
    budget = Budget(norm=Norm.LINF, bound=0.05)
    moved = 0
    for outcome in attack(victim, classified(victim, 30, 0), Settings(budget=budget), queries=400):
        ends = np.stack([(outcome.case.x + sign * 0.05).clip(0, 1) for sign in (-1, 0, 1)])
        if outcome.perturbation.l0:
            assert np.isclose(outcome.adversarial, ends, atol=1e-6).any(0).all()
        moved += outcome.iterations > 3 and outcome.perturbation.l0 > 0
    assert moved >= 5


def test_the_share_shrinks() -> None:
    shares = [share(used) for used in np.linspace(0, 1, 50)]
    assert shares == sorted(shares, reverse=True)
    assert (shares[0], shares[-1]) == (0.8, 0.8 / 2**8)


@pytest.mark.parametrize("budget", [None, Budget(norm=Norm.L2, bound=1.0)], ids=["none", "l2"])
def test_refusals(budget: Budget | None) -> None:
    with pytest.raises(CompileError, match=r"moves intensities within a linf budget, and .*\n  hint: "):
        attack(Victim(two_layers(Encoding.DIRECT)), [], Settings(budget=budget))
