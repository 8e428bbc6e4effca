"""Trial and error finds examples, changes what it says, and counts what it asks."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from compiler.attack import Case, Settings, Status, Victim
from compiler.attack.budget import Budget, Norm
from compiler.attack.trial import CANDIDATES, pixels_attack, spikes_attack
from compiler.attack.windows import positions, tiles, window
from compiler.ir import CompileError, DType, Encoding, Graph
from tests.compiler.attack.black_box import check_outcomes
from tests.compiler.attack.networks import cases, victims
from tests.compiler.attack.test_iterate import classified
from tests.compiler.attack.test_victim import two_layers

FEW = settings(max_examples=10, deadline=None)
epsilons = st.sampled_from([math.inf, 0.02])


@FEW
@given(victims(image_input=False), st.booleans(), st.integers(1, 3), epsilons, st.integers(0, 9))
def test_what_spike_trials_hold_to(graph: Graph, targeted: bool, rounds: int, epsilon: float, seed: int) -> None:
    if graph.types[graph.input.name].dtype is not DType.SPIKE:
        return
    budget = Budget(norm=Norm.L0, bound=2) if seed % 2 else None
    setup = Settings(iterations=rounds, epsilon=epsilon, seed=seed, budget=budget)
    given_cases = cases(graph, 5, seed, targeted=targeted)
    for outcome in check_outcomes(spikes_attack, graph, given_cases, setup).values():
        assert outcome.perturbation.l0 <= outcome.iterations <= rounds
        asked = outcome.queries - 1 - (outcome.status is Status.SUCCESS)
        assert asked <= outcome.iterations * min(CANDIDATES, outcome.case.x.size)


@FEW
@given(victims(image_input=True), st.booleans(), st.integers(1, 3), epsilons, st.integers(0, 9))
def test_what_pixel_trials_hold_to(graph: Graph, targeted: bool, rounds: int, epsilon: float, seed: int) -> None:
    budget = Budget(norm=Norm.LINF, bound=0.25) if seed % 2 else None
    setup = Settings(iterations=rounds, epsilon=epsilon, seed=seed, budget=budget, step=0.3)
    given_cases = cases(graph, 5, seed, targeted=targeted)
    for outcome in check_outcomes(pixels_attack, graph, given_cases, setup).values():
        extents = positions(outcome.case.x.shape)
        blocks = math.prod(-(-size // 2) for size in extents)
        channels = outcome.case.x.size // math.prod(extents)
        assert outcome.perturbation.l0 <= outcome.iterations * channels * 2 ** len(extents)
        asked = outcome.queries - 1 - (outcome.status in (Status.SUCCESS, Status.OUT_OF_BOUND))
        assert asked <= outcome.iterations * 2 * blocks


@pytest.mark.parametrize("targeted", [False, True])
@pytest.mark.parametrize("kind", [None, Encoding.BERNOULLI, Encoding.DIRECT])
def test_examples_are_found(kind: Encoding | None, targeted: bool) -> None:
    victim = Victim(two_layers(kind))
    start = classified(victim, 40, 0)
    if targeted:
        start = [replace(case, target=(case.label + 1) % 3) for case in start]
    attack = spikes_attack if kind is None else pixels_attack
    outcomes = list(attack(victim, start, Settings()))
    found = [outcome for outcome in outcomes if outcome.status is Status.SUCCESS]
    least = 0.2 if kind is Encoding.DIRECT else 0.4 if targeted else 0.7
    assert len(found) >= least * len(outcomes)


def margins(victim: Victim, case: Case, x: np.ndarray) -> torch.Tensor:
    """Label's score over the best other, of inputs (K, T, C)."""
    scores = victim.scores(torch.from_numpy(x).transpose(0, 1).contiguous())
    return scores[:, case.label] - scores.index_fill(1, torch.tensor([case.label]), -torch.inf).amax(1)


def test_the_best_single_flip_is_taken_if_it_lowers_the_margin() -> None:
    """Of a small input every spike is tried."""
    victim = Victim(two_layers())
    kept = []
    for outcome in spikes_attack(victim, classified(victim, 60, 0), Settings(iterations=1)):
        case, size = outcome.case, outcome.case.x.size
        singles = np.repeat(case.x[None], size, 0).reshape(size, -1)
        singles[np.arange(size), np.arange(size)] = 1 - case.x.reshape(-1)
        found = margins(victim, case, singles.reshape(size, *case.x.shape))
        before, after = margins(victim, case, np.stack([case.x, outcome.adversarial]))
        lowers = bool(found.min() < before)
        assert outcome.perturbation.l0 == int(lowers)
        assert after == (found.min() if lowers else before)
        kept.append(lowers)
    assert len(set(kept)) == 2


@given(st.integers(1, 7), st.integers(1, 7), st.integers(1, 4))
def test_tiles_cover_every_position_once(height: int, width: int, side: int) -> None:
    covered = torch.stack(tiles((height, width), side)).sum(0)
    assert torch.equal(covered, torch.ones(height, width, dtype=torch.int64))
    assert len(tiles((height,), side)) == -(-height // side)
    assert int(window((height, width), (0, 0), side).sum()) == min(height, side) * min(width, side)


def test_refusals() -> None:
    with pytest.raises(CompileError, match=r"trial-spikes flips spikes, and the network takes intensities\n  hint: "):
        spikes_attack(Victim(two_layers(Encoding.DIRECT)), [], Settings())
    with pytest.raises(CompileError, match=r"trial-pixels changes intensities, and the network takes spikes\n  hint: "):
        pixels_attack(Victim(two_layers()), [], Settings())
    low = Settings(budget=Budget(norm=Norm.LINF, bound=0.5))
    with pytest.raises(CompileError, match="below one flip"):
        list(spikes_attack(Victim(two_layers()), [], low))
