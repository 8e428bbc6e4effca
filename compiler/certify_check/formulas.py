"""Conditional linear inequalities over bounded integers, exactly: what an exact verdict is decided again by."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from fractions import Fraction

Literal = int  # a variable of 0 and 1, or ~variable where it is 0


@dataclass(frozen=True, slots=True)
class Expression:
    """constant + sum of coefficient * variable."""

    constant: Fraction
    terms: Mapping[int, Fraction] = field(default_factory=dict)

    def __add__(self, other: Expression) -> Expression:
        terms = dict(self.terms)
        for variable, coefficient in other.terms.items():
            terms[variable] = terms.get(variable, Fraction(0)) + coefficient
        return Expression(self.constant + other.constant, {name: own for name, own in terms.items() if own})

    def __sub__(self, other: Expression) -> Expression:
        return self + other.times(Fraction(-1))

    def times(self, factor: Fraction) -> Expression:
        """The product with a number."""
        if not factor:
            return Expression(Fraction(0))
        return Expression(self.constant * factor, {name: own * factor for name, own in self.terms.items()})


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """Where every literal holds, sum of coefficient * variable >= least."""

    when: tuple[Literal, ...]
    terms: Mapping[int, int]
    least: int


@dataclass(slots=True)
class Formulas:
    """Variables, each an integer between two bounds, and what holds of them."""

    bounds: list[tuple[int, int]] = field(default_factory=list)
    rules: list[Rule] = field(default_factory=list)

    def boolean(self) -> int:
        """A new variable of 0 and 1."""
        return self.integer(0, 1)

    def integer(self, lower: int, upper: int) -> int:
        """A new variable."""
        self.bounds.append((lower, upper))
        return len(self.bounds) - 1

    def above(self, value: Expression, *, when: Iterable[Literal] = (), strict: bool = False) -> None:
        """value >= 0, or > 0, where every literal holds.

        Multiplied until all coefficients are integers without a common divisor: the sum of the terms is an integer, so
        what it is compared with is rounded to one.
        """
        scale = math.lcm(*(own.denominator for own in value.terms.values()))
        divisor = math.gcd(*(int(own * scale) for own in value.terms.values())) or 1
        factor = Fraction(scale, divisor)
        terms = {name: int(own * factor) for name, own in value.terms.items()}
        bound = -value.constant * factor
        least = math.floor(bound) + 1 if strict else math.ceil(bound)
        self.rules.append(Rule(when=tuple(when), terms=terms, least=least))

    def any_of(self, literals: Iterable[Literal]) -> None:
        """At least one of these literals holds."""
        total = Expression(Fraction(-1))
        for literal in literals:
            total = total + indicator(literal)
        self.above(total)


def number(value: float) -> Expression:
    """A number, exactly."""
    return Expression(Fraction(value))


def variable(name: int) -> Expression:
    """A variable."""
    return Expression(Fraction(0), {name: Fraction(1)})


def indicator(literal: Literal) -> Expression:
    """1 where the literal holds, else 0."""
    return variable(literal) if literal >= 0 else Expression(Fraction(1), {~literal: Fraction(-1)})
