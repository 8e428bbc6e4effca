"""Polynomials over the values, membrane potentials and spikes of a traced loop."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from types import MappingProxyType

import numpy as np
import numpy.typing as npt

Coefficient = npt.NDArray[np.float64]  # broadcasts against the traced tensor; one number is 0-d

MAX_TERMS = 2048  # a loop of hundreds of steps has one term a step; products of spikes double with each


class Kind(IntEnum):
    """What an atom stands for; terms are printed in this order."""

    MEMBRANE = 0
    SPIKE = 1
    VALUE = 2


@dataclass(frozen=True, slots=True, order=True)
class Atom:
    """One unknown: a membrane potential or a spike by its number, or a value of another layer."""

    kind: Kind
    index: int


Monomial = frozenset[Atom]
CONSTANT: Monomial = frozenset()


def coefficient(value: float | npt.NDArray[np.generic]) -> Coefficient:
    """A coefficient; an array of one value everywhere becomes that number."""
    array = np.asarray(value, dtype=np.float64)
    if array.ndim and array.size and bool((array == array.flat[0]).all()):
        return np.asarray(array.flat[0], dtype=np.float64)
    return array


def same(left: Coefficient, right: Coefficient) -> bool:
    """Equal up to a few roundings of f32, in which the network itself computes."""
    return bool(np.allclose(left, right, rtol=1e-6, atol=1e-9))


def is_zero(value: Coefficient) -> bool:
    """Zero everywhere, up to a few roundings."""
    return same(value, np.zeros(()))


@dataclass(frozen=True, slots=True, eq=False)
class Polynomial:
    """A sum of coefficient * product of atoms; a spike times itself is the spike."""

    terms: Mapping[Monomial, Coefficient] = field(default_factory=lambda: MappingProxyType({}))

    @staticmethod
    def of(atom: Atom) -> Polynomial:
        """One atom."""
        return Polynomial({frozenset({atom}): np.ones(())})

    @staticmethod
    def constant(value: float | npt.NDArray[np.generic]) -> Polynomial:
        """A number, or one per channel."""
        return Polynomial({CONSTANT: coefficient(value)})

    def __getitem__(self, monomial: Iterable[Atom]) -> Coefficient:
        return self.terms.get(frozenset(monomial), np.zeros(()))

    def __add__(self, other: Polynomial) -> Polynomial:
        terms = dict(self.terms)
        for monomial, value in other.terms.items():
            terms[monomial] = _total(terms[monomial], value) if monomial in terms else value
        return _kept(terms)

    def __sub__(self, other: Polynomial) -> Polynomial:
        return self + other.scaled(np.asarray(-1.0))

    def scaled(self, factor: Coefficient) -> Polynomial:
        """factor * self."""
        return _kept({monomial: coefficient(value * factor) for monomial, value in self.terms.items()})

    def times(self, other: Polynomial) -> Polynomial | None:
        """The product; None where it has a square of a value that is no spike, or too many terms."""
        terms: dict[Monomial, Coefficient] = {}
        for left, a in self.terms.items():
            for right, b in other.terms.items():
                if any(atom.kind is not Kind.SPIKE for atom in left & right):
                    return None
                monomial = left | right
                terms[monomial] = _total(terms.get(monomial, np.zeros(())), a * b)
        return _kept(terms) if len(terms) <= MAX_TERMS else None

    def atoms(self, kind: Kind) -> frozenset[Atom]:
        """All atoms of one kind."""
        return frozenset(atom for monomial in self.terms for atom in monomial if atom.kind is kind)

    @property
    def number(self) -> Coefficient | None:
        """The value of a polynomial without atoms."""
        return self[CONSTANT] if all(not monomial for monomial in self.terms) else None

    def only(self, keep: Iterable[Monomial]) -> Polynomial:
        """The terms of some monomials."""
        kept = frozenset(keep)
        return Polynomial({monomial: value for monomial, value in self.terms.items() if monomial in kept})

    def ratio(self, other: Polynomial) -> Coefficient | None:
        """The number r with self = r * other, if there is one and no coefficient of `other` is zero."""
        if not self.terms or self.terms.keys() != other.terms.keys():
            return None
        if any(bool((value == 0).any()) for value in other.terms.values()):
            return None
        ratios = [coefficient(value / other.terms[monomial]) for monomial, value in self.terms.items()]
        return ratios[0] if all(same(ratio, ratios[0]) for ratio in ratios) else None

    def text(self, names: Mapping[Atom, str]) -> str:
        """The sum as people write it."""
        ordered = sorted(self.terms.items(), key=lambda term: (not term[0], sorted(term[0])))
        parts = [_term(monomial, value, names) for monomial, value in ordered if not is_zero(value)]
        return " + ".join(parts).replace("+ -", "- ") or "0"


def _kept(terms: dict[Monomial, Coefficient]) -> Polynomial:
    # A membrane potential times 0 stays: it still says which step the loop goes on from.
    return Polynomial(
        {
            monomial: value
            for monomial, value in terms.items()
            if any(atom.kind is Kind.MEMBRANE for atom in monomial) or bool(value.any())
        }
    )


def _total(left: Coefficient, right: Coefficient) -> Coefficient:
    """left + right, where only the rounding of equal numbers is left of it 0."""
    total = np.asarray(left + right)
    return coefficient(np.where(np.abs(total) > 1e-12 * np.abs(right), total, 0.0))


def _term(monomial: Monomial, value: Coefficient, names: Mapping[Atom, str]) -> str:
    factors = [names[atom] for atom in sorted(monomial)]
    if not factors or value.ndim:
        return "*".join([number_text(value), *factors])
    if value == 1.0:
        return "*".join(factors)
    return ("-" if value == -1.0 else f"{number_text(value)}*") + "*".join(factors)


def number_text(value: Coefficient) -> str:
    """A number, or the range of the numbers per channel."""
    return f"{value:.6g}" if value.ndim == 0 else f"[{value.min():.6g} .. {value.max():.6g}]"
