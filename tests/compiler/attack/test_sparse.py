"""Flips that double in number, then only those that are needed."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from compiler.attack import Case, Settings, Status, Victim, sparse
from compiler.attack.budget import Budget, Norm
from compiler.ir import CompileError, DType, Encoding, Graph, Surrogate, SurrogateKind
from tests.compiler.attack.networks import victims
from tests.compiler.attack.spike_checks import Counted, check_alone, check_claims, counted
from tests.compiler.attack.test_iterate import classified, louder
from tests.compiler.attack.test_reduce import still
from tests.compiler.attack.test_victim import two_layers

WIDE = Surrogate(kind=SurrogateKind.ATAN, width=1.0)
setups = st.builds(
    Settings,
    iterations=st.integers(1, 6),
    gamma=st.sampled_from([0.05, 0.5]),
    epsilon=st.sampled_from([np.inf, 0.1]),
    budget=st.sampled_from([None, Budget(norm=Norm.L0, bound=2), Budget(norm=Norm.L2, bound=1.5)]),
    flipping=st.booleans(),
    seed=st.integers(0, 9),
)


@settings(max_examples=10)
@given(victims(image_input=False), setups, st.booleans(), st.permutations(range(6)))
def test_of_random_networks(graph: Graph, setup: Settings, targeted: bool, order: list[int]) -> None:
    assume(graph.types[graph.input.name].dtype is DType.SPIKE)
    victim = Counted(graph, surrogate=WIDE)
    start = [replace(case, sample=at) for at, case in enumerate(classified(victim, 12, setup.seed)[:6])]
    assume(len(start) == 6)
    if targeted:
        start = [replace(case, target=(case.label + 1) % victim.classes) for case in start]
    counted(victim, sparse.attack(victim, start, setup))
    for outcome in check_alone(sparse.attack, victim, start, setup, order[:3]).values():
        check_claims(victim, outcome, setup)
        assert outcome.iterations <= setup.iterations
        if outcome.status is Status.SUCCESS:
            for place in np.argwhere(outcome.adversarial != outcome.case.x):
                single = outcome.adversarial.copy()
                single[tuple(place)] = outcome.case.x[tuple(place)]
                assert not still(victim, outcome, single)


@pytest.mark.parametrize("targeted", [False, True])
def test_examples_are_found(targeted: bool) -> None:
    victim = Victim(two_layers(), surrogate=WIDE)
    start = classified(victim, 60, 0)
    if targeted:
        start = [replace(case, target=(case.label + 1) % 3) for case in start]
    outcomes = list(sparse.attack(victim, start, Settings()))
    assert sum(outcome.status is Status.SUCCESS for outcome in outcomes) >= 0.8 * len(start)


def test_a_budget_is_met_by_what_is_left_after_the_reduction() -> None:
    victim = Victim(two_layers(), surrogate=WIDE)
    start = classified(victim, 60, 0)
    free = {outcome.case.sample: outcome for outcome in sparse.attack(victim, start, Settings())}
    tight = Settings(budget=Budget(norm=Norm.L0, bound=1))
    for outcome in sparse.attack(victim, start, tight):
        was = free[outcome.case.sample]
        single = was.status is Status.SUCCESS and was.perturbation.l0 == 1
        assert (outcome.status is Status.SUCCESS) == single
        assert outcome.perturbation.l0 <= 1


def test_what_a_budget_leaves_is_judged_anew() -> None:
    """Of flips that fail together, or succeed only together, those of the budget's number may succeed."""
    victim = Victim(two_layers(), surrogate=WIDE)
    setup = Settings(budget=Budget(norm=Norm.L0, bound=3), iterations=6)
    outcomes = {outcome.case.sample: outcome for outcome in sparse.attack(victim, classified(victim, 60, 1), setup)}
    for outcome in outcomes.values():
        check_claims(victim, outcome, setup)
        if outcome.status is Status.FAILURE:
            assert not still(victim, outcome, outcome.adversarial)
    assert outcomes[21].status is Status.SUCCESS


def test_a_clean_error_ends_at_once() -> None:
    victim = Victim(two_layers())
    case = classified(victim, 20, 0)[0]
    wrong = Case(sample=3, x=case.x, label=(case.label + 1) % 3)
    (outcome,) = sparse.attack(victim, [wrong], Settings())
    assert (outcome.status, outcome.queries, outcome.gradients) == (Status.CLEAN_ERROR, 1, 0)


def test_a_vanished_gradient_flips_at_random_or_ends() -> None:
    victim = Victim(louder(two_layers(), 1000.0))
    start = classified(victim, 60, 0)
    stuck = [o for o in sparse.attack(victim, start, Settings(flipping=False)) if o.status is Status.VANISHED]
    gone = {outcome.case.sample for outcome in stuck if outcome.vanished_at_start}
    assert len(gone) >= 10
    assert all(outcome.perturbation.l0 == 0 for outcome in stuck if outcome.vanished_at_start)
    again = list(sparse.attack(victim, [case for case in start if case.sample in gone], Settings(gamma=0.25)))
    assert all(outcome.vanished_at_start and outcome.status is not Status.VANISHED for outcome in again)
    assert any(outcome.perturbation.l0 for outcome in again)


def test_of_intensities_nothing_is_flipped() -> None:
    with pytest.raises(CompileError, match="takes intensities"):
        list(sparse.attack(Victim(two_layers(Encoding.BERNOULLI)), [], Settings()))
