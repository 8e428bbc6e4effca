"""Spikes move in time alone, and never further than the limits say."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from itertools import permutations

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from compiler.attack import Case, Outcome, Settings, Status, Victim, retime
from compiler.attack.budget import Budget, Norm
from compiler.attack.retime import RetimeBudget, Retiming, _Train, retiming
from compiler.ir import CompileError, DType, Encoding, Graph, Surrogate, SurrogateKind
from tests.compiler.attack.event_networks import Trained, on_latencies
from tests.compiler.attack.networks import victims
from tests.compiler.attack.spike_checks import Counted, check_alone, check_claims, counted
from tests.compiler.attack.test_iterate import classified
from tests.compiler.attack.test_reduce import still
from tests.compiler.attack.test_victim import two_layers

WIDE = Surrogate(kind=SurrogateKind.ATAN, width=1.0)
limits = st.builds(
    RetimeBudget,
    moved=st.sampled_from([None, 1, 3]),
    shift=st.sampled_from([None, 1, 2]),
    total=st.sampled_from([None, 1, 4]),
)


@pytest.fixture(scope="session")
def latency_network() -> Trained:
    return on_latencies()


def check_within(outcome: Outcome, budget: RetimeBudget) -> None:
    before, after = outcome.case.x, outcome.adversarial
    assert np.array_equal(before.sum(0), after.sum(0))
    done = retiming(before, after)
    assert outcome.perturbation.l0 == 2 * done.moved
    for name in ("moved", "shift", "total"):
        limit = getattr(budget, name)
        assert limit is None or getattr(done, name) <= limit


@settings(max_examples=10)
@given(victims(image_input=False), limits, st.booleans(), st.booleans(), st.permutations(range(6)), st.integers(0, 9))
def test_of_random_networks(
    graph: Graph, budget: RetimeBudget, targeted: bool, flipping: bool, order: list[int], seed: int
) -> None:
    assume(graph.types[graph.input.name].dtype is DType.SPIKE)
    victim = Counted(graph, surrogate=WIDE)
    start = [replace(case, sample=at) for at, case in enumerate(classified(victim, 12, seed)[:6])]
    assume(len(start) == 6)
    if targeted:
        start = [replace(case, target=(case.label + 1) % victim.classes) for case in start]
    method = partial(retime.attack, budget=budget)
    setup = Settings(iterations=6, flipping=flipping, seed=seed, budget=Budget(norm=Norm.L0, bound=7))
    counted(victim, method(victim, start, setup))
    for outcome in check_alone(method, victim, start, setup, order[:3]).values():
        check_claims(victim, outcome, setup)
        check_within(outcome, budget)


@pytest.mark.parametrize("targeted", [False, True])
@pytest.mark.parametrize(
    ("budget", "share"),
    [(RetimeBudget(), 0.9), (RetimeBudget(shift=1), 0.7), (RetimeBudget(moved=5), 0.6), (RetimeBudget(total=8), 0.6)],
    ids=["free", "shift", "moved", "total"],
)
def test_examples_of_a_network_that_listens_to_times(
    latency_network: Trained, budget: RetimeBudget, share: float, targeted: bool
) -> None:
    victim = Victim(latency_network.graph)
    start = latency_network.cases(victim, 12, next_target=targeted)
    outcomes = list(retime.attack(victim, start, Settings(), budget=budget))
    found = [outcome for outcome in outcomes if outcome.status is Status.SUCCESS]
    assert len(found) >= (0.5 * share if targeted else share) * len(start)
    for outcome in outcomes:
        check_within(outcome, budget)
    for outcome in found:
        check_needed(victim, outcome)


def test_no_two_spikes_move_to_one_step() -> None:
    clean = np.array([[1], [1], [0], [0], [0]], np.float32)
    proposed = np.array([[0, 0, 2], [0, 1, 2], [0, 1, 3]], np.int64)
    spikes = _Train(clean, RetimeBudget(), 4)
    moves = spikes.extended(proposed[:0], proposed, 4)
    assert moves.tolist() == [[0, 0, 2], [0, 1, 3]]
    assert spikes.moved(moves).ravel().tolist() == [0, 0, 1, 1, 0]


def check_needed(victim: Victim, outcome: Outcome) -> None:
    """No single move goes back; where a position has one move, it is known which."""
    before, after = outcome.case.x, outcome.adversarial
    changes = (before != after).sum(0)
    for place in np.argwhere(changes == 2):
        at = (slice(None), *place)
        back = after.copy()
        back[at] = before[at]
        assert not still(victim, outcome, back)


@settings(max_examples=50)
@given(st.integers(1, 6), st.data())
def test_the_measure_is_that_of_the_best_matching(steps: int, data: st.DataObject) -> None:
    """Against every way to assign the spikes of one position."""
    count = data.draw(st.integers(0, steps))
    old, new = (np.array(sorted(data.draw(st.permutations(range(steps)))[:count]), np.int64) for _ in range(2))
    ways = [np.abs(old - np.array(way, np.int64)) for way in permutations(new)]
    fewest = min(int((way > 0).sum()) for way in ways)
    shortest = min(int(way.max(initial=0)) for way in ways if (way > 0).sum() == fewest)
    want = Retiming(moved=fewest, shift=shortest, total=min(int(way.sum()) for way in ways))
    assert retiming(train(old, steps), train(new, steps)) == want


def train(times: npt.NDArray[np.int64], steps: int) -> npt.NDArray[np.float32]:
    x = np.zeros((steps, 1, 1, 1), np.float32)
    x[times] = 1
    return x


def test_the_measure_adds_up_over_positions() -> None:
    before, after = np.zeros((2, 5, 2), np.float32)
    before[0, 0] = before[3, 1] = 1
    after[2, 0] = after[1, 1] = 1
    assert retiming(before, after) == Retiming(moved=2, shift=2, total=4)
    with pytest.raises(ValueError, match="another number of spikes"):
        retiming(before, np.zeros_like(before))


@pytest.mark.parametrize("name", ["moved", "shift", "total"])
def test_refused_limits(name: str) -> None:
    with pytest.raises(CompileError, match=f"retiming budget's {name} is 0, must be at least 1"):
        RetimeBudget(**{name: 0})


def test_a_clean_error_ends_at_once() -> None:
    victim = Victim(two_layers())
    case = classified(victim, 20, 0)[0]
    wrong = Case(sample=3, x=case.x, label=(case.label + 1) % 3)
    (outcome,) = retime.attack(victim, [wrong], Settings())
    assert (outcome.status, outcome.queries, outcome.gradients) == (Status.CLEAN_ERROR, 1, 0)


def test_without_spikes_nothing_moves() -> None:
    victim = Victim(two_layers())
    empty = np.zeros((4, 6), np.float32)
    scores = victim.scores(torch.from_numpy(empty).unsqueeze(1))
    label = int(scores[0].argmax())
    (outcome,) = retime.attack(victim, [Case(sample=0, x=empty, label=label)], Settings())
    assert outcome.status in (Status.FAILURE, Status.CLEAN_ERROR)
    assert outcome.perturbation.l0 == 0


def test_of_intensities_nothing_moves() -> None:
    with pytest.raises(CompileError, match="takes intensities"):
        list(retime.attack(Victim(two_layers(Encoding.BERNOULLI)), [], Settings()))
