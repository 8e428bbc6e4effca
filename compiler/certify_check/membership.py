"""The input sets as formulas: bits with a choice are variables, and what holds of the members alone are rules."""

from __future__ import annotations

from fractions import Fraction
from functools import singledispatch
from itertools import pairwise

import numpy as np

from compiler.certify_check.content import Fault
from compiler.certify_check.formulas import Expression, Formulas, indicator, variable
from compiler.certify_check.sets import Codes, Few, Free, Inputs, Moved

Bits = dict[tuple[int, int], int]  # (step, element) -> variable, of those elements with lower < upper


@singledispatch
def members(inputs: Inputs, formulas: Formulas) -> Bits:
    """The variables of a set's bits, kept to its members.

    Raises: Fault for a set of other values than 0 and 1.
    """
    raise Fault(f"{type(inputs).__name__} is no set of spikes")


@members.register
def _(inputs: Free, formulas: Formulas) -> Bits:
    if not inputs.is_binary:
        raise Fault("exact solvers decide about sets of spikes, and it is about other values")
    return {place: formulas.boolean() for place in _choices(inputs)}


@members.register
def _(inputs: Few, formulas: Formulas) -> Bits:
    bits = {place: formulas.boolean() for place in _choices(inputs)}
    flips = {place: indicator(~bit if inputs.clean[place] else bit) for place, bit in bits.items()}
    for step in range(len(inputs.clean)) if inputs.per_step else [None]:
        own = [flip for place, flip in flips.items() if step in (None, place[0])]
        formulas.above(_total(own, Fraction(-1), Fraction(inputs.k)))
    return bits


@members.register
def _(inputs: Moved, formulas: Formulas) -> Bits:
    bits = {place: formulas.boolean() for place in _choices(inputs)}
    trains: dict[int, list[Expression]] = {}
    for (_, element), bit in bits.items():
        trains.setdefault(element, []).append(variable(bit))
    for element, own in trains.items():
        count = Fraction(float(inputs.clean[:, element].sum()))
        formulas.above(_total(own, Fraction(1), -count))
        formulas.above(_total(own, Fraction(-1), count))
    gone = [indicator(~bit) for place, bit in bits.items() if inputs.clean[place]]
    formulas.above(_total(gone, Fraction(-1), Fraction(inputs.k)))
    return bits


@members.register
def _(inputs: Codes, formulas: Formulas) -> Bits:
    """As a pixel grows its bits switch on in the order of their draws, those of equal draws at once: one variable."""
    trains: dict[int, dict[float, int]] = {}
    bits = {}
    for step, element in sorted(_choices(inputs), key=lambda place: float(inputs.draws[place])):
        own, draw = trains.setdefault(element, {}), float(inputs.draws[step, element])
        if draw not in own:
            own[draw] = formulas.boolean()
        bits[step, element] = own[draw]
    for own in trains.values():
        for early, late in pairwise(own.values()):
            formulas.above(variable(early) - Expression(Fraction(1)), when=[late])
    return bits


def _choices(inputs: Inputs) -> list[tuple[int, int]]:
    return [(int(step), int(element)) for step, element in zip(*np.nonzero(inputs.lower < inputs.upper), strict=True)]


def _total(parts: list[Expression], factor: Fraction, constant: Fraction) -> Expression:
    """factor * sum of parts + constant."""
    terms: dict[int, Fraction] = {}
    for part in parts:
        constant += factor * part.constant
        for name, own in part.terms.items():
            terms[name] = terms.get(name, Fraction(0)) + factor * own
    return Expression(constant, terms)
