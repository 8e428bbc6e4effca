"""S-IBP in training: intervals of all values of a module, through which gradients flow back to its weights."""

from __future__ import annotations

from collections.abc import Callable
from functools import singledispatch

import torch
from torch import Tensor
from torch.nn import functional

from compiler.ir import CompileError, Encoding, Graph, Node, Reading
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
from frontends.robust.flip_sums import flip_sums
from frontends.robust.neurons import integrator, neurons
from frontends.robust.values import Bounds, Budget, Interval, Run
from frontends.to_torch import GraphModule

Layer = Callable[[Tensor, Tensor, Tensor | None], Tensor]


def intervals(graph: Graph, module: GraphModule, given: Interval) -> Bounds:
    """Bounds of all nodes' values over one set of inputs for each sample.

    The bounds of `compiler.certify.interval`, without what rounding and grids change there, and differentiable. Batch
    norms take their running statistics. `check_rules` tells beforehand whether every op has a rule.

    Shapes: given as the graph's input, (T, N, ...) or (N, ...).
    Source: equations 6.4, 6.6 and 6.8 and algorithm 6, corrected as there.
    """
    run = Run(graph, module)
    for node in graph.nodes:
        inputs = [run.bounds.nodes[name] for name in node.inputs] or [given]
        run.bounds.nodes[node.name] = bound(node.op, inputs, node, run)
    return run.bounds


def check_rules(graph: Graph) -> None:
    """Refuse a network with values that cannot be bounded.

    Raises: CompileError naming the node.
    """
    for node in graph.nodes:
        if bound.dispatch(type(node.op)) is bound.dispatch(Op):
            raise CompileError(f"{node.name}: no rule to bound {type(node.op).__name__}", node.loc)
        if isinstance(node.op, Encode) and node.op.kind is not Encoding.DIRECT:
            raise CompileError(
                f"{node.name}: a {node.op.kind} code has no bounds in training",
                node.loc,
                hint="direct codes have, and Bernoulli codes of the input itself",
            )


@singledispatch
def bound(op: Op, inputs: list[Interval], node: Node, run: Run) -> Interval:
    """Bounds of one node's value from those of its inputs; one rule for each op."""
    raise AssertionError(f"{type(op).__name__} was refused")


@bound.register
def _(op: Input, inputs: list[Interval], node: Node, run: Run) -> Interval:
    return inputs[0]


@bound.register
def _(op: Encode, inputs: list[Interval], node: Node, run: Run) -> Interval:
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
    axes = run.graph.types[node.name].axes
    mean, var, weight, bias = (
        run.array(param).reshape(-1, *(1,) * (len(axes) - axes.index("C") - 1))
        for param in (op.mean, op.var, op.weight, op.bias)
    )
    gain = weight / torch.sqrt(var + op.eps)
    return _ordered(gain * (inputs[0].lower - mean) + bias, gain * (inputs[0].upper - mean) + bias)


@bound.register
def _(op: Scale, inputs: list[Interval], node: Node, run: Run) -> Interval:
    factor = run.number(op.factor, run.graph.types[node.name].axes)
    return _ordered(factor * inputs[0].lower, factor * inputs[0].upper)


@bound.register
def _(op: AvgPool2d, inputs: list[Interval], node: Node, run: Run) -> Interval:
    def pool(x: Tensor) -> Tensor:
        return functional.avg_pool2d(x, op.kernel, op.stride, op.padding, op.ceil_mode, op.count_include_pad)

    return _monotone(inputs[0], lambda v: merged(pool, v, 4))


@bound.register
def _(op: MaxPool2d, inputs: list[Interval], node: Node, run: Run) -> Interval:
    def pool(x: Tensor) -> Tensor:
        return functional.max_pool2d(x, op.kernel, op.stride, op.padding, ceil_mode=op.ceil_mode)

    return _monotone(inputs[0], lambda v: merged(pool, v, 4))


@bound.register
def _(op: Add, inputs: list[Interval], node: Node, run: Run) -> Interval:
    left, right = inputs
    return Interval(lower=left.lower + right.lower, upper=left.upper + right.upper)


@bound.register
def _(op: Readout, inputs: list[Interval], node: Node, run: Run) -> Interval:
    match op.kind:
        case Reading.RATE:
            return _monotone(inputs[0], lambda v: v.mean(0))
        case Reading.LAST:
            return _monotone(inputs[0], lambda v: v[-1])
        case Reading.MAX:
            return _monotone(inputs[0], lambda v: v.amax(0))


@bound.register
def _(op: Lif, inputs: list[Interval], node: Node, run: Run) -> Interval:
    spikes, run.bounds.membranes[node.name] = neurons(op, inputs[0], run, run.graph.types[node.name].axes)
    return spikes


@bound.register
def _(op: Li, inputs: list[Interval], node: Node, run: Run) -> Interval:
    return integrator(op, inputs[0], run, run.graph.types[node.name].axes)


def merged(layer: Callable[[Tensor], Tensor], x: Tensor, ndim: int) -> Tensor:
    """A layer of values with ndim axes, with time and samples as one; a value repeated over time goes through once."""
    if x.ndim == ndim:
        return layer(x)
    if x.stride(0) == 0:
        y = layer(x[0])
        return y.expand(len(x), *y.shape)
    y = layer(x.flatten(0, 1))
    return y.reshape(*x.shape[:2], *y.shape[1:])


def _weighted(op: Conv2d | Linear, layer: Layer, ndim: int, x: Interval, run: Run) -> Interval:
    """weight x + bias: of the box by centre and half-width, or by the few inputs that flip."""
    if x.lower.ndim > ndim and x.lower.stride(0) == 0 and len(x.lower) > 1 and x.budget is None:
        steps, once = len(x.lower), Interval(lower=x.lower[0], upper=x.upper[0])
        return _monotone(_weighted(op, layer, ndim, once, run), lambda v: v.expand(steps, *v.shape))
    weight = run.array(op.weight)
    bias = run.array(op.bias) if op.bias is not None else None
    if x.budget is not None:
        clean, most = x.budget.clean, x.budget.most
        base = merged(lambda v: layer(v, weight, bias), clean, ndim)
        low, high = flip_sums(op, weight, clean.reshape(-1, *clean.shape[1 - ndim :]), most)
        return Interval(lower=base + low.reshape(base.shape), upper=base + high.reshape(base.shape))
    middle = merged(lambda v: layer(v, weight, bias), (x.lower + x.upper) / 2, ndim)
    spread = merged(lambda v: layer(v, weight.abs(), None), (x.upper - x.lower) / 2, ndim)
    return Interval(lower=middle - spread, upper=middle + spread)


def _ordered(first: Tensor, second: Tensor) -> Interval:
    return Interval(lower=torch.minimum(first, second), upper=torch.maximum(first, second))


def _monotone(x: Interval, function: Callable[[Tensor], Tensor]) -> Interval:
    return Interval(lower=function(x.lower), upper=function(x.upper))


def _each(x: Interval, function: Callable[[Tensor], Tensor]) -> Interval:
    """Through a function that only moves values, and so keeps how few of them flip."""
    budget = None if x.budget is None else Budget(clean=function(x.budget.clean), most=x.budget.most)
    return Interval(lower=function(x.lower), upper=function(x.upper), budget=budget)
