"""A graph as the few kinds of steps that the checker knows: most ops become a matrix."""

from __future__ import annotations

from dataclasses import dataclass
from functools import singledispatch
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from compiler.certify_check.rounding import Reals, fineness, joined, multiplied
from compiler.ir import Encoding, Graph, Node, Number, Param, Reading
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

if TYPE_CHECKING:
    from scipy.sparse import csr_array

Integers = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Given:
    """The input."""


@dataclass(frozen=True, slots=True)
class Same:
    """The same values in the same order of channels, rows and columns."""


@dataclass(frozen=True, slots=True)
class Repeat:
    """The one step there is, so many times."""

    steps: int


@dataclass(frozen=True, slots=True)
class Sum:
    """Of two values."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Affine:
    """y = matrix x + bias at each step.

    operations: rounded ones that a term goes through in f32. mass: absolute values of what makes the bias; center: of
    what is subtracted from x before the product, where it is. grid: of matrix and bias, None unless all of it is
    computed exactly where sums are.
    Shapes: matrix (outputs, inputs), bias and mass (outputs,), center (inputs,).
    """

    matrix: csr_array | Reals
    bias: Reals
    mass: Reals
    operations: int
    grid: int | None
    bias_grid: int | None
    center: Reals | None = None
    center_grid: int | None = 0

    def result_grid(self, grid: int | None) -> int | None:
        """The grid of y, from that of x."""
        return joined(multiplied(joined(grid, self.center_grid), self.grid), self.bias_grid)


@dataclass(frozen=True, slots=True)
class Greatest:
    """The maximum of each window. places: (J, outputs) into the inputs, -1 where a window has no more."""

    places: Integers


@dataclass(frozen=True, slots=True)
class OverTime:
    """A readout."""

    kind: Reading


@dataclass(frozen=True, slots=True, kw_only=True)
class Neurons:
    """A population, spiking or not; numbers are f32 values, one for each neuron. Shapes: (U,)."""

    op: Lif | Li
    decay: Reals
    scale: Reals
    leak: Reals
    initial: Reals
    threshold: Reals
    value: Reals  # after a hard reset


Layer = Given | Same | Repeat | Sum | Affine | Greatest | OverTime | Neurons


@dataclass(frozen=True, slots=True)
class Place:
    """A node in its graph."""

    graph: Graph
    node: Node

    def array(self, param: Param) -> Reals:
        return self.graph.parameters[param.name].astype(np.float64)

    def size(self, name: str) -> tuple[int, ...]:
        """Channels, rows and columns."""
        kind = self.graph.types[name]
        return tuple(kind.size(axis) for axis in "CHW" if kind.has(axis))

    def each(self, value: Number) -> Reals:
        """A number for each element of the node's value."""
        shape = self.size(self.node.name)
        own = self.graph.site(self.node).channels(value, shape[0], "number").astype(np.float64)
        return np.repeat(own, int(np.prod(shape[1:], dtype=np.int64)))


def layers(graph: Graph) -> dict[str, Layer]:
    """Every node as a layer, in order.

    Raises: CompileError for an op without a rule, and an encoding other than direct.
    """
    return {node.name: layer(node.op, Place(graph, node)) for node in graph.nodes}


@singledispatch
def layer(op: Op, at: Place) -> Layer:
    """One op as a layer."""
    raise at.graph.site(at.node).fail(f"certificates of {type(op).__name__} cannot be checked")


@layer.register
def _(op: Input, at: Place) -> Layer:
    return Given()


@layer.register
def _(op: Flatten, at: Place) -> Layer:
    return Same()


@layer.register
def _(op: Add, at: Place) -> Layer:
    return Sum()


@layer.register
def _(op: Readout, at: Place) -> Layer:
    return OverTime(op.kind)


@layer.register
def _(op: Encode, at: Place) -> Layer:
    if op.kind is not Encoding.DIRECT:
        raise at.graph.site(at.node).fail(
            f"certificates behind a {op.kind} code cannot be checked", "drop the encoding: they are about its spikes"
        )
    return Repeat(op.timesteps)


@layer.register
def _(op: Linear, at: Place) -> Layer:
    weight = at.array(op.weight)
    bias = np.zeros(len(weight)) if op.bias is None else at.array(op.bias)
    return _weighted(weight, bias, weight.shape[1] + (op.bias is not None), fineness(weight))


@layer.register
def _(op: Conv2d, at: Place) -> Layer:
    from scipy.sparse import csr_array

    weight = at.array(op.weight)
    out, per_group, *kernel = weight.shape
    channels, *size = at.size(at.node.inputs[0])
    places = _windows(tuple(kernel), op.stride, op.padding, size, at.size(at.node.name)[1:])  # (kernel, positions)
    group = np.arange(out) // (out // op.groups)
    source = group[:, None] * per_group + np.arange(per_group)  # (out, per_group)
    shape = (out, per_group, *places.shape)
    columns = np.broadcast_to(source[:, :, None, None] * (size[0] * size[1]) + places, shape)
    rows = np.broadcast_to((np.arange(out) * places.shape[1])[:, None, None, None] + np.arange(places.shape[1]), shape)
    values = np.broadcast_to(weight.reshape(out, per_group, -1)[..., None], shape)
    inside = np.broadcast_to(places >= 0, shape)
    matrix = csr_array(
        (values[inside], (rows[inside], columns[inside])), shape=(out * places.shape[1], channels * size[0] * size[1])
    )
    bias = np.zeros(out) if op.bias is None else at.array(op.bias)
    terms = per_group * len(places) + (op.bias is not None)
    return _weighted(matrix, np.repeat(bias, places.shape[1]), terms, fineness(weight))


@layer.register
def _(op: Scale, at: Place) -> Layer:
    factor = at.each(op.factor)
    return _weighted(_diagonal(factor), np.zeros_like(factor), 1, fineness(factor))


@layer.register
def _(op: BatchNorm, at: Place) -> Layer:
    """In f32 either x gain + (bias - mean gain) or ((x - mean) / deviation) weight + bias, gain = weight / deviation.

    1 / deviation is behind 3 roundings: of eps and of its sum with var, which the root halves, of the root and of the
    quotient. First way: gain behind 4, its product with x 5, the sum 6; with the mean 5, both sums 7. Second way: the
    difference 1, times 1 / deviation 5, times weight 6, the sum 7.
    """
    mean, var, weight, bias = (at.each(param) for param in (op.mean, op.var, op.weight, op.bias))
    variance = var + op.eps
    gain = weight / np.sqrt(variance)
    mantissa, exponent = np.frexp(variance)
    is_power = bool(np.all((mantissa == 0.5) & (exponent % 2 == 1)))  # of 4
    is_exact = is_power and bool(np.all(variance - op.eps == var)) and op.eps == np.float32(op.eps)
    return Affine(
        matrix=_diagonal(gain),
        bias=bias - gain * mean,
        mass=np.abs(gain * mean) + np.abs(bias),
        operations=7,
        grid=fineness(gain) if is_exact else None,
        bias_grid=fineness(bias),
        center=np.abs(mean),
        center_grid=fineness(mean),
    )


@layer.register
def _(op: AvgPool2d, at: Place) -> Layer:
    from scipy.sparse import csr_array, eye_array, kron

    channels, *size = at.size(at.node.inputs[0])
    out = at.size(at.node.name)[1:]
    places = _windows(op.kernel, op.stride, op.padding, size, out)
    divisors = (places >= 0).sum(0)
    if op.count_include_pad:  # also the padding, but not what lies beyond it
        rows, columns = (
            np.minimum(np.arange(n) * op.stride[k] - op.padding[k] + op.kernel[k], size[k] + op.padding[k])
            - (np.arange(n) * op.stride[k] - op.padding[k])
            for k, n in enumerate(out)
        )
        divisors = (rows[:, None] * columns).reshape(-1)
    inside = places >= 0
    windows = np.broadcast_to(np.arange(places.shape[1]), places.shape)
    shares = np.broadcast_to(1.0 / divisors, places.shape)
    one = csr_array((shares[inside], (windows[inside], places[inside])), shape=(places.shape[1], size[0] * size[1]))
    matrix = csr_array(kron(eye_array(channels), one))
    is_power = bool(np.all(divisors & (divisors - 1) == 0))
    grid = int(divisors.max()).bit_length() - 1 if is_power else None
    return _weighted(matrix, np.zeros(matrix.shape[0]), len(places) + 1, grid)


@layer.register
def _(op: MaxPool2d, at: Place) -> Layer:
    channels, *size = at.size(at.node.inputs[0])
    places = _windows(op.kernel, op.stride, op.padding, size, at.size(at.node.name)[1:])
    all_channels = (np.arange(channels) * (size[0] * size[1]))[:, None] + places[:, None]
    return Greatest(np.where(places[:, None] < 0, -1, all_channels).reshape(len(places), -1))


@layer.register(Lif)
@layer.register(Li)
def _(op: Lif | Li, at: Place) -> Layer:
    threshold, value = (op.threshold, op.reset_value) if isinstance(op, Lif) else (0.0, 0.0)
    return Neurons(
        op=op,
        decay=at.each(op.decay),
        scale=at.each(op.input_scale),
        leak=at.each(op.leak_bias),
        initial=at.each(op.initial),
        threshold=at.each(threshold),
        value=at.each(value),
    )


def _weighted(matrix: csr_array | Reals, bias: Reals, operations: int, grid: int | None) -> Affine:
    return Affine(
        matrix=matrix, bias=bias, mass=np.abs(bias), operations=operations, grid=grid, bias_grid=fineness(bias)
    )


def _diagonal(values: Reals) -> csr_array:
    from scipy.sparse import csr_array, diags_array

    return csr_array(diags_array(values))


def _windows(
    kernel: tuple[int, ...], stride: tuple[int, int], padding: tuple[int, int], size: list[int], out: tuple[int, ...]
) -> Integers:
    """Flat places that windows cover, -1 outside of the map. Shapes: (kernel elements, windows)."""
    (y, x) = (
        np.arange(kernel[k])[:, None] + np.arange(out[k]) * stride[k] - padding[k] for k in range(2)
    )  # (kernel, windows) each
    rows, columns = y[:, None, :, None], x[None, :, None, :]
    inside = (rows >= 0) & (rows < size[0]) & (columns >= 0) & (columns < size[1])
    flat: Integers = np.where(inside, rows * size[1] + columns, -1).reshape(kernel[0] * kernel[1], out[0] * out[1])
    return flat
