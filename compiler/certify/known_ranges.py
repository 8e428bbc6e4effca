"""What S-IBP knows of one sample, as linear bounds need it: ranges, rounding errors and the state of each neuron."""

from __future__ import annotations

from functools import singledispatch

import torch
from torch import Tensor
from torch.nn import functional

from compiler.certify.arithmetic import magnitude
from compiler.certify.model import Bounds, Interval
from compiler.certify.relaxation import Neurons, neurons
from compiler.certify.transposed import Ranges, Weights
from compiler.ir import Node, Reset
from compiler.ir.ops import Add, AvgPool2d, BatchNorm, Conv2d, Encode, Flatten, Li, Lif, Linear, MaxPool2d, Op, Scale

# f64 loses 2^-53 of a term with each operation, and no term of a form goes through 2^23 of them: at one node those are
# the sums over the layers that read it and over the constants.
LOST = 2.0**-30


def sample_ranges(weights: Weights, bounds: Bounds, sample: int) -> Ranges:
    """One sample of a batch's bounds.

    A form a.y of what `evaluate` computes is at least a.f(x) - |a|.error, f the op in real numbers; of a population,
    error is that of a potential and of the reset before it. To that comes what f64 may lose where the form is written
    in terms of x: at most LOST |a|.size, with the sum of its terms' absolute values as size.
    """
    graph = weights.graph
    nodes = {name: _of(graph.types[name].axes, sample, own) for name, own in bounds.nodes.items()}
    rounding, cells = {}, {}
    for node in graph.nodes:
        taken = [magnitude(nodes[name].lower, nodes[name].upper) for name in node.inputs]
        error = nodes[node.name].error
        if isinstance(node.op, Lif):
            population = bounds.populations[node.name]
            membrane, after = (_of("TN", sample, part) for part in (population.membrane, population.after))
            reset_error = torch.cat([torch.zeros_like(after.error[:1]), after.error[:-1]])
            error = membrane.error + weights.number(node.op.decay, node) * reset_error
            cells[node.name] = [
                neurons_of(weights, node, m.flatten(), n.flatten())
                for m, n in zip(membrane.lower, membrane.upper, strict=True)
            ]
            taken += [magnitude(part.lower, part.upper) for part in (membrane, after)]
        elif isinstance(node.op, Li):
            taken.append(magnitude(nodes[node.name].lower, nodes[node.name].upper))
        if taken:
            rounding[node.name] = error + LOST * size_of(node.op, taken, node, weights)
    return Ranges(
        lower={name: own.lower for name, own in nodes.items()},
        upper={name: own.upper for name, own in nodes.items()},
        rounding=rounding,
        cells=cells,
        grids={name: population.membrane.grid for name, population in bounds.populations.items()},
    )


def neurons_of(weights: Weights, node: Node, lower: Tensor, upper: Tensor) -> Neurons:
    """A population's neurons at one step, from bounds of their potentials. Shapes: lower and upper (U,)."""
    op = node.op
    assert isinstance(op, Lif)
    shape = weights.shape(node.name)
    threshold, reset_value = (
        weights.number(value, node).expand(shape).flatten() for value in (op.threshold, op.reset_value)
    )
    reset = Reset.NONE if op.reset is Reset.SOFT and op.reset_delay else op.reset
    return neurons(lower, upper, threshold, reset, reset_value, op.compare)


def _of(axes: str, sample: int, own: Interval) -> Interval:
    at = axes.index("N")
    lower, upper, error = (
        part.expand(own.lower.shape).select(at, sample) for part in (own.lower, own.upper, own.error)
    )
    return Interval(lower=lower, upper=upper, error=error, grid=own.grid)


@singledispatch
def size_of(op: Op, taken: list[Tensor], node: Node, weights: Weights) -> Tensor:
    """The sum of the absolute values of the terms that make a value; of a readout, the largest value.

    taken: largest absolute values of the inputs; of Lif and Li, also of their potentials.
    Shapes: as the value, without N.
    """
    return taken[0].amax(0)


@size_of.register(Encode)
@size_of.register(Flatten)
def _(op: Encode | Flatten, taken: list[Tensor], node: Node, weights: Weights) -> Tensor:
    return torch.zeros((), dtype=torch.float64)  # no arithmetic


@size_of.register
def _(op: Linear, taken: list[Tensor], node: Node, weights: Weights) -> Tensor:
    bias = None if op.bias is None else weights.array(op.bias).abs()
    return functional.linear(taken[0], weights.array(op.weight).abs(), bias)


@size_of.register
def _(op: Conv2d, taken: list[Tensor], node: Node, weights: Weights) -> Tensor:
    bias = None if op.bias is None else weights.array(op.bias).abs()
    return functional.conv2d(taken[0], weights.array(op.weight).abs(), bias, op.stride, op.padding, 1, op.groups)


@size_of.register
def _(op: BatchNorm, taken: list[Tensor], node: Node, weights: Weights) -> Tensor:
    mean, var, weight, bias = (weights.number(p, node) for p in (op.mean, op.var, op.weight, op.bias))
    return (weight / torch.sqrt(var + op.eps)).abs() * (taken[0] + mean.abs()) + bias.abs()


@size_of.register
def _(op: AvgPool2d, taken: list[Tensor], node: Node, weights: Weights) -> Tensor:
    return functional.avg_pool2d(taken[0], op.kernel, op.stride, op.padding, op.ceil_mode, op.count_include_pad)


@size_of.register
def _(op: MaxPool2d, taken: list[Tensor], node: Node, weights: Weights) -> Tensor:
    return functional.max_pool2d(taken[0], op.kernel, op.stride, op.padding, ceil_mode=op.ceil_mode)


@size_of.register
def _(op: Add, taken: list[Tensor], node: Node, weights: Weights) -> Tensor:
    return taken[0] + taken[1]


@size_of.register
def _(op: Scale, taken: list[Tensor], node: Node, weights: Weights) -> Tensor:
    return weights.number(op.factor, node).abs() * taken[0]


@size_of.register(Lif)
@size_of.register(Li)
def _(op: Lif | Li, taken: list[Tensor], node: Node, weights: Weights) -> Tensor:
    scale, leak, initial = (weights.number(v, node).abs() for v in (op.input_scale, op.leak_bias, op.initial))
    potentials = torch.stack(taken[1:]).amax((0, 1))  # of all steps
    threshold = weights.number(op.threshold, node).abs() if isinstance(op, Lif) else 0.0
    return scale * taken[0] + leak + 2 * potentials + initial + threshold
