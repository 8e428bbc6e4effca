"""Polynomials over spikes and values against arithmetic on numbers."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from frontends.torch_import.recurrence.polynomial import CONSTANT, Atom, Kind, Polynomial

SPIKES = [Atom(Kind.SPIKE, index) for index in range(3)]
VALUES = [Atom(Kind.VALUE, index) for index in range(2)]
NAMES = {atom: f"{'s' if atom.kind is Kind.SPIKE else 'x'}{atom.index}" for atom in (*SPIKES, *VALUES)}

numbers = st.integers(-4, 4).map(lambda k: np.asarray(k / 4))


def polynomials(values: list[Atom]) -> st.SearchStrategy[Polynomial]:
    spikes = [frozenset(some) for count in range(3) for some in itertools.combinations(SPIKES, count)]
    monomials = [monomial | extra for monomial in spikes for extra in (CONSTANT, *(frozenset({v}) for v in values))]
    return st.dictionaries(st.sampled_from(monomials), numbers, max_size=5).map(Polynomial)


points = st.fixed_dictionaries(
    {atom: st.integers(0, 1) for atom in SPIKES} | {atom: st.integers(-3, 3) for atom in VALUES}
)


def at(polynomial: Polynomial, point: Mapping[Atom, int]) -> float:
    return sum(float(value) * math.prod(point[atom] for atom in m) for m, value in polynomial.terms.items())


@given(left=polynomials(VALUES), right=polynomials(VALUES), point=points, factor=numbers)
def test_sums(left: Polynomial, right: Polynomial, point: dict[Atom, int], factor: np.ndarray) -> None:
    assert at(left + right, point) == at(left, point) + at(right, point)
    assert at(left - right.scaled(factor), point) == at(left, point) - float(factor) * at(right, point)
    assert not (left - left).terms


@given(left=polynomials(VALUES), right=polynomials([]), point=points)
def test_products(left: Polynomial, right: Polynomial, point: dict[Atom, int]) -> None:
    product = left.times(right)
    assert product is not None
    assert at(product, point) == at(left, point) * at(right, point)


def test_a_square_of_a_value_is_no_polynomial_here_and_one_of_a_spike_is_the_spike() -> None:
    x, s = Polynomial.of(VALUES[0]), Polynomial.of(SPIKES[0])
    assert x.times(x) is None
    square = s.times(s)
    assert square is not None
    assert square.text(NAMES) == "s0"


def test_text() -> None:
    x, s = Polynomial.of(VALUES[0]), Polynomial.of(SPIKES[0])
    both = x.times(s)
    assert both is not None
    half = x.scaled(np.asarray(0.5)) - both + Polynomial.constant(np.array([0.25, 1.0]))
    assert half.text(NAMES) == "-s0*x0 + 0.5*x0 + [0.25 .. 1]"
    assert Polynomial().text(NAMES) == "0"


def test_ratio() -> None:
    x = Polynomial.of(VALUES[0]) + Polynomial.of(VALUES[1]).scaled(np.asarray(2.0))
    assert x.scaled(np.asarray(0.25)).ratio(x) == 0.25
    assert x.ratio(Polynomial.of(VALUES[0])) is None
    assert x.ratio(Polynomial.of(VALUES[0]) + Polynomial.of(VALUES[1])) is None
