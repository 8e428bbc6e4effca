"""The boundary attack keeps to its queries, comes closer with more of them, and starts where it is told."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from compiler.attack import Case, Outcome, Settings, Status, Victim
from compiler.attack.ann import AnnTwin
from compiler.attack.boundary import ImageMoves, SpikeMoves, attack
from compiler.attack.budget import Budget, Norm
from compiler.ir import DType, Encoding, Graph
from tests.compiler.attack.black_box import check_outcomes
from tests.compiler.attack.networks import cases, victims
from tests.compiler.attack.test_iterate import classified
from tests.compiler.attack.test_victim import two_layers

FEW = settings(max_examples=10, deadline=None)
KINDS = [None, Encoding.BERNOULLI, Encoding.DIRECT]


@FEW
@given(victims(), st.booleans(), st.sampled_from([1.0, 0.02]), st.integers(0, 9))
def test_what_every_outcome_holds_to(graph: Graph, targeted: bool, epsilon: float, seed: int) -> None:
    is_spikes = graph.types[graph.input.name].dtype is DType.SPIKE
    budget = Budget(norm=Norm.L0 if is_spikes else Norm.L2, bound=2.0) if seed % 2 else None
    setup = Settings(iterations=2, epsilon=epsilon, seed=seed, budget=budget)
    given_cases = cases(graph, 5, seed, targeted=targeted)
    starts = cases(graph, 9, seed + 100)

    def started(victim: Victim, some: Iterable[Case], setup: Settings) -> Iterator[Outcome]:
        return attack(victim, some, setup, starts=starts)

    for outcome in check_outcomes(started, graph, given_cases, setup).values():
        assert outcome.queries <= 2 * 64 + 1


@pytest.mark.parametrize("queries", [1, 2, 20, 50])
@pytest.mark.parametrize("kind", KINDS)
def test_no_query_beyond_the_limit(kind: Encoding | None, queries: int) -> None:
    victim = Victim(two_layers(kind))
    for outcome in attack(victim, classified(victim, 10, 0), Settings(), queries=queries):
        assert outcome.queries - (outcome.status is Status.SUCCESS) <= queries


@pytest.mark.parametrize("kind", KINDS)
def test_more_queries_come_closer(kind: Encoding | None) -> None:
    victim = Victim(two_layers(kind))
    start = classified(victim, 24, 0)
    runs = []
    for queries in (60, 600):
        outcomes = attack(victim, start, Settings(), queries=queries)
        runs.append({o.case.sample: o.perturbation.l2 for o in outcomes if o.status is Status.SUCCESS})
    both = runs[0].keys() & runs[1].keys()
    assert len(both) >= 0.5 * len(start)
    assert np.mean([runs[1][n] for n in both]) < 0.8 * np.mean([runs[0][n] for n in both])
    if kind is not Encoding.BERNOULLI:
        assert all(runs[1][n] <= runs[0][n] * (1 + 1e-6) for n in both)


def test_a_targeted_case_starts_at_samples_of_its_target() -> None:
    """Where random inputs do not reach the target, its samples do."""
    victim = Victim(two_layers(Encoding.DIRECT))
    known = classified(victim, 300, 0)
    common = int(np.bincount([case.label for case in known]).argmax())
    rare = next(case.label for case in known if case.label != common)
    start = [replace(case, target=rare) for case in known if case.label == common][:10]
    others = [case for case in known if case.label == rare]
    outcomes = list(attack(victim, start, Settings(), queries=200, starts=others))
    assert len(outcomes) >= 5
    assert all(outcome.status is Status.SUCCESS for outcome in outcomes)
    for outcome in outcomes:
        nearest = min(float(np.linalg.norm(other.x - outcome.case.x)) for other in others[:16])
        assert outcome.perturbation.l2 <= nearest + 1e-5


def test_without_a_start_a_sample_stays_as_it_is() -> None:
    victim = Victim(two_layers())
    start = [replace(case, target=(case.label + 1) % 3) for case in classified(victim, 20, 0)]
    outcomes = list(attack(victim, start, Settings(), queries=2))
    assert all(outcome.perturbation.l0 == 0 for outcome in outcomes if outcome.status is Status.FAILURE)
    assert any(outcome.status is Status.FAILURE for outcome in outcomes)


def test_an_ann_counterpart_is_walked_towards_as_well() -> None:
    twin = AnnTwin(two_layers(Encoding.DIRECT))
    start = cases(twin.graph, 12, 0)
    labels = twin.scores(torch.stack([torch.from_numpy(case.x) for case in start])).argmax(1).tolist()
    start = [replace(case, label=label) for case, label in zip(start, labels, strict=True)]
    outcomes = list(attack(twin, start, Settings(), queries=300))
    assert sum(outcome.status is Status.SUCCESS for outcome in outcomes) >= 5


unit = st.floats(0.01, 0.9)


@given(st.integers(0, 2**16), unit)
def test_image_moves(seed: int, size: float) -> None:
    rng = np.random.default_rng(seed)
    clean, now = (torch.from_numpy(rng.random((2, 3, 3), np.float32)) for _ in range(2))
    moves = ImageMoves(clean)
    distance = float((now - clean).double().norm())
    assert moves.distance(now) == pytest.approx(distance)
    aside = moves.aside(now, size, rng)
    assert 0.0 < moves.distance(aside) <= distance * (1 + 1e-6)
    assert not torch.equal(aside, now)
    assert moves.distance(moves.ahead(now, size, rng)) == pytest.approx(distance * (1 - size), rel=1e-4, abs=1e-5)
    path = moves.path(now, rng)
    assert torch.equal(path(0.0), clean)
    torch.testing.assert_close(path(1.0), now)
    for x in (aside, *moves.noise(rng)):
        assert bool(((x >= 0) & (x <= 1)).all())
    assert moves.aside(clean, size, rng) is clean


@given(st.integers(0, 2**16), unit)
def test_spike_moves(seed: int, size: float) -> None:
    rng = np.random.default_rng(seed)
    clean, now = (torch.from_numpy((rng.random((3, 2, 4)) < 0.4).astype(np.float32)) for _ in range(2))
    moves = SpikeMoves(clean)
    flips = int((now != clean).sum())
    assert moves.distance(now) == flips
    if not 0 < flips < 24:
        return
    aside = moves.aside(now, size, rng)
    assert moves.distance(aside) == flips
    assert not torch.equal(aside, now)
    ahead = moves.ahead(now, size, rng)
    assert moves.distance(ahead) == flips - max(1, round(size * flips))
    assert not ((ahead != clean) & (now == clean)).any()
    path = moves.path(now, rng)
    assert torch.equal(path(1.0), now)
    assert moves.distance(path(size)) == max(1, round(size * flips))
    assert sorted(moves.distance(x) for x in moves.noise(rng)) == [-(-24 * (n + 1) // 16) for n in range(16)]
