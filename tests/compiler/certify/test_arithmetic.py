"""Error bounds against f32 arithmetic done in many ways, with exact fractions as the truth."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from compiler.certify import arithmetic
from compiler.certify.arithmetic import FINEST, UNIT, gamma, grid_of, mean_grid, outward, products, snapped, sums

Floats = npt.NDArray[np.float32]
SEEDS = st.integers(0, 2**20)


def fused_sum(left: Floats, right: Floats) -> float:
    """A chain of fused multiply-adds: each rounds once (f64 holds a product of two f32 exactly)."""
    total = Fraction(0)
    for a, b in zip(left.tolist(), right.tolist(), strict=True):
        total = Fraction(float(np.float32(float(total + Fraction(a) * Fraction(b)))))
    return float(total)


def pairwise_sum(terms: Floats) -> np.float32:
    if len(terms) == 1:
        return np.float32(terms[0])
    half = len(terms) // 2
    return np.float32(pairwise_sum(terms[:half]) + pairwise_sum(terms[half:]))


def sequential_sum(terms: Floats) -> np.float32:
    total = np.float32(0)
    for term in terms:
        total = np.float32(total + term)
    return total


ORDERS: dict[str, Callable[[Floats, Floats], float]] = {
    "sequential": lambda w, x: float(sequential_sum(w * x)),
    "backwards": lambda w, x: float(sequential_sum((w * x)[::-1])),
    "pairwise": lambda w, x: float(pairwise_sum(w * x)),
    "by size": lambda w, x: float(sequential_sum(np.sort(w * x))),
    "fused": fused_sum,
    "library": lambda w, x: float(torch.from_numpy(w) @ torch.from_numpy(x)),
}


@settings(max_examples=100)
@given(seed=SEEDS, terms=st.integers(1, 60), is_spikes=st.booleans(), is_grid=st.booleans())
def test_sums_in_any_order_are_within_the_error(seed: int, terms: int, is_spikes: bool, is_grid: bool) -> None:
    rng = np.random.default_rng(seed)
    weight = rng.normal(0, 10.0 ** rng.integers(-3, 4), terms).astype(np.float32)
    x = rng.random(terms).astype(np.float32)
    if is_spikes:
        x = np.round(x)
    if is_grid:
        weight = (np.round(weight * 8) / 8).astype(np.float32)
    exact = sum((Fraction(float(a)) * Fraction(float(b)) for a, b in zip(weight, x, strict=True)), Fraction(0))
    size = torch.tensor(float(np.abs(weight.astype(np.float64)) @ x.astype(np.float64)), dtype=torch.float64)
    grid = products(grid_of(weight), grid_of(x))
    off = Fraction(arithmetic.layer_error(terms, size, grid).item())
    for how, total in ORDERS.items():
        assert abs(Fraction(total(weight, x)) - exact) <= off, how
    if is_spikes and is_grid:
        assert off == 0  # at most 60 terms below 2^18 units


def test_an_error_is_met() -> None:
    """Without it a bound is wrong: 1 + 2^-24 is 1 in f32, whichever way it is summed."""
    terms = np.array([1.0, 2.0**-24], np.float32)
    assert sequential_sum(terms) == 1.0
    off = arithmetic.layer_error(2, torch.tensor(1 + 2.0**-24, dtype=torch.float64), None).item()
    assert 2.0**-24 <= off <= 6 * 2.0**-24
    # On the grid of 2^-24, 1 + 2^-24 is one unit too much.
    grid_off = arithmetic.layer_error(2, torch.tensor(1 + 2.0**-24, dtype=torch.float64), 24).item()
    assert grid_off == off
    assert arithmetic.layer_error(2, torch.tensor(1.0, dtype=torch.float64), 24).item() == 0.0


@pytest.mark.parametrize("batch", [1, 20])
@pytest.mark.parametrize(("channels", "groups"), [(3, 1), (32, 1), (32, 32)])
def test_convolutions_sum_directly(batch: int, channels: int, groups: int) -> None:
    """Weights on a grid and spikes: every partial sum is exact, which it is not behind a Winograd transform."""
    generator = torch.Generator().manual_seed(batch)
    x = (torch.rand(batch, channels, 12, 12, generator=generator) < 0.5).float()
    weight = torch.randint(-127, 128, (32, channels // groups, 3, 3), generator=generator) / 128
    got = torch.nn.functional.conv2d(x, weight, padding=1, groups=groups)
    want = torch.nn.functional.conv2d(x.double(), weight.double(), padding=1, groups=groups)
    assert torch.equal(got.double(), want)


@settings(max_examples=100)
@given(seed=SEEDS)
def test_batch_norms_done_either_way_are_within_the_error(seed: int) -> None:
    rng = np.random.default_rng(seed)
    f32 = np.float32
    x, mean, weight, bias = (f32(v) for v in rng.normal(0, 10.0 ** rng.integers(-2, 3, 4)))
    var, eps = f32(rng.uniform(0, 2) ** 4), 1e-5
    one = f32(1) / np.sqrt(var + f32(eps))
    gain = one * weight
    folded = x * gain + (bias - mean * gain)
    stepwise = ((x - mean) * one) * weight + bias
    values, *own = (torch.tensor([v]) for v in (x, mean, var, weight, bias))
    library = torch.nn.functional.batch_norm(values[None], own[0], own[1], own[2], own[3], eps=eps).item()
    exact_gain = float(weight) / np.sqrt(float(var) + eps)
    exact = exact_gain * (float(x) - float(mean)) + float(bias)
    size = abs(exact_gain) * (abs(float(x)) + abs(float(mean))) + abs(float(bias))
    off = arithmetic.norm_error(torch.tensor(size, dtype=torch.float64), None).item()
    for value in (folded, stepwise, library):
        assert abs(float(value) - exact) <= off


@settings(max_examples=100)
@given(seed=SEEDS, terms=st.integers(1, 40))
def test_means_are_within_the_error(seed: int, terms: int) -> None:
    values = np.random.default_rng(seed).normal(0, 3, terms).astype(np.float32)
    exact = sum((Fraction(float(v)) for v in values), Fraction(0)) / terms
    size = torch.tensor(np.abs(values.astype(np.float64)).mean(), dtype=torch.float64)
    off = Fraction(arithmetic.mean_error(terms, size, None).item())
    total, count = sequential_sum(values), np.float32(terms)
    for mean in (total / count, total * (np.float32(1) / count), torch.from_numpy(values).mean()):
        assert abs(Fraction(float(mean)) - exact) <= off


@settings(max_examples=100)
@given(seed=SEEDS, is_late=st.booleans())
def test_membranes_are_within_the_error(seed: int, is_late: bool) -> None:
    rng = np.random.default_rng(seed)
    decay, v, scale, x, leak, threshold = (np.float32(value) for value in rng.normal(0, 10.0 ** rng.integers(-2, 3, 6)))
    m = decay * v + scale * x + leak
    m = m - threshold if is_late else m
    terms = [Fraction(float(decay)) * Fraction(float(v)), Fraction(float(scale)) * Fraction(float(x))]
    terms += [Fraction(float(leak)), Fraction(-float(threshold)) * is_late]
    size = torch.tensor(float(sum(abs(term) for term in terms)), dtype=torch.float64)
    off = Fraction(arithmetic.membrane_error(size, None).item())
    assert abs(Fraction(float(m)) - sum(terms, Fraction(0))) <= off


def test_sizes_that_may_overflow_have_no_error_bound() -> None:
    sizes = torch.tensor([2.0**126, 2.0**128], dtype=torch.float64)
    assert arithmetic.sum_error(sizes, 0).isinf().tolist() == [False, True]


def test_gamma_is_what_products_of_roundings_reach() -> None:
    for k in (1, 10, 1000):
        largest = (1 + Fraction(UNIT)) ** k - 1
        smallest = 1 - (1 - Fraction(UNIT)) ** k
        assert max(largest, smallest) <= Fraction(gamma(k))


@settings(max_examples=200)
@given(values=st.lists(st.floats(-(2.0**30), 2.0**30, width=32), min_size=1, max_size=5))
def test_a_grid_is_the_least(values: list[float]) -> None:
    grid = grid_of(np.array(values))
    if grid is None:
        assert any((Fraction(v) * 2**FINEST).denominator > 1 for v in values)
        return
    assert all((Fraction(v) * 2**grid).denominator == 1 for v in values)
    assert grid == 0 or any((Fraction(v) * 2 ** (grid - 1)).denominator > 1 for v in values)


def test_grids_of_sums_products_and_means() -> None:
    assert (grid_of([]), grid_of([0.0, 3.0]), grid_of([0.25, 2.0]), grid_of([1e-38])) == (0, 0, 2, None)
    assert (sums([2, 3]), sums([2, None]), sums([])) == (3, None, 0)
    assert (products(2, 3), products(2, None), products(FINEST, 1)) == (5, None, None)
    assert (mean_grid(3, 4), mean_grid(3, 3), mean_grid(None, 4), mean_grid(3, 1)) == (5, None, None, 3)


def test_bounds_snap_inwards_to_multiples() -> None:
    lower, upper = (torch.tensor([v], dtype=torch.float64) for v in (0.26, 0.99))
    assert [side.item() for side in snapped(lower, upper, 2)] == [0.5, 0.75]
    assert [side.item() for side in outward(lower, upper, torch.tensor(0.02), 2)] == [0.25, 1.0]
    assert [side.item() for side in snapped(lower, upper, None)] == [0.26, 0.99]


def test_too_many_operations_are_refused() -> None:
    with pytest.raises(AssertionError, match="no digit"):
        gamma(2**24)
