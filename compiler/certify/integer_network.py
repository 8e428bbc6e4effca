"""A network whose numbers are dyadic, as exact integer arithmetic: what each step computes, and in which units."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import singledispatch
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from compiler.certify.integer_matrices import Ints, averages, convolution, dense, memberships, selected
from compiler.ir import Compare, Encoding, Graph, Node, Number, Reading, Reset
from compiler.ir.ops import (
    Add,
    AvgPool2d,
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

if TYPE_CHECKING:
    from scipy.sparse import csr_array

FINEST_BITS = 20  # numbers are multiples of 2**-20
LARGEST = 2**60  # of a numerator; sums of two still fit 64 bits


@dataclass(frozen=True, slots=True, kw_only=True)
class Given:
    """The network's input."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Repeat:
    """y[t] = x for every t: a value without time shown at each step."""

    source: str
    timesteps: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Operand:
    """gains[t] * (weight @ x[t]); without a weight, gains[t] * x[t]."""

    source: str
    gains: tuple[int, ...]
    weight: csr_array | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Affine:
    """y[t] = sum of operands + shifts[t] * bias."""

    operands: tuple[Operand, ...]
    shifts: tuple[int, ...]
    bias: Ints | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Maximum:
    """y[t, i] = max of x[t, j] over the j with members[i, j] = 1."""

    source: str
    members: csr_array


@dataclass(frozen=True, slots=True, kw_only=True)
class Neurons:
    """Equations of `Lif` and `Li` in integers, element by element.

    m[t] = decay[t] * v[t-1] + gain[t] * x[t] + bias[t];   v[-1] = initial
    s[t] = m[t] >= fires_from[t];   v[t] = reset_value[t] where s[t], else m[t] (hard);
    v[t] = m[t] - threshold[t] * s[t] (soft);   v[t] = m[t] (none)
    With `delayed` a soft reset acts one step later: m[t] = ... - threshold[t] * s[t-1].
    An Li never fires, its value is m.

    Shapes: arrays (T, F), initial (F,).
    Units: m[t], v[t], threshold[t] and reset_value[t] in 1 / scales[t]; v[-1] in its own.
    """

    source: str
    scales: tuple[int, ...]
    fires: bool
    reset: Reset
    delayed: bool
    decay: Ints
    gain: Ints
    bias: Ints
    threshold: Ints
    fires_from: Ints
    reset_value: Ints
    initial: Ints


@dataclass(frozen=True, slots=True, kw_only=True)
class Reduce:
    """A readout over time: the sum of gains[t] * x[t] (rate), the last of them or the maximum."""

    source: str
    kind: Reading
    gains: tuple[int, ...]


Step = Given | Repeat | Affine | Maximum | Neurons | Reduce


@dataclass(frozen=True, slots=True, kw_only=True)
class IntegerNetwork:
    """A graph in integers: a value at step t is numerator / scales[name][t]; values without time have one entry.

    Shapes: numerators (F, N) with F = C * H * W.
    """

    graph: Graph
    steps: Mapping[str, Step]  # by node, in order
    scales: Mapping[str, tuple[int, ...]]


@dataclass(slots=True)
class _Lowering:
    graph: Graph
    input_scale: int
    scales: dict[str, tuple[int, ...]] = field(default_factory=dict)


def lower(graph: Graph, *, input_bits: int = 0) -> IntegerNetwork:
    """The graph in integer arithmetic, exactly: every number of it is a multiple of a power of two.

    Units shrink where they must: a weight on 1/64 makes sums in 1/64, each step of a decay of 3/4 makes potentials four
    times finer, an average over three numbers makes thirds, a mean over T steps makes units of 1/T.

    input_bits: inputs are multiples of 2**-input_bits; 0 for spikes.
    Raises: CompileError for a number that is no multiple of 2**-20, for a batch norm, for an encoding other than
        direct, and for units too fine for 64 bits; it names the node.
    """
    lowering = _Lowering(graph, 2**input_bits)
    steps = {}
    for node in graph.nodes:
        steps[node.name] = lower_op(node.op, node, lowering)
        if max(lowering.scales[node.name]) > LARGEST:
            raise graph.site(node).fail(
                f"needs units of 1/{max(lowering.scales[node.name]):.3g}, finer than 64-bit integers hold",
                "use fewer time steps, a coarser decay or fewer fraction bits",
            )
    return IntegerNetwork(graph=graph, steps=steps, scales=lowering.scales)


def dyadic(values: npt.NDArray[np.float32], what: str, node: Node, graph: Graph) -> tuple[Ints, int]:
    """Integers and the smallest power of two that they are to be divided by.

    Raises: CompileError for a value that is no multiple of 2**-20.
    """
    exact = np.asarray(values, np.float64)
    for bits in range(FINEST_BITS + 1):
        scaled = exact * 2.0**bits
        if np.array_equal(scaled, np.rint(scaled)) and np.abs(scaled).max() < LARGEST:
            return scaled.astype(np.int64), 2**bits
    scaled = exact * 2.0**FINEST_BITS
    worst = float(exact[scaled != np.rint(scaled)].flat[0]) if (scaled != np.rint(scaled)).any() else float(exact.max())
    raise graph.site(node).fail(
        f"{what} {worst:.9g} is no multiple of 2**-{FINEST_BITS}", "round the network first: quantise_dyadic"
    )


@singledispatch
def lower_op(op: Op, node: Node, lowering: _Lowering) -> Step:
    """The step of one node; notes the units of its value."""
    hint = "quantise_dyadic folds batch norms" if type(op).__name__ == "BatchNorm" else ""
    raise lowering.graph.site(node).fail(f"no rule to compute {type(op).__name__} in integers", hint)


@lower_op.register
def _(op: Input, node: Node, lowering: _Lowering) -> Step:
    kind = lowering.graph.types[node.name]
    lowering.scales[node.name] = (lowering.input_scale,) * (kind.size("T") if kind.has("T") else 1)
    return Given()


@lower_op.register
def _(op: Encode, node: Node, lowering: _Lowering) -> Step:
    if op.kind is not Encoding.DIRECT:
        raise lowering.graph.site(node).fail(
            f"{op.kind} encoding has no integer arithmetic", "drop the encoding: the network then takes its spikes"
        )
    (source,) = node.inputs
    lowering.scales[node.name] = lowering.scales[source] * op.timesteps
    return Repeat(source=source, timesteps=op.timesteps)


@lower_op.register
def _(op: Conv2d, node: Node, lowering: _Lowering) -> Step:
    graph = lowering.graph
    weight, scale = dyadic(graph.parameters[op.weight.name], "weight", node, graph)
    x, y = graph.types[node.inputs[0]], graph.types[node.name]
    matrix = convolution(weight, op, x, y)
    places = y.size("H") * y.size("W")
    bias, bias_scale = dyadic(graph.parameters[op.bias.name], "bias", node, graph) if op.bias is not None else (None, 1)
    return _affine(node, lowering, matrix, scale, None if bias is None else np.repeat(bias, places), bias_scale)


@lower_op.register
def _(op: Linear, node: Node, lowering: _Lowering) -> Step:
    graph = lowering.graph
    weight, scale = dyadic(graph.parameters[op.weight.name], "weight", node, graph)
    bias, bias_scale = dyadic(graph.parameters[op.bias.name], "bias", node, graph) if op.bias is not None else (None, 1)
    return _affine(node, lowering, dense(weight), scale, bias, bias_scale)


@lower_op.register
def _(op: AvgPool2d, node: Node, lowering: _Lowering) -> Step:
    types = lowering.graph.types
    matrix, divisor = averages(op, types[node.inputs[0]], types[node.name])
    return _affine(node, lowering, matrix, divisor, None, 1)


@lower_op.register
def _(op: Scale, node: Node, lowering: _Lowering) -> Step:
    factor, scale = _elements(op.factor, "factor", node, lowering)
    index = np.arange(len(factor))
    matrix = selected(index, index, (len(factor), len(factor)))
    matrix.data = factor
    return _affine(node, lowering, matrix, scale, None, 1)


@lower_op.register
def _(op: Flatten, node: Node, lowering: _Lowering) -> Step:
    return _affine(node, lowering, None, 1, None, 1)


@lower_op.register
def _(op: Add, node: Node, lowering: _Lowering) -> Step:
    left, right = (lowering.scales[name] for name in node.inputs)
    scales = tuple(math.lcm(a, b) for a, b in zip(left, right, strict=True))
    lowering.scales[node.name] = scales
    operands = tuple(Operand(source=name, gains=_quotients(scales, lowering.scales[name])) for name in node.inputs)
    return Affine(operands=operands, shifts=(0,) * len(scales))


@lower_op.register
def _(op: MaxPool2d, node: Node, lowering: _Lowering) -> Step:
    (source,) = node.inputs
    types = lowering.graph.types
    lowering.scales[node.name] = lowering.scales[source]
    return Maximum(source=source, members=memberships(op, types[source], types[node.name]))


@lower_op.register
def _(op: Readout, node: Node, lowering: _Lowering) -> Step:
    (source,) = node.inputs
    given = lowering.scales[source]
    match op.kind:
        case Reading.RATE:
            common = math.lcm(*given)
            lowering.scales[node.name] = (common * len(given),)
        case Reading.LAST:
            common = given[-1]
            lowering.scales[node.name] = (common,)
        case Reading.MAX:
            common = math.lcm(*given)
            lowering.scales[node.name] = (common,)
    gains = (1,) * len(given) if op.kind is Reading.LAST else tuple(common // scale for scale in given)
    return Reduce(source=source, kind=op.kind, gains=gains)


@lower_op.register
def _(op: Lif, node: Node, lowering: _Lowering) -> Step:
    threshold = _elements(op.threshold, "threshold", node, lowering)
    reset_value = _elements(op.reset_value, "reset_value", node, lowering)
    finest = math.lcm(threshold[1], reset_value[1] if op.reset is Reset.HARD else 1)
    step = _neurons(op, node, lowering, finest, threshold, reset_value if op.reset is Reset.HARD else None)
    lowering.scales[node.name] = (1,) * len(step.scales)
    return step


@lower_op.register
def _(op: Li, node: Node, lowering: _Lowering) -> Step:
    step = _neurons(op, node, lowering, 1, None, None)
    lowering.scales[node.name] = step.scales
    return step


def _affine(
    node: Node, lowering: _Lowering, weight: csr_array | None, weight_scale: int, bias: Ints | None, bias_scale: int
) -> Affine:
    (source,) = node.inputs
    given = lowering.scales[source]
    scales = tuple(math.lcm(scale * weight_scale, bias_scale) for scale in given)
    lowering.scales[node.name] = scales
    gains = tuple(scale // (old * weight_scale) for scale, old in zip(scales, given, strict=True))
    operand = Operand(source=source, gains=gains, weight=weight)
    return Affine(operands=(operand,), shifts=tuple(scale // bias_scale for scale in scales), bias=bias)


def _elements(value: Number, what: str, node: Node, lowering: _Lowering) -> tuple[Ints, int]:
    """A scalar or per-channel number for every element, and its scale."""
    graph = lowering.graph
    kind = graph.types[node.name]
    values = graph.site(node).channels(value, kind.size("C"), what)
    numerators, scale = dyadic(values, what, node, graph)
    places = math.prod(kind.size(axis) for axis in "HW" if kind.has(axis))
    return np.repeat(numerators, places), scale


def _neurons(
    op: Lif | Li,
    node: Node,
    lowering: _Lowering,
    finest: int,
    threshold: tuple[Ints, int] | None,
    reset_value: tuple[Ints, int] | None,
) -> Neurons:
    (source,) = node.inputs
    given = lowering.scales[source]
    (decay, decay_scale), (gain, gain_scale), (bias, bias_scale), (initial, v_scale) = (
        _elements(getattr(op, what), what, node, lowering) for what in ("decay", "input_scale", "leak_bias", "initial")
    )
    # Where nothing decays into a step, the unit of the step before is of no matter.
    carried = decay_scale if decay.any() else None
    scales, factors = _units(given, carried, v_scale, gain_scale, bias_scale, finest)
    decays, gains, biases = (
        _rows(array, [f[i] for f in factors], node, lowering) for i, array in enumerate((decay, gain, bias))
    )
    zeros = np.zeros_like(biases)
    thresholds, reset_values = (
        zeros if part is None else _rows(part[0], [scale // part[1] for scale in scales], node, lowering)
        for part in (threshold, reset_value)
    )
    lif = op if isinstance(op, Lif) else None
    return Neurons(
        source=source,
        scales=tuple(scales),
        fires=lif is not None,
        reset=lif.reset if lif else Reset.NONE,
        delayed=lif is not None and lif.reset is Reset.SOFT and lif.reset_delay,
        decay=decays,
        gain=gains,
        bias=biases,
        threshold=thresholds,
        fires_from=thresholds + int(lif is not None and lif.compare is Compare.GT),
        reset_value=reset_values,
        initial=initial,
    )


def _units(
    given: Sequence[int], carried: int | None, v_scale: int, gain_scale: int, bias_scale: int, finest: int
) -> tuple[list[int], list[list[int]]]:
    """Scales of the potentials at each step, and what decayed, gained and leaked numerators are multiplied by."""
    scales, factors = [], []
    for scale in given:
        parts = (1 if carried is None else carried * v_scale, gain_scale * scale, bias_scale)
        v_scale = math.lcm(*parts, finest)
        factors.append([v_scale // part for part in parts])
        scales.append(v_scale)
    return scales, factors


def _rows(array: Ints, factors: Sequence[int], node: Node, lowering: _Lowering) -> Ints:
    """One row a step: the array times the step's factor."""
    if max(1.0, float(np.abs(array).max())) * max(factors) > LARGEST:
        raise lowering.graph.site(node).fail(
            "its numbers do not fit 64-bit integers in the units of its potentials",
            "use fewer time steps, a coarser decay or fewer fraction bits",
        )
    return np.multiply.outer(np.array(factors, np.int64), array)


def _quotients(scales: Sequence[int], given: Sequence[int]) -> tuple[int, ...]:
    return tuple(scale // old for scale, old in zip(scales, given, strict=True))
