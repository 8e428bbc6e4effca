"""Numbers as people read them."""

from __future__ import annotations

import pytest

from spikec.explore.quantities import digits, prefix_of


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (7.17e-11, "71.7 pJ s"),
        (9.02e-12, "9.02 pJ s"),
        (1e-9, "1.00 nJ s"),
        (2.1e-5, "21.0 uJ s"),
        (0.0063, "6.30 mJ s"),
        (12.34, "12.3 J s"),
        (1234.5, "1,234 J s"),
        (5e-17, "0.0500 fJ s"),
    ],
)
def test_a_value_has_three_digits_behind_the_fitting_prefix(value: float, text: str) -> None:
    prefix = prefix_of([value])
    assert f"{prefix.shown(value)} {prefix.symbol}J s" == text


def test_a_column_shares_the_prefix_of_its_least_value() -> None:
    prefix = prefix_of([0.015, 8.5e-6, 2.0])
    assert [prefix.symbol, prefix.shown(0.015), prefix.shown(8.5e-6)] == ["u", "15,000", "8.50"]


@pytest.mark.parametrize(("value", "text"), [(9050.4, "9,050"), (99.96, "100"), (9.999, "10.0"), (0.0, "0.00")])
def test_rounding_adds_no_digit(value: float, text: str) -> None:
    assert digits(value) == text
