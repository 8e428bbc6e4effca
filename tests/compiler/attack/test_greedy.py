"""Few flips: against the least number by enumeration, and against the plain method on trained networks."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from compiler.attack import Case, Outcome, Settings, Status, Victim, attack, greedy
from compiler.attack.budget import Budget, Norm
from compiler.attack.reduce import reduce_flips
from compiler.ir import CompileError, DType, Encoding, Graph, Surrogate, SurrogateKind
from tests.compiler.attack.event_networks import Trained, conv_on_digits, tiny
from tests.compiler.attack.networks import victims
from tests.compiler.attack.spike_checks import Counted, check_alone, check_claims, counted, least_flips
from tests.compiler.attack.test_iterate import classified
from tests.compiler.attack.test_victim import two_layers

WIDE = Surrogate(kind=SurrogateKind.ATAN, width=1.0)
MOST = 4  # flips that are enumerated
setups = st.builds(
    Settings,
    iterations=st.integers(1, 4),
    epsilon=st.sampled_from([np.inf, 0.1]),
    budget=st.sampled_from([None, Budget(norm=Norm.L0, bound=2), Budget(norm=Norm.L2, bound=1.5)]),
    flipping=st.booleans(),
    seed=st.integers(0, 9),
)


@pytest.fixture(scope="session")
def tiny_network() -> Trained:
    return tiny()


@pytest.fixture(scope="session")
def conv_network() -> Trained:
    return conv_on_digits()


@settings(max_examples=8)
@given(victims(image_input=False), setups, st.booleans(), st.permutations(range(6)))
def test_of_random_networks(graph: Graph, setup: Settings, targeted: bool, order: list[int]) -> None:
    assume(graph.types[graph.input.name].dtype is DType.SPIKE)
    victim = Counted(graph, surrogate=WIDE)
    start = classified(victim, 12, setup.seed)[:6]
    assume(len(start) == 6)
    start = [replace(case, sample=at) for at, case in enumerate(start)]
    if targeted:
        start = [replace(case, target=(case.label + 1) % victim.classes) for case in start]
    method = partial(greedy.attack, candidates=6)
    counted(victim, method(victim, start, setup))
    for outcome in check_alone(method, victim, start, setup, order[:3]).values():
        check_claims(victim, outcome, setup)
        assert outcome.perturbation.l0 <= outcome.iterations <= setup.iterations
    before = list(attack(victim, start, replace(setup, budget=None)))
    old = {outcome.case.sample: outcome for outcome in before}
    for outcome in counted(victim, greedy.refine(victim, before, setup, queries=30, candidates=6), before):
        check_claims(victim, outcome, replace(setup, budget=None))
        was = old[outcome.case.sample]
        assert outcome.status is was.status
        assert outcome.perturbation.l0 <= was.perturbation.l0
        assert outcome.queries - was.queries <= 31


def refined(victim: Victim, before: list[Outcome]) -> dict[int, int]:
    """Flips of each success after reduction and refinement."""
    after = greedy.refine(victim, reduce_flips(victim, before), Settings())
    return {outcome.case.sample: outcome.perturbation.l0 for outcome in after if outcome.status is Status.SUCCESS}


@pytest.mark.parametrize("targeted", [False, True])
def test_flips_are_close_to_the_least_number_there_can_be(tiny_network: Trained, targeted: bool) -> None:
    victim = Victim(tiny_network.graph)
    start = tiny_network.cases(victim, 24, next_target=targeted)
    flips = refined(victim, list(attack(victim, start, Settings())))
    assert len(flips) == len(start)
    ratios = []
    for case in start:
        least = least_flips(tiny_network.graph, case, MOST)
        assert flips[case.sample] >= (MOST + 1 if least is None else least)
        ratios += [] if least is None else [flips[case.sample] / least]
    assert len(ratios) >= 20
    assert max(ratios) <= 2
    assert np.mean(ratios) <= 1.1


def check_against_the_plain_method(trained: Trained, count: int, *, targeted: bool, factor: float) -> None:
    victim = Victim(trained.graph)
    plain = list(attack(victim, trained.cases(victim, count, next_target=targeted), Settings()))
    found = {o.case.sample: o.perturbation.l0 for o in plain if o.status is Status.SUCCESS}
    few = refined(victim, plain)
    assert few.keys() == found.keys()
    assert len(found) >= 0.9 * count
    assert factor * sum(few.values()) <= sum(found.values())


def test_a_fifth_of_the_plain_method_s_flips(conv_network: Trained) -> None:
    assert conv_network.accuracy >= 0.85
    check_against_the_plain_method(conv_network, 10, targeted=False, factor=5)


@pytest.mark.slow
@pytest.mark.parametrize("targeted", [False, True], ids=["untargeted", "targeted"])
def test_far_fewer_flips_than_the_plain_method_of_many(conv_network: Trained, targeted: bool) -> None:
    check_against_the_plain_method(conv_network, 30, targeted=targeted, factor=5)


def test_the_search_alone_is_close_too(tiny_network: Trained) -> None:
    victim = Victim(tiny_network.graph)
    start = tiny_network.cases(victim, 12)
    found = list(greedy.attack(victim, start, Settings()))
    assert all(outcome.status is Status.SUCCESS for outcome in found)
    for outcome in found:
        least = least_flips(tiny_network.graph, outcome.case, 3)
        assert least is None or least <= outcome.perturbation.l0 <= 2 * least


def test_a_clean_error_ends_at_once() -> None:
    victim = Victim(two_layers())
    case = classified(victim, 20, 0)[0]
    wrong = Case(sample=3, x=case.x, label=(case.label + 1) % 3)
    (outcome,) = greedy.attack(victim, [wrong], Settings())
    assert (outcome.status, outcome.queries, outcome.gradients) == (Status.CLEAN_ERROR, 1, 0)


def test_of_intensities_nothing_is_flipped() -> None:
    victim = Victim(two_layers(Encoding.BERNOULLI))
    for method in (greedy.attack, greedy.refine):
        with pytest.raises(CompileError, match="takes intensities"):
            list(method(victim, [], Settings()))
