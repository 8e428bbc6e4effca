"""Equations of a traced loop matched against the equation of a spiking neuron."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from compiler.ir import Compare, CompileError, Reset
from frontends.torch_import.recurrence.polynomial import (
    CONSTANT,
    Atom,
    Coefficient,
    Kind,
    Polynomial,
    is_zero,
    number_text,
    same,
)
from frontends.torch_import.recurrence.reading import Equations, Spike

_FORM = "a LIF is m[t] = decay * m[t-1] + scale * x[t] + leak, reset after a spike to a value or by the threshold"
_ZERO = np.zeros(())


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One step of a population: its spike, and what its membrane potential is made of."""

    spike: Atom
    facts: Spike
    definition: Polynomial


@dataclass(frozen=True, slots=True)
class Chain:
    """The steps of one population, each going on from the one before."""

    steps: tuple[Step, ...]
    equations: Equations

    @property
    def own(self) -> frozenset[Atom]:
        """The population's membrane potentials and spikes."""
        return frozenset(atom for step in self.steps for atom in (step.spike, step.facts.membrane))

    def names(self) -> dict[Atom, str]:
        """What the atoms are called in messages: m[t] and s[t], x for what comes from other layers."""
        names = {}
        for at, step in enumerate(self.steps):
            names[step.facts.membrane], names[step.spike] = f"m[{at}]", f"s[{at}]"
            beside = step.facts.varying.terms if step.facts.varying else ()
            outer = sorted(frozenset().union(*step.definition.terms, *beside) - self.own)
            for atom in outer:
                names.setdefault(atom, f"x[{at}]" if len(outer) == 1 else self._outer(atom))
        return names

    def _outer(self, atom: Atom) -> str:
        if atom.kind is Kind.VALUE:
            return self.equations.values[atom.index].name
        if atom.kind is Kind.SPIKE:
            facts = self.equations.spikes[atom.index]
            return f"[{self._outer(facts.membrane)} {_relation(facts)}]"
        return next(node.name for node, membrane in self.equations.membranes.items() if membrane == atom)

    def equation(self, at: int) -> str:
        """The membrane potential of one step as text."""
        return f"m[{at}] = {self.steps[at].definition.text(self.names())}"

    @property
    def last(self) -> int:
        """The last step."""
        return len(self.steps) - 1

    @property
    def firing(self) -> str:
        """When the neurons fire, as text."""
        return f"m {_relation(self.steps[0].facts)}"

    def refuse(self, at: int, message: str, hint: str = _FORM) -> CompileError:
        """The error that shows the equation of a step."""
        where = self.steps[at].facts.call.where
        return CompileError(f"the recurrence {self.equation(at)} is no LIF: {message}", where, hint=hint)


@dataclass(frozen=True, slots=True, kw_only=True)
class Fit:
    """The numbers of a Lif, and what it takes at each step: the terms of other layers."""

    decay: Coefficient
    leak_bias: Coefficient
    threshold: Coefficient
    initial: Coefficient
    reset: Reset
    reset_value: Coefficient
    reset_delay: bool
    compare: Compare
    drives: tuple[Polynomial, ...]


def chains(equations: Equations) -> list[Chain]:
    """The populations of a trace.

    Raises: CompileError for a membrane potential that two others go on from, that goes on from two, or that is
    compared with two thresholds.
    """
    steps: dict[Atom, Step] = {}
    for index, facts in enumerate(equations.spikes):
        if facts.membrane in steps:
            first = number_text(steps[facts.membrane].facts.threshold)
            raise CompileError(
                f"a membrane potential is compared with {first} and with {number_text(facts.threshold)}",
                facts.call.where,
                hint="a neuron has one threshold, and fires above it",
            )
        definition = equations.definitions[facts.membrane]
        steps[facts.membrane] = Step(spike=Atom(Kind.SPIKE, index), facts=facts, definition=definition)
    following: dict[Atom, Step] = {}
    heads = []
    for step in steps.values():
        before = step.definition.atoms(Kind.MEMBRANE)
        if not before:
            heads.append(step)
        elif len(before) > 1 or next(iter(before)) in following:
            text = Chain((step,), equations)
            raise text.refuse(0, f"{len(before)} membrane potentials are joined" if len(before) > 1 else "it forks")
        else:
            following[next(iter(before))] = step
    return [Chain(_followed(head, following), equations) for head in heads]


def _followed(head: Step, following: Mapping[Atom, Step]) -> tuple[Step, ...]:
    steps = [head]
    while steps[-1].facts.membrane in following:
        steps.append(following[steps[-1].facts.membrane])
    return tuple(steps)


def fit(chain: Chain) -> Fit:
    """The Lif whose equation a population follows.

    Raises: CompileError with the equation found, if it follows none.
    """
    _check_thresholds(chain)
    drives = tuple(_drive(chain, at) for at in range(len(chain.steps)))
    decay, leak, jump, joint = _coefficients(chain)
    threshold = chain.steps[0].facts.threshold
    outside = decay[(decay < 0.0) | (decay > 1.0)]
    if outside.size:
        raise chain.refuse(chain.last, f"decay is {outside[0]:.6g}, not inside [0, 1]")
    start = chain.steps[0].definition[CONSTANT]
    if decay.all():
        initial = (start - leak) / decay
    elif same(start, leak):
        initial = _ZERO
    else:
        raise chain.refuse(0, "its first step starts from a value that decay 0 has no place for")
    reset, value, delay, shift = _reset(chain, decay, threshold, jump, joint)
    return Fit(
        decay=decay,
        leak_bias=leak + shift * (1.0 - decay),
        threshold=threshold + shift,
        initial=initial + shift,
        reset=reset,
        reset_value=value,
        reset_delay=delay,
        compare=chain.steps[0].facts.compare,
        drives=drives,
    )


def _check_thresholds(chain: Chain) -> None:
    first = chain.steps[0].facts
    for at, step in enumerate(chain.steps):
        facts = step.facts
        if facts.varying is not None:
            raise CompileError(
                f"the threshold of step {at} is {facts.varying.text(chain.names())}, not a constant",
                facts.call.where,
                hint="adaptive thresholds are not expressed; a Lif compares with one number, or one per channel",
            )
        if facts.compare is not first.compare or not same(facts.threshold, first.threshold):
            raise CompileError(
                f"a neuron fires at m {_relation(first)} at step 0 and at m {_relation(facts)} at step {at}",
                facts.call.where,
                hint="a Lif has one threshold for all steps",
            )


def _relation(facts: Spike) -> str:
    return f"{'>=' if facts.compare is Compare.GE else '>'} {number_text(facts.threshold)}"


def _drive(chain: Chain, at: int) -> Polynomial:
    """What comes from other layers at a step: a sum of values and other populations' spikes."""
    step = chain.steps[at]
    before = chain.steps[at - 1] if at else None
    state = {before.facts.membrane, before.spike} if before else set()
    outer = []
    for monomial in step.definition.terms:
        if not monomial or monomial <= state:
            continue
        if monomial & chain.own:
            raise chain.refuse(at, f"{_product(chain, monomial)} is not of the step before alone")
        if len(monomial) > 1 or any(atom.kind is Kind.MEMBRANE for atom in monomial):
            raise chain.refuse(at, f"{_product(chain, monomial)} is not a value of another layer")
        outer.append(monomial)
    if not outer:
        raise chain.refuse(at, "it takes no input")
    return step.definition.only(outer)


def _product(chain: Chain, monomial: frozenset[Atom]) -> str:
    return Polynomial({monomial: np.ones(())}).text(chain.names())


def _coefficients(chain: Chain) -> tuple[Coefficient, Coefficient, Coefficient, Coefficient]:
    """Of m[t-1], 1, s[t-1] and m[t-1] * s[t-1]; a single step shows neither decay nor reset."""
    if len(chain.steps) == 1:
        return _ZERO, chain.steps[0].definition[CONSTANT], _ZERO, _ZERO
    found: list[tuple[Coefficient, Coefficient, Coefficient, Coefficient]] = []
    for before, step in itertools.pairwise(chain.steps):
        m, s, definition = before.facts.membrane, before.spike, step.definition
        found.append((definition[{m}], definition[CONSTANT], definition[{s}], definition[{m, s}]))
        if not all(same(now, first) for now, first in zip(found[-1], found[0], strict=True)):
            raise chain.refuse(len(found), f"step 1 is {chain.equation(1)}", "every step has the same equation")
    return found[0]


def _reset(
    chain: Chain, decay: Coefficient, threshold: Coefficient, jump: Coefficient, joint: Coefficient
) -> tuple[Reset, Coefficient, bool, Coefficient]:
    """Kind, value, delay, and what must be added to the membrane potential to bring it into the form of a Lif.

    A soft reset by another amount than the threshold is one by the threshold for a potential that is shifted.
    """
    if decay.all() and same(joint, -decay):
        return Reset.HARD, jump / decay, False, _ZERO
    if is_zero(joint) and is_zero(jump):
        return Reset.NONE, _ZERO, False, _ZERO
    if is_zero(joint) and same(jump, -decay * threshold):
        return Reset.SOFT, _ZERO, False, _ZERO
    if is_zero(joint) and same(jump, -threshold):
        return Reset.SOFT, _ZERO, True, _ZERO
    if is_zero(joint) and decay.all():
        return Reset.SOFT, _ZERO, False, -jump / decay - threshold
    raise chain.refuse(1, "a spike changes the membrane potential in another way")
