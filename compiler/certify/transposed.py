"""Linear forms of a node's value as linear forms of what it takes: one rule for each op."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import singledispatch

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from compiler.certify.relaxation import Neurons, Relaxation, maximum, relax
from compiler.ir import Encoding, Graph, Node, Number, Param, Reading, Reset
from compiler.ir.ops import (
    Add,
    AvgPool2d,
    BatchNorm,
    Conv2d,
    Encode,
    Flatten,
    Li,
    Lif,
    Linear,
    MaxPool2d,
    Op,
    Readout,
    Scale,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Sparse:
    """Coefficients of one element in each row: of element `unit` of a value's flattened channels, at every step.

    Shapes: values (R, T), unit (R,).
    """

    values: Tensor
    unit: Tensor

    def dense(self, shape: tuple[int, ...]) -> Tensor:
        """The same coefficients with all elements. Shapes: shape (C, ...) -> (R, T, C, ...)."""
        full = self.values.new_zeros(*self.values.shape, math.prod(shape))
        index = self.unit[:, None, None].expand(-1, full.shape[1], 1)
        return full.scatter(2, index, self.values[:, :, None]).reshape(*self.values.shape, *shape)


@dataclass(frozen=True, slots=True, kw_only=True)
class Dynamics:
    """Numbers of a population, one for each of its neurons. Shapes: (U,) with U = C * H * W, f64."""

    decay: Tensor
    scale: Tensor
    leak: Tensor
    initial: Tensor
    delayed: Tensor | None  # the threshold, if a soft reset acts one step later

    def __getitem__(self, units: Tensor) -> Dynamics:
        delayed = self.delayed
        return Dynamics(
            decay=self.decay[units],
            scale=self.scale[units],
            leak=self.leak[units],
            initial=self.initial[units],
            delayed=None if delayed is None else delayed[units],
        )


@dataclass(frozen=True, slots=True, eq=False)
class Weights:
    """A graph's parameters in f64, made once."""

    graph: Graph
    _arrays: dict[str, Tensor] = field(default_factory=dict)
    _dynamics: dict[str, Dynamics] = field(default_factory=dict)

    def array(self, param: Param) -> Tensor:
        """A parameter's values."""
        if param.name not in self._arrays:
            self._arrays[param.name] = torch.from_numpy(np.array(self.graph.parameters[param.name], np.float64))
        return self._arrays[param.name]

    def shape(self, name: str) -> tuple[int, ...]:
        """Channels, rows and columns of a value."""
        kind = self.graph.types[name]
        return tuple(kind.size(axis) for axis in "CHW" if kind.has(axis))

    def number(self, value: Number, node: Node) -> Tensor:
        """A number for each channel of a node's value. Shapes: (C, 1, ...)."""
        shape = self.shape(node.name)
        values = self.graph.site(node).channels(value, shape[0], "number")
        return torch.from_numpy(values.astype(np.float64)).reshape(-1, *(1,) * (len(shape) - 1))

    def dynamics(self, node: Node) -> Dynamics:
        """A population's numbers."""
        if node.name not in self._dynamics:
            op, shape = node.op, self.shape(node.name)
            assert isinstance(op, Lif | Li)

            def each(value: Number) -> Tensor:
                return self.number(value, node).expand(shape).flatten()

            is_delayed = isinstance(op, Lif) and op.reset is Reset.SOFT and op.reset_delay
            self._dynamics[node.name] = Dynamics(
                decay=each(op.decay),
                scale=each(op.input_scale),
                leak=each(op.leak_bias),
                initial=each(op.initial),
                delayed=each(op.threshold) if isinstance(op, Lif) and is_delayed else None,
            )
        return self._dynamics[node.name]


@dataclass(frozen=True, slots=True, kw_only=True)
class Ranges:
    """What is known of one sample's values.

    lower, upper: of each node. rounding: how far each computed value (of a population, each potential) may be from
    its equation in real numbers on the computed values it takes, and what f64 may lose in the form.
    cells: each population's neurons at each step. grids: its potentials are multiples of 2^-grid, where not None.
    Shapes: (T, C, ...), without T where the value has none; cells (U,).
    """

    lower: Mapping[str, Tensor]
    upper: Mapping[str, Tensor]
    rounding: Mapping[str, Tensor]
    cells: dict[str, list[Neurons]]
    grids: Mapping[str, int | None]


@dataclass(slots=True, kw_only=True)
class Descent:
    """Linear forms on their way to the input: `constant` is what they have shed so far.

    Shapes: R forms, constant (R,); free as the populations' coefficients (R, T, U).
    """

    weights: Weights
    ranges: Ranges
    relaxation: Relaxation
    constant: Tensor
    free: Mapping[str, Tensor] = field(default_factory=dict)

    def shed(self, terms: Tensor) -> None:
        """Add terms to the constant. Shapes: (R, ...)."""
        self.constant = self.constant + (terms.flatten(1).sum(1) if terms.ndim > 1 else terms)

    def widen(self, coefficients: Tensor, name: str) -> None:
        """Lower the forms by what rounding can do to a node's value. Shapes: (R, T, C, ...), or shorter in T."""
        error = self.ranges.rounding[name]
        if "T" in self.weights.graph.types[name].axes:
            error = error[: coefficients.shape[1]]
        self.constant = self.constant - coefficients.abs().flatten(1) @ error.flatten()


Coefficients = Tensor | Sparse


def transpose(node: Node, coefficients: Coefficients, run: Descent) -> list[Coefficients]:
    """Forms of a node's value as forms of its inputs, plus what is shed.

    Shapes: (R, T, C, ...) without N, or without T where the value has none; T may be shorter than the value's.
    """
    if isinstance(coefficients, Sparse):
        if isinstance(node.op, Linear):
            return [_linear_row(node.op, coefficients, node, run)]
        coefficients = coefficients.dense(run.weights.shape(node.name))
    return [*rule(node.op, coefficients, node, run)]


@singledispatch
def rule(op: Op, coefficients: Tensor, node: Node, run: Descent) -> Sequence[Tensor]:
    """The rule of an op for coefficients of all elements."""
    raise run.weights.graph.site(node).fail(f"no rule to bound {type(op).__name__}")


def _linear_row(op: Linear, rows: Sparse, node: Node, run: Descent) -> Tensor:
    if op.bias is not None:
        run.shed(rows.values.sum(1) * run.weights.array(op.bias)[rows.unit])
    error = run.ranges.rounding[node.name][: rows.values.shape[1], rows.unit]
    run.shed(-(rows.values.abs() * error.T).sum(1))
    return rows.values[:, :, None] * run.weights.array(op.weight)[rows.unit][:, None]


@rule.register
def _(op: Linear, coefficients: Tensor, node: Node, run: Descent) -> Sequence[Tensor]:
    run.widen(coefficients, node.name)
    if op.bias is not None:
        run.shed(coefficients * run.weights.array(op.bias))
    return [coefficients @ run.weights.array(op.weight)]


@rule.register
def _(op: Conv2d, coefficients: Tensor, node: Node, run: Descent) -> Sequence[Tensor]:
    run.widen(coefficients, node.name)
    if op.bias is not None:
        run.shed(coefficients.sum((-1, -2)) * run.weights.array(op.bias))
    weight = run.weights.array(op.weight)
    rest = [
        size + 2 * padding - kernel - (out - 1) * stride
        for size, out, kernel, stride, padding in zip(
            run.weights.shape(node.inputs[0])[1:],
            run.weights.shape(node.name)[1:],
            weight.shape[2:],
            op.stride,
            op.padding,
            strict=True,
        )
    ]
    flat = coefficients.flatten(0, -4)
    taken = functional.conv_transpose2d(flat, weight, None, op.stride, op.padding, rest, op.groups)
    return [taken.reshape(*coefficients.shape[:-3], *taken.shape[1:])]


@rule.register
def _(op: BatchNorm, coefficients: Tensor, node: Node, run: Descent) -> Sequence[Tensor]:
    run.widen(coefficients, node.name)
    mean, var, weight, bias = (run.weights.number(p, node) for p in (op.mean, op.var, op.weight, op.bias))
    gain = weight / torch.sqrt(var + op.eps)
    run.shed(coefficients * (bias - mean * gain))
    return [coefficients * gain]


@rule.register
def _(op: Scale, coefficients: Tensor, node: Node, run: Descent) -> Sequence[Tensor]:
    run.widen(coefficients, node.name)
    return [coefficients * run.weights.number(op.factor, node)]


@rule.register
def _(op: Add, coefficients: Tensor, node: Node, run: Descent) -> Sequence[Tensor]:
    run.widen(coefficients, node.name)
    return [coefficients, coefficients]


@rule.register
def _(op: Flatten, coefficients: Tensor, node: Node, run: Descent) -> Sequence[Tensor]:
    return [coefficients.reshape(*coefficients.shape[:-1], *run.weights.shape(node.inputs[0]))]


@rule.register
def _(op: AvgPool2d, coefficients: Tensor, node: Node, run: Descent) -> Sequence[Tensor]:
    run.widen(coefficients, node.name)
    channels, *size = run.weights.shape(node.inputs[0])
    ones = torch.ones(1, 1, *size, dtype=coefficients.dtype)
    averages = functional.avg_pool2d(ones, op.kernel, op.stride, op.padding, op.ceil_mode, op.count_include_pad)
    counts = functional.avg_pool2d(ones, op.kernel, op.stride, op.padding, op.ceil_mode, divisor_override=1)
    share = coefficients * (averages / counts.clamp(min=1.0))[0]
    kernel = ones.new_ones(channels, 1, *op.kernel)
    spread = functional.conv_transpose2d(share.flatten(0, -4), kernel, None, op.stride, groups=channels)
    return [_cropped(spread, op.padding, size).reshape(*coefficients.shape[:-2], *size)]


@rule.register
def _(op: MaxPool2d, coefficients: Tensor, node: Node, run: Descent) -> Sequence[Tensor]:
    (source,) = node.inputs
    shape = run.weights.shape(source)
    places = _window_places(op, shape[1:], run.weights.shape(node.name)[1:])
    lower, upper = (bounds.flatten(-2) for bounds in (run.ranges.lower[source], run.ranges.upper[source]))
    if run.weights.graph.types[source].has("T"):
        lower, upper = lower[: coefficients.shape[1]], upper[: coefficients.shape[1]]
    there = places >= 0
    at = places.clamp(min=0)
    windows = maximum(*(bounds[..., at].masked_fill(~there, -torch.inf).movedim(-2, 0) for bounds in (lower, upper)))
    run.widen(coefficients, node.name)
    parts, constant = windows.lower(coefficients.flatten(-2))
    run.shed(constant)
    taken = coefficients.new_zeros(*coefficients.shape[:-2], math.prod(shape[1:]))
    for j in range(len(places)):
        taken = taken.index_add(-1, at[j][there[j]], parts[:, j][..., there[j]])
    return [taken.reshape(*coefficients.shape[:-2], *shape[1:])]


@rule.register
def _(op: Readout, coefficients: Tensor, node: Node, run: Descent) -> Sequence[Tensor]:
    (source,) = node.inputs
    steps = run.weights.graph.types[source].size("T")
    run.widen(coefficients, node.name)
    match op.kind:
        case Reading.RATE:
            return [(coefficients / steps)[:, None].expand(-1, steps, *coefficients.shape[1:])]
        case Reading.LAST:
            before = coefficients.new_zeros(len(coefficients), steps - 1, *coefficients.shape[1:])
            return [torch.cat([before, coefficients[:, None]], 1)]
        case Reading.MAX:
            parts, constant = maximum(run.ranges.lower[source], run.ranges.upper[source]).lower(coefficients)
            run.shed(constant)
            return [parts]


@rule.register
def _(op: Encode, coefficients: Tensor, node: Node, run: Descent) -> Sequence[Tensor]:
    if op.kind is not Encoding.DIRECT:
        raise run.weights.graph.site(node).fail(
            f"no linear bounds go through {op.kind} encoding", "drop the encoding: the network then takes its spikes"
        )
    return [coefficients.sum(1)]


@rule.register
def _(op: Li, coefficients: Tensor, node: Node, run: Descent) -> Sequence[Tensor]:
    own = run.weights.dynamics(node)
    flat = coefficients.flatten(2)
    potentials = [flat[:, -1]]
    for t in reversed(range(flat.shape[1] - 1)):
        potentials.append(flat[:, t] + own.decay * potentials[-1])
    run.shed(own.decay * own.initial * potentials[-1])
    over_time = torch.stack(potentials[::-1], 1)
    run.widen(over_time, node.name)
    return [_into_input(own, over_time, run).reshape(coefficients.shape)]


@rule.register
def _(op: Lif, coefficients: Tensor, node: Node, run: Descent) -> Sequence[Tensor]:
    own = run.weights.dynamics(node)
    spikes = coefficients.flatten(2)
    cells = run.ranges.cells[node.name][: spikes.shape[1]]
    potentials = through_time(own, cells, [*spikes.unbind(1)], None, run, run.free.get(node.name))
    run.widen(potentials, node.name)
    return [_into_input(own, potentials, run).reshape(coefficients.shape)]


def potentials_of(node: Node, step: int, units: Tensor, signs: Tensor, run: Descent) -> Sparse:
    """Forms sign * m[step] of single neurons, as forms of their inputs up to that step.

    Shapes: units and signs (R,).
    """
    own = run.weights.dynamics(node)[units]
    cells = [cell[units] for cell in run.ranges.cells[node.name][:step]]
    silent = [torch.zeros_like(signs)] * step
    potentials = through_time(own, cells, silent, signs, run, None)
    error = run.ranges.rounding[node.name].flatten(1)[: step + 1, units]
    run.shed(-(potentials.abs() * error.T).sum(1))
    return Sparse(values=_into_input(own, potentials, run), unit=units)


def through_time(
    own: Dynamics,
    cells: Sequence[Neurons],
    spikes: Sequence[Tensor],
    after: Tensor | None,
    run: Descent,
    free: Tensor | None,
) -> Tensor:
    """Forms of spikes as forms of membrane potentials, latest step first; what is constant is shed.

    The form of v[t] that the step after it leaves is decay * that of m[t + 1]; `after` is the form of the potential
    after the last of the spikes.
    Shapes: spikes and after (R, ...) for neurons (...) -> (R, T, ...), T one longer with `after`.
    Source: algorithm 7, with its constants outside of the sum over time.
    """
    potentials = [] if after is None else [after]
    for t in reversed(range(len(spikes))):
        spike, left_over = spikes[t], torch.zeros_like(spikes[t])
        if potentials:
            left_over = own.decay * potentials[-1]
            spike = spike if own.delayed is None else spike - own.delayed * potentials[-1]
        slope, constant = relax(run.relaxation, cells[t], spike, left_over, None if free is None else free[:, t])
        run.shed(constant)
        potentials.append(slope)
    run.shed(own.decay * own.initial * potentials[-1])
    return torch.stack(potentials[::-1], 1)


def _into_input(own: Dynamics, potentials: Tensor, run: Descent) -> Tensor:
    """Forms of potentials as forms of what flows into the neurons, all steps alike. Shapes: (R, T, ...) alike."""
    run.shed(potentials.sum(1) * own.leak)
    scale = own.scale if potentials.ndim > 2 else own.scale[:, None]
    return potentials * scale


def _cropped(x: Tensor, padding: tuple[int, int], size: Sequence[int]) -> Tensor:
    """The part of padded maps inside the data; zeros where windows do not reach."""
    inside = x[..., padding[0] : padding[0] + size[0], padding[1] : padding[1] + size[1]]
    return functional.pad(inside, (0, size[1] - inside.shape[-1], 0, size[0] - inside.shape[-2]))


def _window_places(op: MaxPool2d, size: Sequence[int], out: Sequence[int]) -> Tensor:
    """Flat places of the elements of every window, -1 where there is none. Shapes: (kernel, windows)."""
    rows, columns = (
        torch.arange(extent)[:, None] * stride - padding + torch.arange(kernel)
        for extent, stride, padding, kernel in zip(out, op.stride, op.padding, op.kernel, strict=True)
    )
    row, column = rows[:, None, :, None], columns[None, :, None, :]
    there = (row >= 0) & (row < size[0]) & (column >= 0) & (column < size[1])
    places = torch.where(there, row * size[1] + column, -1)
    return places.flatten(0, 1).flatten(1).T.contiguous()
