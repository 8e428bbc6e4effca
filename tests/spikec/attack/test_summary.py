"""Rates, intervals and means, by hand and by closed forms."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import beta

from compiler.attack.methods import Method
from compiler.attack.perturbation import perturbation
from compiler.attack.settings import Status
from spikec.attack.records import Record
from spikec.attack.summary import Summary, mean_of_bounded


def record(number: int, status: Status, fooled: int = 0, change: float = 0.0, sample: int | None = None) -> Record:
    x = np.zeros(4, np.float32)
    return Record(
        number=number,
        sample=number if sample is None else sample,
        label=0,
        target=None,
        status=status,
        perturbation=perturbation(x, x + np.float32(change)),
        iterations=number,
        vanished=1,
        queries=10 + number,
        gradients=number,
        draw=0,
        vanished_at_start=number == 1,
        fresh_successes=fooled,
        fresh_draws=10,
        example=None,
    )


RECORDS = (
    record(0, Status.SUCCESS, fooled=10, change=0.5),
    record(1, Status.SUCCESS, fooled=5, change=0.25),
    record(2, Status.FAILURE),
    record(3, Status.CLEAN_ERROR),
    record(4, Status.OUT_OF_BOUND, sample=0),
    record(5, Status.SUCCESS, fooled=6, change=0.75),
)


def test_by_hand() -> None:
    """5 are attacked, 3 succeed, 2 of them under more than half of the draws; 21 of 50 draws are fooled."""
    found = Summary(records=RECORDS, method=Method.BIM).as_json()
    assert found["statuses"] == {"success": 3, "clean_error": 1, "failure": 1, "out_of_bound": 1, "vanished": 0}
    assert (found["samples"], found["cases"], found["clean_errors"], found["attacked"]) == (5, 6, 1, 5)
    assert (found["success_rate"], found["success_rate_majority"]) == (0.6, 0.4)
    assert found["success_rate_fresh"] == pytest.approx(0.42)
    assert (found["mean_l0"], found["mean_l1"], found["mean_linf"], found["mean_rms"]) == (4.0, 2.0, 0.5, 0.5)
    assert found["mean_metric_dissertation"] == pytest.approx((0.5**2 + 0.25**2 + 0.75**2) / 3)
    assert (found["queries"], found["gradients"], found["iterations"]) == (75, 15, 15)
    assert (found["vanished_iterations"], found["vanished_at_start"]) == (6, 1)
    assert Summary(records=RECORDS, method=Method.RANDOM).as_json()["vanished_at_start"] is None


def test_intervals_of_shares_are_those_of_the_beta_distribution() -> None:
    """Clopper and Pearson by their closed form, of 3 and of 2 in 5."""
    found = Summary(records=RECORDS, method=Method.BIM).as_json()
    for name, count in (("success_rate", 3), ("success_rate_majority", 2)):
        assert found[f"{name}_low"] == pytest.approx(beta.ppf(0.025, count, 6 - count))
        assert found[f"{name}_high"] == pytest.approx(beta.ppf(0.975, count + 1, 5 - count))


@pytest.mark.parametrize("records", [(), (record(0, Status.CLEAN_ERROR),)], ids=["nothing", "clean errors alone"])
def test_nothing_attacked(records: tuple[Record, ...]) -> None:
    found = Summary(records=records, method=Method.BIM).as_json()
    for name in ("success_rate", "success_rate_fresh_low", "success_rate_majority_high", "mean_l0"):
        assert found[name] is None


@pytest.mark.parametrize("count", [1, 7, 100])
def test_all_or_none_by_closed_form(count: int) -> None:
    """KL(0 || p) = -ln(1 - p), so p = 1 - (alpha / 2)^(1/n)."""
    none, every = mean_of_bounded([0.0] * count, 0.95), mean_of_bounded([1.0] * count, 0.95)
    assert (none.low, every.high) == (0.0, 1.0)
    assert none.high == pytest.approx(1 - 0.025 ** (1 / count))
    assert every.low == pytest.approx(0.025 ** (1 / count))


@given(st.lists(st.floats(0, 1), min_size=1, max_size=60))
def test_both_ends_lie_at_the_limit(values: list[float]) -> None:
    found = mean_of_bounded(values, 0.95)
    assert 0 <= found.low <= found.value <= found.high <= 1
    for p in (found.low, found.high):
        if 1e-6 < p < 1 - 1e-6 and 0 < found.value < 1:  # nearer to an end, f64 has no such p
            q = found.value
            divergence = q * math.log(q / p) + (1 - q) * math.log((1 - q) / (1 - p))
            assert len(values) * divergence == pytest.approx(math.log(40), rel=1e-6)


def test_the_interval_holds_the_expectation() -> None:
    """Of 1,000 draws of 12 clustered shares at most 5 % miss; the bound is wide, so that it is far fewer."""
    rng = np.random.default_rng(0)
    missed = 0
    for _ in range(1000):
        shares = rng.beta(0.3, 0.7, 12)
        found = mean_of_bounded(shares.tolist(), 0.95)
        missed += not found.low <= 0.3 <= found.high
    assert missed <= 50
