"""A second exact path to a verdict, to check the first: the graph's equations in rational numbers, solved by Z3.

It shares nothing with the integer path but the graph and the set: no common units, no bounds, no stable neurons, no
matrices, other constraints for the sets and another solver. It is far slower, for small networks only.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from functools import singledispatch
from itertools import product
from typing import Any

import numpy as np
import numpy.typing as npt

from compiler.certify.exact import Answer
from compiler.certify.input_sets import Box, Chain, InputSet, L0Ball, Retiming
from compiler.ir import Compare, CompileError, Encoding, Graph, Loc, Node, Number, Param, Reading, Reset
from compiler.ir.ops import (
    Add,
    AvgPool2d,
    BatchNorm,
    Conv2d,
    Encode,
    Flatten,
    Input,
    Li,
    Lif,
    Linear,
    MaxPool2d,
    Op,
    Readout,
    Scale,
)

Term = Any  # a Z3 expression of a real number
Condition = Any  # a Z3 formula
Values = npt.NDArray[np.object_]  # of terms


@dataclass(slots=True)
class _Formulas:
    """Values of one sample and the formulas that tie them to the input; time is axis 0 where there is one."""

    graph: Graph
    inputs: InputSet
    solver: Any
    values: dict[str, Values] = field(default_factory=dict)

    def numbers(self, value: Number, node: Node) -> list[Fraction]:
        """One for each channel."""
        channels = self.graph.types[node.name].size("C")
        return [Fraction(float(v)) for v in self.graph.site(node).channels(value, channels, "number")]

    def array(self, param: Param | None) -> Values | None:
        return None if param is None else _fractions(self.graph.parameters[param.name])


def decide_by_smt(graph: Graph, inputs: InputSet, label: int, *, seconds: float = 30.0) -> Answer:
    """Whether the label alone has the highest score on every input of the set, in rational arithmetic.

    Any network whose numbers are f32 is exact here, but for a batch norm whose sqrt(var + eps) is irrational.

    Raises: CompileError for a set of real inputs, an op without a rule, and where z3 is not installed.
    """
    z3 = _solver()
    solver = z3.Solver()
    solver.set("timeout", max(1, int(seconds * 1000)))
    formulas = _Formulas(graph, inputs, solver)
    for node in graph.nodes:
        formulas.values[node.name] = rule(node.op, [formulas.values[name] for name in node.inputs], node, formulas)
    scores = list(formulas.values[graph.output])
    solver.add(z3.Or([score >= scores[label] for j, score in enumerate(scores) if j != label]))
    result = solver.check()
    if result == z3.sat:
        return Answer.COUNTEREXAMPLE
    return Answer.ROBUST if result == z3.unsat else Answer.UNKNOWN


@singledispatch
def rule(op: Op, inputs: list[Values], node: Node, formulas: _Formulas) -> Values:
    """The terms of one node's values."""
    raise formulas.graph.site(node).fail(f"no rule to write {type(op).__name__} as formulas")


@rule.register
def _(op: Input, inputs: list[Values], node: Node, formulas: _Formulas) -> Values:
    z3 = _solver()
    given = formulas.inputs
    flat = [z3.Bool(f"x{position}") for position in range(given.clean.size)]
    bits = np.array(flat, object).reshape(given.shape)
    for position in np.flatnonzero(given.lower.reshape(-1) == given.upper.reshape(-1)):
        formulas.solver.add(flat[position] == bool(given.clean.flat[position]))
    for formula in members(given, bits):
        formulas.solver.add(formula)
    return _each(lambda bit: z3.If(bit, z3.RealVal(1), z3.RealVal(0)), bits)


@rule.register
def _(op: Encode, inputs: list[Values], node: Node, formulas: _Formulas) -> Values:
    if op.kind is not Encoding.DIRECT:
        raise formulas.graph.site(node).fail(f"no rule to write {op.kind} encoding as formulas")
    return np.stack([inputs[0]] * op.timesteps)


@rule.register
def _(op: Linear, inputs: list[Values], node: Node, formulas: _Formulas) -> Values:
    weight, bias = formulas.array(op.weight), formulas.array(op.bias)
    assert weight is not None
    rows = range(len(weight))

    def layer(x: Values) -> Values:
        return _array([_sum(zip(weight[o], x, strict=True), Fraction(0) if bias is None else bias[o]) for o in rows])

    return _each_step(layer, inputs[0], node, formulas)


@rule.register
def _(op: Conv2d, inputs: list[Values], node: Node, formulas: _Formulas) -> Values:
    weight, bias = formulas.array(op.weight), formulas.array(op.bias)
    assert weight is not None
    out, per_group, kernel_h, kernel_w = weight.shape
    y = formulas.graph.types[node.name]

    def element(x: Values, o: int, row: int, column: int) -> Term:
        terms = []
        for c, i, j in product(range(per_group), range(kernel_h), range(kernel_w)):
            at = (
                o // (out // op.groups) * per_group + c,
                row * op.stride[0] + i - op.padding[0],
                column * op.stride[1] + j - op.padding[1],
            )
            if 0 <= at[1] < x.shape[1] and 0 <= at[2] < x.shape[2]:
                terms.append((weight[o, c, i, j], x[at]))
        return _sum(terms, Fraction(0) if bias is None else bias[o])

    def layer(x: Values) -> Values:
        places = product(range(out), range(y.size("H")), range(y.size("W")))
        return _array([element(x, *place) for place in places]).reshape(out, y.size("H"), y.size("W"))

    return _each_step(layer, inputs[0], node, formulas)


@rule.register
def _(op: AvgPool2d, inputs: list[Values], node: Node, formulas: _Formulas) -> Values:
    def average(x: Values, channel: int, rows: range, columns: range) -> Term:
        inside = [x[channel, i, j] for i in _inside(rows, x.shape[1]) for j in _inside(columns, x.shape[2])]
        padded = [
            range(r.start, min(r.stop, size + p))
            for r, size, p in zip((rows, columns), x.shape[1:], op.padding, strict=True)
        ]
        divisor = len(padded[0]) * len(padded[1]) if op.count_include_pad else len(inside)
        return _sum(((Fraction(1, divisor), term) for term in inside), Fraction(0))

    return _pooled(op, average, inputs[0], node, formulas)


@rule.register
def _(op: MaxPool2d, inputs: list[Values], node: Node, formulas: _Formulas) -> Values:
    def largest(x: Values, channel: int, rows: range, columns: range) -> Term:
        return _largest([x[channel, i, j] for i in _inside(rows, x.shape[1]) for j in _inside(columns, x.shape[2])])

    return _pooled(op, largest, inputs[0], node, formulas)


@rule.register
def _(op: BatchNorm, inputs: list[Values], node: Node, formulas: _Formulas) -> Values:
    raise formulas.graph.site(node).fail("a batch norm has irrational numbers", "quantise_dyadic folds batch norms")


@rule.register
def _(op: Flatten, inputs: list[Values], node: Node, formulas: _Formulas) -> Values:
    return _each_step(lambda x: x.reshape(-1), inputs[0], node, formulas)


@rule.register
def _(op: Add, inputs: list[Values], node: Node, formulas: _Formulas) -> Values:
    flat = [a + b for a, b in zip(inputs[0].reshape(-1), inputs[1].reshape(-1), strict=True)]
    return _array(flat).reshape(inputs[0].shape)


@rule.register
def _(op: Scale, inputs: list[Values], node: Node, formulas: _Formulas) -> Values:
    factors = formulas.numbers(op.factor, node)

    def layer(x: Values) -> Values:
        scaled = [_sum([(factors[at[0]], x[at])], Fraction(0)) for at in np.ndindex(x.shape)]
        return _array(scaled).reshape(x.shape)

    return _each_step(layer, inputs[0], node, formulas)


@rule.register
def _(op: Readout, inputs: list[Values], node: Node, formulas: _Formulas) -> Values:
    (x,) = inputs
    match op.kind:
        case Reading.LAST:
            return np.asarray(x[-1])
        case Reading.RATE:
            return _array([_sum(((Fraction(1, len(x)), term) for term in train), Fraction(0)) for train in x.T])
        case Reading.MAX:
            return _array([_largest(list(train)) for train in x.T])


@rule.register
def _(op: Li, inputs: list[Values], node: Node, formulas: _Formulas) -> Values:
    return _over_time(op, inputs[0], node, formulas, lambda m, s, channel: (m, s, m))


@rule.register
def _(op: Lif, inputs: list[Values], node: Node, formulas: _Formulas) -> Values:
    z3 = _solver()
    thresholds, values = formulas.numbers(op.threshold, node), formulas.numbers(op.reset_value, node)
    fresh = iter(range(inputs[0].size))
    is_delayed = op.reset is Reset.SOFT and op.reset_delay

    def fire(m: Term, s: Term, channel: int) -> tuple[Term, Term, Term]:
        threshold = thresholds[channel]
        if is_delayed:
            m = m - _term(threshold) * s
        fired = z3.Bool(f"{node.name}.{next(fresh)}")
        formulas.solver.add(fired == (m >= _term(threshold) if op.compare is Compare.GE else m > _term(threshold)))
        spike = z3.If(fired, z3.RealVal(1), z3.RealVal(0))
        after = m
        if op.reset is Reset.HARD:
            after = z3.If(fired, _term(values[channel]), m)
        elif op.reset is Reset.SOFT and not is_delayed:
            after = z3.If(fired, m - _term(threshold), m)
        return spike, spike, after

    return _over_time(op, inputs[0], node, formulas, fire)


@singledispatch
def members(inputs: InputSet, bits: Values) -> Iterable[Condition]:
    """The formulas that hold of the members of a set alone, beside that elements without a choice are the clean ones.

    Raises: CompileError for a set without a rule.
    """
    raise CompileError(f"no formulas for {type(inputs).__name__}", Loc("input set"), hint="give a set of spikes")


@members.register
def _(inputs: Box, bits: Values) -> Iterable[Condition]:
    return ()


@members.register
def _(inputs: L0Ball, bits: Values) -> Iterable[Condition]:
    z3 = _solver()
    steps = bits if inputs.per_step else bits[None]
    clean = inputs.clean if inputs.per_step else inputs.clean[None]
    for own, values in zip(steps, clean, strict=True):
        pairs = zip(own.reshape(-1), values.reshape(-1), strict=True)
        yield z3.AtMost(*[z3.Not(bit) if value else bit for bit, value in pairs], inputs.k)


@members.register
def _(inputs: Chain, bits: Values) -> Iterable[Condition]:
    """Each pixel is a real number; its bits are what the draws make of it."""
    z3 = _solver()
    for at in np.ndindex(inputs.image.shape):
        pixel = z3.Real(f"pixel{at}")
        yield pixel >= _term(Fraction(float(inputs.least[at])))
        yield pixel <= _term(Fraction(float(inputs.most[at])))
        for t in range(len(bits)):
            yield bits[(t, *at)] == (_term(Fraction(float(inputs.draws[(t, *at)]))) < pixel)


@members.register
def _(inputs: Retiming, bits: Values) -> Iterable[Condition]:
    z3 = _solver()
    for at in np.ndindex(inputs.shape[1:]):
        yield z3.PbEq([(bits[(t, *at)], 1) for t in range(len(bits))], int(inputs.clean[(slice(None), *at)].sum()))
    gone = [z3.Not(bit) for bit, value in zip(bits.reshape(-1), inputs.clean.reshape(-1), strict=True) if value]
    if gone:
        yield z3.AtMost(*gone, inputs.moved)


def _over_time(
    op: Lif | Li,
    x: Values,
    node: Node,
    formulas: _Formulas,
    fire: Callable[[Term, Term, int], tuple[Term, Term, Term]],
) -> Values:
    """m[t] = decay * v[t-1] + input_scale * x[t] + leak_bias; fire gives value, spike and v[t] of m[t] and s[t-1]."""
    names = ("decay", "input_scale", "leak_bias", "initial")
    decay, scale, leak, initial = (formulas.numbers(getattr(op, what), node) for what in names)
    values = np.empty(x.shape, object)
    for at in np.ndindex(x.shape[1:]):
        channel = at[0]
        v, s = _term(initial[channel]), _term(Fraction(0))
        for t in range(len(x)):
            m = _sum([(decay[channel], v), (scale[channel], x[(t, *at)])], leak[channel])
            values[(t, *at)], s, v = fire(m, s, channel)
    return values


def _each_step(layer: Callable[[Values], Values], x: Values, node: Node, formulas: _Formulas) -> Values:
    """The layer on every step of a sequence, or on a value without time."""
    if formulas.graph.types[node.inputs[0]].has("T"):
        return np.stack([layer(part) for part in x])
    return layer(x)


def _pooled(
    op: AvgPool2d | MaxPool2d,
    pool: Callable[[Values, int, range, range], Term],
    x: Values,
    node: Node,
    formulas: _Formulas,
) -> Values:
    y = formulas.graph.types[node.name]
    shape = (y.size("C"), y.size("H"), y.size("W"))

    rows, columns = (
        [range(i * op.stride[k] - op.padding[k], i * op.stride[k] - op.padding[k] + op.kernel[k]) for i in range(n)]
        for k, n in enumerate(shape[1:])
    )

    def layer(maps: Values) -> Values:
        pools = [pool(maps, c, own, across) for c in range(shape[0]) for own in rows for across in columns]
        return _array(pools).reshape(shape)

    return _each_step(layer, x, node, formulas)


def _inside(window: range, size: int) -> range:
    return range(max(window.start, 0), min(window.stop, size))


def _largest(terms: Sequence[Term]) -> Term:
    z3 = _solver()
    best = terms[0]
    for term in terms[1:]:
        best = z3.If(term > best, term, best)
    return best


def _sum(products: Iterable[tuple[Fraction, Term]], constant: Fraction) -> Term:
    z3 = _solver()
    return z3.Sum([_term(constant), *(_term(factor) * term for factor, term in products if factor)])


def _term(value: Fraction) -> Term:
    return _solver().Q(value.numerator, value.denominator)


def _fractions(values: npt.NDArray[np.float32]) -> Values:
    return _each(lambda value: Fraction(float(value)), values)


def _each(change: Callable[[Any], Any], values: npt.NDArray[Any]) -> Values:
    return _array([change(value) for value in values.reshape(-1)]).reshape(values.shape)


def _array(items: Sequence[object]) -> Values:
    """A vector of objects, none of which numpy looks into."""
    made = np.empty(len(items), object)
    for at, item in enumerate(items):
        made[at] = item
    return made


def _solver() -> Any:
    try:
        import z3
    except ModuleNotFoundError:
        raise CompileError(
            "the second exact path needs Z3, which is not installed", Loc("z3"), hint="pip install z3-solver"
        ) from None
    return z3
