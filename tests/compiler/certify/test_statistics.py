"""Guarantees over draws: bounds in rational numbers, procedures by hand, and certified masks over all their codes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction
from math import comb

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from compiler.certify import statistics
from compiler.certify.chain import Chain
from compiler.certify.input_sets import InputSet
from compiler.certify.statistics import (
    BLOCK,
    MaskCount,
    MaskTrial,
    Proof,
    Surround,
    certified_masks,
    count_masks,
    holm,
    least_share,
    least_shares,
    majority,
    mask_seed,
    masks_of,
    shares_reach,
)
from compiler.ir import CompileError, Graph
from tests.compiler.certify.coded import Floats, coded_network, told
from tests.compiler.certify.networks import Kind, problem

TRIAL = MaskTrial(label=0, eps=0.1, masks=1000, seed=0, sample=0)


def tail(successes: int, trials: int, share: Fraction) -> Fraction:
    """P[so many successes or more], exactly."""
    return sum(
        (comb(trials, k) * share**k * (1 - share) ** (trials - k) for k in range(successes, trials + 1)), Fraction(0)
    )


@given(
    trials=st.integers(1, 60), part=st.floats(0, 1), delta=st.sampled_from([0.05, 0.001, 1e-6]), more=st.just(1 + 1e-6)
)
def test_lower_bounds_in_rational_numbers(trials: int, part: float, delta: float, more: float) -> None:
    successes = round(part * trials)
    bound = least_share(successes, trials, delta)
    if successes == 0:
        assert bound == 0.0
        return
    assert tail(successes, trials, Fraction(bound)) <= Fraction(delta)
    assert tail(successes, trials, Fraction(bound * more)) >= Fraction(delta)  # no larger bound would do


@pytest.mark.parametrize(("trials", "delta"), [(20, 0.1), (50, 0.01)])
def test_bounds_fail_no_more_often_than_said(trials: int, delta: float) -> None:
    bounds = [least_share(k, trials, delta) for k in range(trials + 1)]
    for share in (Fraction(n, 40) for n in range(41)):
        wrong = sum(
            comb(trials, k) * share**k * (1 - share) ** (trials - k) for k in range(trials + 1) if bounds[k] > share
        )
        assert wrong <= Fraction(delta)


def test_bounds_of_a_thousand_masks() -> None:
    counts = {1000: 0.9931, 947: 0.9215, 753: 0.7087, 0: 0.0}
    for certified, want in counts.items():
        assert MaskCount(trial=TRIAL, certified=certified).least_share(0.001) == pytest.approx(want, abs=1e-4)


def test_all_bounds_together_are_each_at_their_part() -> None:
    counts = [MaskCount(trial=TRIAL, certified=certified) for certified in (1000, 900, 5)]
    want = [least_share(count.certified, 1000, 0.01 / 3) for count in counts]
    assert least_shares(counts, 0.01).tolist() == want


def test_holm_by_hand() -> None:
    # 0.01 <= 0.06 / 4, 0.015 <= 0.06 / 3, but 0.035 > 0.06 / 2 ends it, though the last is below 0.06
    assert holm(np.array([0.035, 0.01, 0.04, 0.015]), 0.06).tolist() == [False, True, False, True]
    assert holm(np.array([0.06]), 0.06).tolist() == [True]
    assert holm(np.array([0.04, 0.05]), 0.06).tolist() == [False, False]  # the least needs half of it


@given(p=st.lists(st.floats(0, 1), min_size=1, max_size=8), delta=st.floats(0.001, 0.5))
def test_holm_claims_all_that_bonferroni_does(p: list[float], delta: float) -> None:
    values = np.array(p)
    claimed = holm(values, delta)
    assert claimed[values <= delta / len(values)].all()
    assert not claimed[values > delta].any()


def test_claims_of_shares() -> None:
    counts = [MaskCount(trial=TRIAL, certified=certified) for certified in (990, 935, 929, 700)]
    for count in counts:
        exact = tail(count.certified, 1000, Fraction(9, 10))
        assert exact <= Fraction(count.p_value(0.9)) <= exact * Fraction(1.00001) + Fraction(1, 10**15)
    # p: 1e-30, 5e-5, 8e-4, 1; at 0.003 Holm takes the third (0.0015 with two left), Bonferroni (0.00075) does not
    assert shares_reach(counts, 0.9, 0.003).tolist() == [True, True, True, False]
    assert [bool(count.p_value(0.9) <= 0.003 / 4) for count in counts] == [True, True, False, False]


@pytest.mark.parametrize("votes", [1, 2, 3, 4, 7])
def test_majorities_in_rational_numbers(votes: int) -> None:
    for share in (0.0, 0.3, 0.9, 1.0):
        exact = tail(votes // 2 + 1, votes, Fraction(share))
        assert exact * Fraction(1 - 2e-9) <= Fraction(majority(share, votes)) <= exact


def test_a_majority_of_certified_masks_is_likelier() -> None:
    assert majority(0.9, 1) < majority(0.9, 5) < majority(0.9, 25)
    assert majority(0.4, 25) < majority(0.4, 1)


IMAGE = np.array([0.1, 0.75, 0.5, 0.9], np.float32)


def likeliest(graph: Graph, image: Floats) -> int:
    """The class that most codes get."""
    masks = masks_of(graph, image, 1, 0, range(64))
    return int(told(graph, (masks < image).astype(np.float32)).sum(0).argmax())


def some_network(seed: int) -> tuple[Graph, MaskTrial]:
    graph = coded_network(seed, timesteps=2 + seed % 2)
    label = likeliest(graph, IMAGE)
    return graph, MaskTrial(label=label, eps=0.1, masks=40, seed=mask_seed(graph, 0), sample=5)


@pytest.mark.parametrize("proof", Proof)
@pytest.mark.parametrize("surround", Surround)
def test_every_image_of_a_certified_mask_gets_the_label(surround: Surround, proof: Proof) -> None:
    certified = refuted = 0
    for seed in range(8):
        graph, trial = some_network(seed)
        trial = replace(trial, surround=surround, proof=proof)
        masks = masks_of(graph, IMAGE, trial.seed, trial.sample, range(trial.masks))
        for mask, is_certified in zip(masks, certified_masks(graph, IMAGE, trial), strict=True):
            chain = Chain(image=IMAGE, eps=trial.eps, draws=mask)
            holds = bool(told(graph, np.stack(list(chain.members())))[:, trial.label].all())
            assert holds or not is_certified
            certified, refuted = certified + is_certified, refuted + (not holds)
    assert certified > 50
    assert refuted > 20


def test_linear_forms_are_asked_about_the_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    graph, trial = some_network(1)
    trial = replace(trial, proof=Proof.LINEAR)
    by_intervals = certified_masks(graph, IMAGE, replace(trial, proof=Proof.INTERVAL))
    asked = []

    def margins(sequence: Graph, sets: Sequence[InputSet], labels: Sequence[int]) -> Tensor:
        asked.extend(sets)
        return torch.ones(len(sets), 3)

    assert (certified_masks(graph, IMAGE, trial) >= by_intervals).all()
    monkeypatch.setattr(statistics, "linear_margins", margins)
    assert certified_masks(graph, IMAGE, trial).all()
    assert (~by_intervals).sum() <= len(asked) < (~by_intervals).sum() + BLOCK  # the last block is filled up


def test_a_count_is_recounted_from_its_trial() -> None:
    graph, trial = some_network(1)
    count = count_masks(graph, IMAGE, trial)
    assert count_masks(graph, IMAGE, count.trial) == count
    each = certified_masks(graph, IMAGE, trial)
    assert count.certified == each.sum()
    assert 0 < count.certified < trial.masks
    fewer = certified_masks(graph, IMAGE, replace(trial, masks=BLOCK + 3))
    np.testing.assert_array_equal(fewer, each[: BLOCK + 3])
    assert (certified_masks(graph, IMAGE, replace(trial, seed=trial.seed + 1)) != each).any()
    assert (certified_masks(graph, IMAGE, replace(trial, sample=6)) != each).any()


def test_seeds_follow_from_the_network() -> None:
    graph = coded_network(1, timesteps=2)
    (name, array), *_ = graph.parameters.items()
    other = graph.with_nodes(graph.nodes, parameters={name: np.nextafter(array, np.float32(9))})
    seeds = {mask_seed(graph, 0), mask_seed(graph, 1), mask_seed(other, 0)}
    assert len(seeds) == 3
    assert all(0 <= seed < 2**64 for seed in seeds)


def test_what_is_no_count_is_refused() -> None:
    for successes, trials in ((-1, 2), (3, 2), (0, 0)):
        with pytest.raises(CompileError, match="is no count of successes"):
            least_share(successes, trials, 0.1)
    for delta in (0.0, 1.0, float("nan")):
        with pytest.raises(CompileError, match="must be above 0 and below 1"):
            least_share(1, 2, delta)
    with pytest.raises(CompileError, match="masks is 0"):
        replace(TRIAL, masks=0)
    with pytest.raises(CompileError, match="votes is 0"):
        majority(0.5, 0)
    with pytest.raises(CompileError, match="no Bernoulli code"):
        count_masks(problem(0, Kind(is_image=False)).graph, IMAGE, TRIAL)
