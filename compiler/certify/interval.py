"""S-IBP: intervals of every value, membrane potential and spike of a network over sets of inputs, layer by layer."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import singledispatch

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from compiler.certify import arithmetic
from compiler.certify.arithmetic import grid_of, magnitude, mean_grid, outward, products, sums
from compiler.certify.flip_sums import flip_sums
from compiler.certify.input_sets import InputSet
from compiler.certify.model import Bounds, FewFlips, Interval, Population, exactly, stacked
from compiler.certify.neuron_intervals import Numbers, integrator, neurons
from compiler.evaluate import Execution
from compiler.ir import CompileError, Encoding, Graph, Node, Param, Reading
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

Layer = Callable[[Tensor, Tensor, Tensor | None], Tensor]


@dataclass(frozen=True, slots=True)
class Run:
    """What the rules of one analysis share."""

    graph: Graph
    populations: dict[str, Population] = field(default_factory=dict)

    def array(self, param: Param) -> Tensor:
        """A parameter's values, f64."""
        return torch.from_numpy(self.graph.parameters[param.name].astype("f8"))

    def numbers(self, op: Lif | Li, value_ndim: int) -> Numbers:
        """An op's numbers as `evaluate` takes them: rounded to f32, along the channels of a value without time."""
        execution = Execution(self.graph)
        return lambda what: execution.number(getattr(op, what), value_ndim).double()


def interval(graph: Graph, sets: InputSet | Sequence[InputSet]) -> Bounds:
    """Bounds of all values over one input set for each sample, valid for what `evaluate` computes in f32.

    The model of arithmetic is that of compiler/certify/arithmetic.py. A Bernoulli encoding has to be taken off
    (`DropEncode`): its sets are of spikes.

    Source: equations 6.4, 6.6 and 6.8 and algorithm 6, where the following is corrected: membranes are initialised
    once, not at each step; (6.6) also holds for negative thresholds, other reset values and soft resets; (6.8) also
    for inputs that are not binary; ties are decided as the neuron does; all bounds are rounded outwards.
    Raises: CompileError if a set does not fit the input, f32 may overflow, or an op has no rule.
    """
    given = list(sets) if isinstance(sets, Sequence) else [sets]
    run = Run(graph)
    nodes: dict[str, Interval] = {}
    with torch.no_grad():
        for node in graph.nodes:
            inputs = [nodes[name] for name in node.inputs] or [stacked(graph, given)]
            nodes[node.name] = bound(node.op, inputs, node, run)
            _check_range(node, nodes[node.name], run)
    return Bounds(nodes=nodes, populations=run.populations)


def stability(bounds: Bounds) -> Mapping[str, Tensor]:
    """Neurons that do the same at each step, whatever the input: 1 always fires, -1 never does, 0 neither is proved.

    Shapes: by population, int8 (N, C, ...).
    """
    return {
        name: population.fires.all(0).to(torch.int8) - population.silent.all(0).to(torch.int8)
        for name, population in bounds.populations.items()
    }


@singledispatch
def bound(op: Op, inputs: list[Interval], node: Node, run: Run) -> Interval:
    """Bounds of one node's value from those of its inputs; one rule for each op."""
    raise CompileError(f"{node.name}: no rule to bound {type(op).__name__}", node.loc)


@bound.register
def _(op: Input, inputs: list[Interval], node: Node, run: Run) -> Interval:
    return inputs[0]


@bound.register
def _(op: Encode, inputs: list[Interval], node: Node, run: Run) -> Interval:
    if op.kind is not Encoding.DIRECT:
        hint = "give the spikes: DropEncode takes the encoding off the network" if op.kind is Encoding.BERNOULLI else ""
        raise CompileError(f"{node.name}: a {op.kind} code of an interval has no bounds here", node.loc, hint=hint)
    return _each(inputs[0], lambda v: v.expand(op.timesteps, *v.shape))


@bound.register
def _(op: Flatten, inputs: list[Interval], node: Node, run: Run) -> Interval:
    return _each(inputs[0], lambda v: v.flatten(-3))


@bound.register
def _(op: Conv2d, inputs: list[Interval], node: Node, run: Run) -> Interval:
    def conv(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return functional.conv2d(x, weight, bias, op.stride, op.padding, 1, op.groups)

    return _weighted(op, conv, 4, inputs[0], run)


@bound.register
def _(op: Linear, inputs: list[Interval], node: Node, run: Run) -> Interval:
    return _weighted(op, functional.linear, 2, inputs[0], run)


@bound.register
def _(op: BatchNorm, inputs: list[Interval], node: Node, run: Run) -> Interval:
    (x,) = inputs
    shape = (-1, *(1,) * (x.lower.ndim - run.graph.types[node.name].axes.index("C") - 1))
    mean, var, weight, shift = (run.array(p).reshape(shape) for p in (op.mean, op.var, op.weight, op.bias))
    inverse = 1 / (var + op.eps).sqrt()
    gain = weight * inverse
    ends = gain * (x.lower - mean) + shift, gain * (x.upper - mean) + shift
    centred = magnitude(x.lower, x.upper) + mean.abs()
    size = gain.abs() * centred + shift.abs()
    # Exact only where 1 / sqrt(var + eps) is a power of two: then the centred values have as many bits before it.
    scales = inverse.log2()
    is_dyadic = bool(((scales == scales.round()) & (var + op.eps == torch.exp2(-2 * scales))).all())
    is_dyadic = is_dyadic and op.eps == np.float32(op.eps)
    centred_grid = sums([x.grid, grid_of(mean.numpy())])
    grid = products(centred_grid, grid_of(gain.numpy())) if is_dyadic else None
    grid = sums([grid, grid_of(shift.numpy())])
    off = arithmetic.norm_error(size, grid)
    if grid is not None and centred_grid is not None:
        off = torch.where(centred <= 2.0 ** (arithmetic.BITS - centred_grid), off, arithmetic.norm_error(size, None))
    return _rounded(torch.minimum(*ends), torch.maximum(*ends), off, grid)


@bound.register
def _(op: AvgPool2d, inputs: list[Interval], node: Node, run: Run) -> Interval:
    (x,) = inputs

    def pool(values: Tensor) -> Tensor:
        merged = values.reshape(-1, *values.shape[-3:])
        made = functional.avg_pool2d(merged, op.kernel, op.stride, op.padding, op.ceil_mode, op.count_include_pad)
        return made.reshape(*values.shape[:-2], *made.shape[-2:])

    terms = op.kernel[0] * op.kernel[1]
    has_one_divisor = not op.ceil_mode and (op.count_include_pad or op.padding == (0, 0))
    # Windows that are cut off divide by less; all parts of windows of at most 2 x 2 are powers of two.
    grid = mean_grid(x.grid, terms) if has_one_divisor or max(op.kernel) <= 2 else None
    return _rounded(
        pool(x.lower), pool(x.upper), arithmetic.mean_error(terms, pool(magnitude(x.lower, x.upper)), grid), grid
    )


@bound.register
def _(op: MaxPool2d, inputs: list[Interval], node: Node, run: Run) -> Interval:
    def pool(values: Tensor) -> Tensor:
        merged = values.reshape(-1, *values.shape[-3:])
        made = functional.max_pool2d(merged, op.kernel, op.stride, op.padding, ceil_mode=op.ceil_mode)
        return made.reshape(*values.shape[:-2], *made.shape[-2:])

    return _monotone(inputs[0], pool)


@bound.register
def _(op: Add, inputs: list[Interval], node: Node, run: Run) -> Interval:
    left, right = inputs
    lower, upper, grid = left.lower + right.lower, left.upper + right.upper, sums([left.grid, right.grid])
    return _rounded(lower, upper, arithmetic.sum_error(magnitude(lower, upper), grid), grid)


@bound.register
def _(op: Scale, inputs: list[Interval], node: Node, run: Run) -> Interval:
    (x,) = inputs
    ndim = x.lower.ndim - run.graph.types[node.name].has("T")
    factor = Execution(run.graph).number(op.factor, ndim).double()
    ends, grid = (factor * x.lower, factor * x.upper), products(x.grid, grid_of(factor.numpy()))
    return _rounded(torch.minimum(*ends), torch.maximum(*ends), arithmetic.sum_error(magnitude(*ends), grid), grid)


@bound.register
def _(op: Readout, inputs: list[Interval], node: Node, run: Run) -> Interval:
    (x,) = inputs
    match op.kind:
        case Reading.RATE:
            size, grid = magnitude(x.lower, x.upper).mean(0), mean_grid(x.grid, len(x.lower))
            return _rounded(x.lower.mean(0), x.upper.mean(0), arithmetic.mean_error(len(x.lower), size, grid), grid)
        case Reading.LAST:
            return _monotone(x, lambda v: v[-1])
        case Reading.MAX:
            return _monotone(x, lambda v: v.amax(0))


@bound.register
def _(op: Lif, inputs: list[Interval], node: Node, run: Run) -> Interval:
    spikes, run.populations[node.name] = neurons(op, inputs[0], run.numbers(op, inputs[0].lower.ndim - 1))
    return spikes


@bound.register
def _(op: Li, inputs: list[Interval], node: Node, run: Run) -> Interval:
    return integrator(inputs[0], run.numbers(op, inputs[0].lower.ndim - 1))


def _weighted(op: Conv2d | Linear, layer: Layer, ndim: int, x: Interval, run: Run) -> Interval:
    """weight x + bias: of the box by centre and half-width, or by the few inputs that flip.

    center +- |weight| radius is what equation 6.8 becomes for inputs of any values.
    """
    weight = run.array(op.weight)
    bias = run.array(op.bias) if op.bias is not None else None
    leading = x.lower.shape[: x.lower.ndim - ndim + 1]  # N, or T and N
    lower, upper = (side.reshape(-1, *x.lower.shape[len(leading) :]) for side in (x.lower, x.upper))
    size = layer(magnitude(lower, upper), weight.abs(), bias.abs() if bias is not None else None)
    if x.flips is None:
        middle, spread = layer((lower + upper) / 2, weight, bias), layer((upper - lower) / 2, weight.abs(), None)
        least, largest = middle - spread, middle + spread
    else:
        clean = x.flips.clean.reshape(lower.shape)
        low, high = flip_sums(op, weight, lower + upper - 2 * clean, x.flips.most.expand(leading).flatten())
        base = layer(clean, weight, bias)
        least, largest = base + low.reshape(base.shape), base + high.reshape(base.shape)
    grid = products(x.grid, grid_of(weight.numpy()))
    if bias is not None:
        grid = sums([grid, grid_of(bias.numpy())])
    off = arithmetic.layer_error(weight[0].numel() + (bias is not None), size, grid)
    least, largest, off = (part.reshape(*leading, *part.shape[1:]) for part in (least, largest, off))
    return _rounded(least, largest, off, grid)


def _check_range(node: Node, value: Interval, run: Run) -> None:
    own = run.populations.get(node.name)
    errors = [value.error] if own is None else [own.membrane.error, own.after.error]
    if not all(bool(torch.isfinite(off).all()) for off in errors):
        raise CompileError(f"{node.name}: values may be larger than f32 holds", node.loc, hint="scale the weights down")


def _rounded(lower: Tensor, upper: Tensor, off: Tensor, grid: int | None) -> Interval:
    """The interval of a result with these bounds in real numbers, and this error."""
    lower, upper = outward(lower, upper, off, grid)
    return Interval(lower=lower, upper=upper, error=off, grid=grid)


def _monotone(x: Interval, function: Callable[[Tensor], Tensor]) -> Interval:
    """Bounds through a function that never decreases and only picks values."""
    return replace(exactly(function(x.lower), x.grid), upper=function(x.upper))


def _each(x: Interval, function: Callable[[Tensor], Tensor]) -> Interval:
    """Bounds through a function that only moves values, and so keeps how few of them flip."""
    flips = None if x.flips is None else FewFlips(clean=function(x.flips.clean), most=x.flips.most)
    return replace(_monotone(x, function), flips=flips)
