"""How many flips a decision stands: bounds, exact number and attack against all inputs of tiny networks."""

from __future__ import annotations

import numpy as np
import pytest

from compiler.certify.flip_range import flip_range
from compiler.certify.input_sets import Box
from compiler.certify.integer_network import lower
from compiler.certify.integers import is_alone_highest, scores
from compiler.ir import Reset
from tests.compiler.certify.oracle import batch_of
from tests.compiler.certify.test_exact import layer


@pytest.mark.parametrize("seed", range(12))
def test_the_least_flips_of_all_inputs_lie_between_bounds_and_attack(seed: int) -> None:
    rng = np.random.default_rng([seed, 7])
    graph = layer(rng.integers(-4, 8, (3, 4)) / 4, timesteps=3, reset=list(Reset)[seed % 3])
    clean = (rng.random((3, 4)) < 0.5).astype(np.float32)
    network = lower(graph)
    label = int(scores(network, clean[:, None]).argmax())
    listed = batch_of(graph, Box(clean=clean, free=np.ones((3, 4), bool))).numpy()
    wrong = ~is_alone_highest(scores(network, listed), label)
    least = (listed != clean[:, None]).sum((0, 2))[wrong].min()
    got = flip_range(graph, clean, label, sample=seed)
    assert (got.least.flips, got.least.lower) == (least, least)
    if least == 0:
        assert got.certified is None
        assert got.attack is None
        return
    assert got.certified is not None
    assert got.certified < least
    assert got.attack is None or got.attack >= least


def test_a_tie_in_integers_is_a_clean_error_whatever_f32_says() -> None:
    """Halves that decay without end round to a spike more in f32 than the integers have."""
    graph = layer([[0.5, 0.0], [0.0, 2.0]], timesteps=30)
    got = flip_range(graph, np.ones((30, 2), np.float32), 0)
    assert (got.certified, got.least.flips, got.attack) == (None, 0, None)


def test_bounds_prove_flips_harmless() -> None:
    """Class 0 needs two of its three spikes, so that one flip is harmless, and two make a tie."""
    graph = layer(np.repeat(np.eye(2), 3, 1), threshold=2.0)
    got = flip_range(graph, np.array([[1, 1, 1, 0, 0, 0]], np.float32), 0)
    assert (got.certified, got.least.lower, got.least.flips) == (1, 2, 2)
