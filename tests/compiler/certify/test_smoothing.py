"""Smoothing certificates against exact probabilities: every rule of few bits, and tiny networks over all codes."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import numpy as np
import pytest
from scipy.stats import binom

from compiler.certify.smoothing import (
    SmoothedCount,
    SmoothedTrial,
    count_codes,
    l1_radius,
    least_probability,
    linf_radius,
)
from compiler.certify.statistics import masks_of
from compiler.ir import CompileError
from tests.compiler.certify.coded import Bools, Doubles, Floats, coded_network, codes_of, probability, told
from tests.compiler.certify.networks import Kind, problem

MIXED = (5, 8, 14, 24, 26, 36)  # networks of two steps whose codes are not all told alike
EXACT = 1e-12  # of sums of at most 2^16 products


def check(codes: Floats, rule: Bools, near: Doubles, far: Doubles) -> None:
    """The bound of one rule for one move."""
    before, after = (probability(codes, rule, image) for image in (near, far))
    distance = float(np.abs(near - far).sum())
    assert after >= least_probability(before, distance, timesteps=codes.shape[1]) - EXACT, (before, after, distance)


@pytest.mark.parametrize(("timesteps", "pixels"), [(1, 1), (2, 1), (1, 2), (3, 1), (1, 3)])
def test_no_rule_of_few_bits_falls_faster(timesteps: int, pixels: int) -> None:
    codes = codes_of(timesteps, pixels)
    rng = np.random.default_rng(timesteps)
    moves = [rng.random((2, pixels)) for _ in range(12)]
    moves += [np.clip(move[0] + [np.zeros(pixels), rng.normal(0, 0.1, pixels)], 0, 1) for move in moves]
    for values in product((False, True), repeat=len(codes)):
        for near, far in moves:
            check(codes, np.array(values), near, far)


def test_random_rules_of_more_bits() -> None:
    rng = np.random.default_rng(0)
    for timesteps, pixels in [(2, 2), (4, 1), (2, 3), (3, 2)]:
        codes = codes_of(timesteps, pixels)
        counts = codes.sum((1, 2))
        for _ in range(300):
            rule = rng.random(len(codes)) < rng.random()
            rule = rule if rng.random() < 0.5 else counts <= rng.integers(timesteps * pixels)  # those fall fastest
            near = rng.random(pixels) ** 2
            check(codes, rule, near, np.clip(near + rng.normal(0, 0.1, pixels), 0, 1))


def test_the_bound_is_attained() -> None:
    for timesteps in range(1, 7):
        codes = codes_of(timesteps, 1)
        silent = codes.sum((1, 2)) == 0
        for near, move in ((0.01, 0.02), (0.0, 0.05), (0.05, 0.01)):
            before, after = (probability(codes, silent, np.array([v])) for v in (near, near + move))
            assert after >= 0.5
            assert least_probability(before, move, timesteps=timesteps) == pytest.approx(after, rel=1e-12)


def test_slopes_of_counting_rules() -> None:
    """The lemma behind the bound, for more steps than rules can be listed: q^(1/T) changes at most as fast as u."""
    u = np.linspace(0.0005, 0.9995, 500)
    for steps in (1, 2, 3, 4, 5, 8, 10, 15, 32, 64):
        for count in range(steps + 1):
            for part in np.linspace(0, 1, 9):
                q = binom.cdf(count - 1, steps, u) + part * binom.pmf(count, steps, u)
                here, below = binom.pmf(count, steps - 1, u), binom.pmf(count - 1, steps - 1, u)
                slope = steps * (part * here + (1 - part) * below)
                is_high = q >= 0.5
                assert (slope[is_high] <= steps * q[is_high] ** ((steps - 1) / steps) * (1 + 1e-9)).all()


@pytest.mark.parametrize(("seed", "timesteps"), [*((seed, 2) for seed in MIXED), (0, 1), (4, 1), (2, 3), (5, 3)])
def test_networks_over_all_codes(seed: int, timesteps: int) -> None:
    graph = coded_network(seed, timesteps=timesteps)
    codes = codes_of(timesteps, 4)
    rules = told(graph, codes)
    rng = np.random.default_rng(seed)
    for label in range(rules.shape[1]):
        for _ in range(20):
            near = rng.random(4)
            check(codes, rules[:, label], near, np.clip(near + rng.normal(0, 0.1, 4), 0, 1))
            share = probability(codes, rules[:, label], near)
            l1, linf = (radius(share, timesteps=timesteps, pixels=4) for radius in (l1_radius, linf_radius))
            for signs in product((-1, 1), repeat=4):
                towards = np.where(np.array(signs) > 0, 1 - near, near)  # how far each pixel can go
                for step in (np.minimum(l1 * rng.dirichlet(np.ones(4)), towards), np.minimum(linf, towards)):
                    if l1 > 0:
                        assert probability(codes, rules[:, label], near + step * signs) > 0.5


def test_counts_are_of_the_networks_own_codes() -> None:
    image, codes = np.array([0.2, 0.8, 0.5, 0.9], np.float32), codes_of(2, 4)
    for seed in MIXED:
        graph = coded_network(seed, timesteps=2)
        rules = told(graph, codes)
        shares = [probability(codes, rules[:, k], image.astype(float)) for k in range(rules.shape[1])]
        label = int(np.argmax(shares))
        trial = SmoothedTrial(label=label, draws=300, seed=7, sample=2)
        count = count_codes(graph, image, trial)
        drawn = (masks_of(graph, image, 7, 2, range(300)) < image).astype(np.float32)
        assert count.hits == told(graph, drawn)[:, label].sum()
        assert abs(count.hits / 300 - shares[label]) < 4 * (0.25 / 300) ** 0.5
        fewer = count_codes(graph, image, replace(trial, draws=37))
        assert fewer.hits == told(graph, drawn[:37])[:, label].sum()
        assert (fewer.pixels, fewer.timesteps) == (4, 2)
        assert 0.2 < shares[label] < 0.8


def test_radii_by_hand() -> None:
    # sqrt(0.81) - sqrt(0.5), less 4 grains of a draw
    assert l1_radius(0.81, timesteps=2, pixels=4) == pytest.approx(0.9 - 0.5**0.5 - 4 * 2**-24, abs=1e-11)
    assert linf_radius(0.81, timesteps=2, pixels=4) == l1_radius(0.81, timesteps=2, pixels=4) / 4
    # (1 - eps)^8 = 0.501 where all of 4 pixels move in both steps
    eps = linf_radius(0.999, timesteps=2, pixels=4)
    assert (1 - eps) ** 8 == pytest.approx(0.501, abs=1e-6)
    assert l1_radius(0.5, timesteps=2, pixels=4) == linf_radius(0.5, timesteps=2, pixels=4) == 0.0
    trial = SmoothedTrial(label=0, draws=1000, seed=0, sample=0)
    all_hits = SmoothedCount(trial=trial, hits=1000, pixels=1, timesteps=1)
    assert all_hits.l1_radius(0.001) == pytest.approx(0.001 ** (1 / 1000) - 0.5, abs=1e-6)  # p^1000 = delta
    assert 0 < all_hits.linf_radius(0.001) <= all_hits.l1_radius(0.001) + 1e-12
    half = SmoothedCount(trial=trial, hits=520, pixels=1, timesteps=1)
    assert half.l1_radius(0.001) == 0.0


def test_what_has_no_code_or_label_is_refused() -> None:
    graph = coded_network(3, timesteps=2)
    image = np.full(4, 0.5, np.float32)
    with pytest.raises(CompileError, match="label 3 of 3 classes"):
        count_codes(graph, image, SmoothedTrial(label=3, draws=1, seed=0, sample=0))
    with pytest.raises(CompileError, match="0 draws"):
        count_codes(graph, image, SmoothedTrial(label=0, draws=0, seed=0, sample=0))
    spikes = problem(0, Kind(is_image=False)).graph
    with pytest.raises(CompileError, match="no Bernoulli code"):
        count_codes(spikes, image, SmoothedTrial(label=0, draws=1, seed=0, sample=0))
    with pytest.raises(CompileError, match=r"the network takes \(4,\) in \[0, 1\]"):
        count_codes(graph, image[:3], SmoothedTrial(label=0, draws=1, seed=0, sample=0))
