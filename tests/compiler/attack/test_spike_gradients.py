"""Gradients that fit spikes: tables 5.2 and 5.4 whole, sampling and flipping by their probabilities."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from compiler.attack.randomness import Purpose, uniform_draws
from compiler.attack.spike_gradients import (
    constructed,
    flipped,
    normalised,
    sampling_mask,
    spike_gradient,
    transformed,
    vanishes,
)

SHAPE = (3, 4, 5)  # T, N, C


@pytest.mark.parametrize(
    ("spike", "sign", "change"), [(0, 0, 0), (1, 0, 0), (0, 1, 1), (0, -1, 0), (1, 1, 0), (1, -1, -1)]
)
def test_table_5_2(spike: int, sign: int, change: int) -> None:
    spikes, signs = torch.tensor([[float(spike)]]), torch.tensor([[float(sign)]])
    assert transformed(signs, spikes).item() == change
    assert (spikes + transformed(signs, spikes)).item() in (0, 1)


@pytest.mark.parametrize(("spike", "chosen", "change"), [(0, 0, 0), (1, 0, 0), (0, 1, 1), (1, 1, -1)])
def test_table_5_4(spike: int, chosen: int, change: int) -> None:
    got = constructed(torch.tensor([[chosen == 1]]), torch.tensor([[float(spike)]]))
    assert got.item() == change
    assert spike + got.item() in (0, 1)


gradients = st.builds(
    lambda seed, zeros: (
        torch.randn(SHAPE, generator=torch.Generator().manual_seed(seed)) * (torch.arange(SHAPE[1])[:, None] >= zeros)
    ),
    st.integers(0, 2**16),
    st.integers(0, SHAPE[1]),
)
seeds = st.integers(0, 2**32)


def draws(seed: int) -> torch.Tensor:
    return uniform_draws(seed, Purpose.SAMPLE, range(SHAPE[1]), [0] * SHAPE[1], (SHAPE[0], *SHAPE[2:]))


@given(gradients, seeds)
def test_converted_gradients_leave_spikes_binary_and_follow_the_sign(gradient: torch.Tensor, seed: int) -> None:
    uniform = draws(seed)
    spikes = (draws(seed + 1) < 0.5).float()
    change = spike_gradient(gradient, spikes, uniform)
    after = spikes + change
    assert ((after == 0) | (after == 1)).all()
    assert (change * gradient >= 0).all()
    assert not change[:, vanishes(gradient)].any()
    without = spike_gradient(gradient, spikes, None)
    assert (change[change != 0] == without[change != 0]).all()
    assert change.count_nonzero() <= without.count_nonzero()


@given(gradients, seeds)
def test_the_largest_gradient_of_each_sample_passes_and_zeros_do_not(gradient: torch.Tensor, seed: int) -> None:
    mask = sampling_mask(gradient, draws(seed))
    assert not mask[gradient == 0].any()
    for n in range(SHAPE[1]):
        own = gradient[:, n]
        if own.any():
            assert mask[:, n][own.abs() == own.abs().max()].all()
            assert normalised(gradient)[:, n].max() == 1
            torch.testing.assert_close(normalised(gradient)[:, n] * own.abs().max(), own.abs())


def test_sampling_passes_with_the_probability_of_the_magnitude() -> None:
    shares = torch.tensor([1.0, 0.75, 0.5, 0.1, 0.0])
    count = 4000
    gradient = shares.expand(count, 1, 5)
    uniform = uniform_draws(0, Purpose.SAMPLE, [0], [0], (count, 5))
    passed = sampling_mask(gradient, uniform).sum((0, 1))
    for share, got in zip(shares.tolist(), passed.tolist(), strict=True):
        assert stats.binomtest(got, count, share).pvalue > 1e-4


@pytest.mark.parametrize("gamma", [0.01, 0.05, 0.5, 1.0])
def test_the_flipper_turns_the_share_gamma_of_spikes(gamma: float) -> None:
    shape = (50, 1, 400)
    spikes = (uniform_draws(1, Purpose.ENCODE, [0], [0], (50, 400)) < 0.3).float()
    change = flipped(spikes, uniform_draws(0, Purpose.FLIP, [0], [0], (50, 400)), gamma)
    assert set((spikes + change).flatten().tolist()) <= {0.0, 1.0}
    turned = int(change.count_nonzero())
    assert stats.binomtest(turned, shape[0] * shape[2], gamma).pvalue > 1e-4


@given(st.lists(st.integers(0, 2**40), min_size=1, max_size=5, unique=True), seeds, st.integers(0, 30))
def test_draws_depend_on_seed_purpose_sample_and_step_alone(samples: list[int], seed: int, step: int) -> None:
    together = uniform_draws(seed, Purpose.FLIP, samples, [step] * len(samples), (2, 3))
    assert ((together >= 0) & (together < 1)).all()
    for n, sample in enumerate(samples):
        alone = uniform_draws(seed, Purpose.FLIP, [sample], [step], (2, 3))
        assert torch.equal(together[:, n], alone[:, 0])
        for other in (
            uniform_draws(seed + 1, Purpose.FLIP, [sample], [step], (2, 3)),
            uniform_draws(seed, Purpose.SAMPLE, [sample], [step], (2, 3)),
            uniform_draws(seed, Purpose.FLIP, [sample + 1], [step], (2, 3)),
            uniform_draws(seed, Purpose.FLIP, [sample], [step + 1], (2, 3)),
        ):
            assert not torch.equal(alone, other)
