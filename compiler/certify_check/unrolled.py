"""A network on a set of spikes as formulas that hold of its counterexamples alone.

Only what a class score can depend on is written down, from the scores backwards: a spike that the checker's intervals
decide is a number, and no potential is a variable. A potential is a linear form of the spikes since the last reset, so
a spike that may and may not be has one inequality for each step at which the neuron may have fired last.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from fractions import Fraction

import numpy as np

from compiler.certify_check.formulas import Expression, Formulas, Literal, number, variable
from compiler.certify_check.layers import Affine, Given, Greatest, Integers, Neurons, OverTime, Repeat, Same, Sum
from compiler.certify_check.membership import Bits, members
from compiler.certify_check.proof import margins_by_intervals
from compiler.certify_check.ranges import Knowledge
from compiler.certify_check.rounding import Reals
from compiler.certify_check.solvers import Undecided
from compiler.ir import Compare, Reading, Reset
from compiler.ir.ops import AvgPool2d, BatchNorm, Lif

Place = tuple[str, int, int]  # a node, a step, an element
Case = tuple[list[Literal], Expression]  # what holds, and a potential's value where it does


@dataclass(slots=True)
class Unrolled:
    """Formulas of a network's values on a set.

    known: its intervals, walked. ends: when to give up, by `time.perf_counter`. bits: variables of the input's bits.
    Raises: Fault if the set is not one of spikes; Undecided past the end; CompileError for a batch norm.
    """

    known: Knowledge
    ends: float
    formulas: Formulas = field(default_factory=Formulas)
    bits: Bits = field(init=False)
    made: dict[Place, Expression] = field(default_factory=dict)
    potentials: dict[tuple[str, int, int, int], Expression] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.bits = members(self.known.inputs, self.formulas)

    def demand_a_rival(self, label: int) -> bool:
        """Demand that a class is not below the label; False if intervals leave none that could be."""
        output, ahead = self.known.graph.output, []
        margins = margins_by_intervals(self.known, label)
        for rival in np.flatnonzero(~(margins > 0.0)).tolist():
            if rival != label:
                literal = self.formulas.boolean()
                difference = self.value(output, 0, rival) - self.value(output, 0, label)
                self.formulas.above(difference, when=[literal])
                ahead.append(literal)
        self.formulas.any_of(ahead)
        return bool(ahead)

    def value(self, name: str, step: int, element: int) -> Expression:
        """One value of a node, exactly."""
        bounds = self.known.values[name]
        low, high = float(bounds.lower[step, element]), float(bounds.upper[step, element])
        if low == high:
            return number(low)
        place = (name, step, element)
        if place not in self.made:
            self.made[place] = self._value(name, step, element)
        return self.made[place]

    def _value(self, name: str, step: int, element: int) -> Expression:
        layer, sources = self.known.layers[name], self.known.graph.node(name).inputs
        match layer:
            case Given():
                return variable(self.bits[step, element])
            case Same():
                return self.value(sources[0], step, element)
            case Repeat():
                return self.value(sources[0], 0, element)
            case Sum():
                return self.value(sources[0], step, element) + self.value(sources[1], step, element)
            case Affine():
                return self._affine(name, layer, step, element)
            case Greatest():
                places = [int(place) for place in layer.places[:, element] if place >= 0]
                return self._largest(sources[0], [(step, place) for place in places])
            case OverTime():
                return self._over_time(layer.kind, sources[0], element)
            case Neurons():
                for earlier in range(step):
                    self.value(name, earlier, element)  # in order: each needs those before, so recursion stays short
                if isinstance(layer.op, Lif):
                    return variable(self._spike(name, layer, step, element))
                return self._since(name, layer, (-1, step, element))

    def _affine(self, name: str, layer: Affine, step: int, element: int) -> Expression:
        node = self.known.graph.node(name)
        if isinstance(node.op, BatchNorm):
            raise self.known.graph.site(node).fail("a batch norm has irrational numbers", "fold it first")
        columns, weights = _row(layer, element)
        source = self.known.values[node.inputs[0]]
        is_zero = (source.lower[step, columns] == 0.0) & (source.upper[step, columns] == 0.0)
        total, terms = Fraction(float(layer.bias[element])), dict[int, Fraction]()
        for column, weight in zip(columns[~is_zero].tolist(), weights[~is_zero].tolist(), strict=True):
            own = self.value(node.inputs[0], step, column)
            factor = _exact_share(node.op, weight) if isinstance(node.op, AvgPool2d) else Fraction(weight)
            total += factor * own.constant
            for key, coefficient in own.terms.items():
                terms[key] = terms.get(key, Fraction(0)) + factor * coefficient
        return Expression(total, {key: own for key, own in terms.items() if own})

    def _over_time(self, kind: Reading, source: str, element: int) -> Expression:
        steps = len(self.known.values[source].lower)
        match kind:
            case Reading.LAST:
                return self.value(source, steps - 1, element)
            case Reading.RATE:
                total = Expression(Fraction(0))
                for t in range(steps):
                    total = total + self.value(source, t, element)
                return total.times(Fraction(1, steps))
            case Reading.MAX:
                return self._largest(source, [(t, element) for t in range(steps)])

    def _largest(self, source: str, places: list[tuple[int, int]]) -> Expression:
        """A new number that is one of these, and no less than any."""
        bounds = self.known.values[source]
        floor = max(float(bounds.lower[place]) for place in places)
        ceiling = max(float(bounds.upper[place]) for place in places)
        values = [self.value(source, *place) for place in places if bounds.upper[place] >= floor]
        parts = [part for value in values for part in (value.constant, *value.terms.values())]
        unit = math.lcm(*(part.denominator for part in parts))
        whole = self.formulas.integer(math.ceil(Fraction(floor) * unit), math.floor(Fraction(ceiling) * unit))
        largest = variable(whole).times(Fraction(1, unit))
        chosen = [self.formulas.boolean() for _ in values]
        for literal, value in zip(chosen, values, strict=True):
            self.formulas.above(largest - value)
            self.formulas.above(value - largest, when=[literal])
        self.formulas.any_of(chosen)
        return largest

    def _spike(self, name: str, layer: Neurons, step: int, element: int) -> int:
        """The variable of a spike that is not known: 1 exactly where the potential is at or above the threshold."""
        if time.perf_counter() > self.ends:
            raise Undecided
        fires, threshold = self.formulas.boolean(), number(float(layer.threshold[element]))
        assert isinstance(layer.op, Lif)
        is_at = layer.op.compare is Compare.GE
        for when, potential in self._potentials(name, layer, step, element):
            self.formulas.above(potential - threshold, when=[*when, fires], strict=not is_at)
            self.formulas.above(threshold - potential, when=[*when, ~fires], strict=is_at)
        return fires

    def _potentials(self, name: str, layer: Neurons, step: int, element: int) -> Iterator[Case]:
        """The potential at a step for each hard reset that may be the last before it, and the literals that say so."""
        since: list[Literal] = []
        if isinstance(layer.op, Lif) and layer.op.reset is Reset.HARD:
            cells = self.known.cells[name]
            for last in reversed(range(step)):
                if cells[last].silent[element]:
                    continue
                potential = self._since(name, layer, (last, step, element))
                if cells[last].fires[element]:
                    yield since, potential
                    return
                (spike,) = self.value(name, last, element).terms
                yield [*since, spike], potential
                since = [*since, ~spike]
        yield since, self._since(name, layer, (-1, step, element))

    def _since(self, name: str, layer: Neurons, at: tuple[int, int, int]) -> Expression:
        """The potential at a step if the last hard reset was at another: from there on it is linear in spikes."""
        last, step, element = at
        for earlier in range(last + 1, step):  # in order, since a long train would recurse too deep
            if (name, last, earlier, element) not in self.potentials:
                self._since(name, layer, (last, earlier, element))
        if (name, *at) not in self.potentials:
            op, (source,) = layer.op, self.known.graph.node(name).inputs
            decay, scale, leak, threshold, start = (
                Fraction(float(numbers[element]))
                for numbers in (
                    layer.decay,
                    layer.scale,
                    layer.leak,
                    layer.threshold,
                    layer.initial if last < 0 else layer.value,
                )
            )
            left, late = Expression(start), Expression(Fraction(0))
            if step > last + 1:
                left = self._since(name, layer, (last, step - 1, element))
                if isinstance(op, Lif) and op.reset is Reset.SOFT:
                    sunk = self.value(name, step - 1, element).times(threshold)
                    left, late = (left, sunk) if op.reset_delay else (left - sunk, late)
            flow = self.value(source, step, element).times(scale)
            self.potentials[name, *at] = left.times(decay) + flow + Expression(leak) - late
        return self.potentials[name, *at]


def _row(layer: Affine, element: int) -> tuple[Integers, Reals]:
    """Columns of a matrix row that are not 0, and what is there."""
    if isinstance(layer.matrix, np.ndarray):
        columns = np.flatnonzero(layer.matrix[element])
        return columns, layer.matrix[element, columns]
    row = layer.matrix[[element]]
    return row.indices, row.data


def _exact_share(op: AvgPool2d, share: float) -> Fraction:
    """The share of a pool's mean that a float is nearest to."""
    return Fraction(share).limit_denominator(op.kernel[0] * op.kernel[1])
