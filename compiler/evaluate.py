"""Reference execution of a graph in torch, f32: the meaning against which everything else is checked."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from functools import singledispatch

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from compiler.codes import bernoulli_draws, latency_code
from compiler.ir import Compare, Encoding, Graph, Number, Param, Reading, Reset
from compiler.ir.graph import Node
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
from hwmodel.errors import CompileError


@dataclass(frozen=True, slots=True)
class Evaluation:
    """The output, and the values and membrane potentials of the traced nodes."""

    output: Tensor
    traces: Mapping[str, Tensor]
    membranes: Mapping[str, Tensor]  # m[t] of traced Lif and Li nodes


@dataclass(slots=True)
class Execution:
    """What the rules of one execution share; whoever executes on other arrays than the graph's overrides `array`."""

    graph: Graph
    traced: Collection[str] = ()
    thresholds: Mapping[str, float] = field(default_factory=dict)
    first_sample: int = 0
    membranes: dict[str, Tensor] = field(default_factory=dict)

    def array(self, param: Param) -> Tensor:
        """A parameter's values."""
        return torch.from_numpy(np.array(self.graph.parameters[param.name]))

    def number(self, value: Number, value_ndim: int) -> Tensor:
        """A number shaped to broadcast along axis 1 (channels) of a value without time."""
        if not isinstance(value, Param):
            return torch.tensor(value, dtype=torch.float32)
        return self.array(value).reshape(-1, *(1,) * (value_ndim - 2))


def evaluate(
    graph: Graph,
    x: Tensor,
    *,
    traces: Collection[str] = (),
    thresholds: Mapping[str, float] | None = None,
    first_sample: int = 0,
) -> Evaluation:
    """Execute the graph on a batch.

    traces: nodes whose values (and membrane potentials) are kept.
    thresholds: by Lif node, a threshold to use instead of its own.
    first_sample: index of the batch's first sample; Bernoulli draws depend on seed and sample index only.

    Shapes: x as the input node says, N any batch; values are (T, N, C, ...).
    Raises: CompileError if x does not fit the input, is not finite, or a name is not in the graph.
    """
    _check_input(graph, x)
    for name in (*traces, *(thresholds or {})):
        if name not in graph.types:
            raise CompileError(f"{name} is not a node of the graph", graph.input.loc)
    run = Execution(graph, traces, thresholds or {}, first_sample)
    values: dict[str, Tensor] = {}
    last_use = {name: node.name for node in graph.nodes for name in node.inputs}
    kept = {}
    with torch.no_grad():
        for node in graph.nodes:
            inputs = [values[name] for name in node.inputs]
            values[node.name] = execute(node.op, inputs or [x.to(torch.float32)], node, run)
            if node.name in traces:
                kept[node.name] = values[node.name]
            for name in set(node.inputs):
                if last_use[name] == node.name and name != graph.output:
                    del values[name]
    return Evaluation(values[graph.output], kept, run.membranes)


@singledispatch
def execute(op: Op, inputs: list[Tensor], node: Node, run: Execution) -> Tensor:
    """The value of one node; one rule for each op."""
    raise CompileError(f"{node.name}: no rule to evaluate {type(op).__name__}", node.loc)


@execute.register
def _(op: Input, inputs: list[Tensor], node: Node, run: Execution) -> Tensor:
    return inputs[0]


@execute.register
def _(op: Encode, inputs: list[Tensor], node: Node, run: Execution) -> Tensor:
    (x,) = inputs
    match op.kind:
        case Encoding.DIRECT:
            return x.expand(op.timesteps, *x.shape).contiguous()  # strides of 0 change how a batch norm rounds
        case Encoding.BERNOULLI:
            draws = (
                run.array(op.mask)
                if op.mask is not None
                else torch.from_numpy(bernoulli_draws(op.seed or 0, op.timesteps, x.shape, run.first_sample))
            )
            return (draws < x).to(torch.float32)
        case Encoding.LATENCY:
            return torch.from_numpy(latency_code(x.detach().numpy(), op.timesteps))


@execute.register
def _(op: Conv2d, inputs: list[Tensor], node: Node, run: Execution) -> Tensor:
    (x,) = inputs
    bias = run.array(op.bias) if op.bias is not None else None
    weight = run.array(op.weight)
    return _merged(x, 4, lambda v: functional.conv2d(v, weight, bias, op.stride, op.padding, 1, op.groups))


@execute.register
def _(op: Linear, inputs: list[Tensor], node: Node, run: Execution) -> Tensor:
    bias = run.array(op.bias) if op.bias is not None else None
    return _merged(inputs[0], 2, lambda v: functional.linear(v, run.array(op.weight), bias))


@execute.register
def _(op: BatchNorm, inputs: list[Tensor], node: Node, run: Execution) -> Tensor:
    (x,) = inputs
    mean, var, weight, bias = (run.array(p) for p in (op.mean, op.var, op.weight, op.bias))
    ndim = 4 if x.ndim >= 4 else 2
    return _merged(x, ndim, lambda v: functional.batch_norm(v, mean, var, weight, bias, False, 0.0, op.eps))


@execute.register
def _(op: AvgPool2d, inputs: list[Tensor], node: Node, run: Execution) -> Tensor:
    return _merged(
        inputs[0],
        4,
        lambda v: functional.avg_pool2d(v, op.kernel, op.stride, op.padding, op.ceil_mode, op.count_include_pad),
    )


@execute.register
def _(op: MaxPool2d, inputs: list[Tensor], node: Node, run: Execution) -> Tensor:
    return _merged(
        inputs[0],
        4,
        lambda v: functional.max_pool2d(v, op.kernel, op.stride, op.padding, ceil_mode=op.ceil_mode),
    )


@execute.register
def _(op: Flatten, inputs: list[Tensor], node: Node, run: Execution) -> Tensor:
    return inputs[0].flatten(-3)


@execute.register
def _(op: Add, inputs: list[Tensor], node: Node, run: Execution) -> Tensor:
    return inputs[0] + inputs[1]


@execute.register
def _(op: Scale, inputs: list[Tensor], node: Node, run: Execution) -> Tensor:
    (x,) = inputs
    has_time = run.graph.types[node.name].has("T")
    return x * run.number(op.factor, x.ndim - has_time)


@execute.register
def _(op: Readout, inputs: list[Tensor], node: Node, run: Execution) -> Tensor:
    (x,) = inputs
    match op.kind:
        case Reading.RATE:
            return x.mean(0)
        case Reading.LAST:
            return x[-1]
        case Reading.MAX:
            return x.amax(0)


@execute.register
def _(op: Lif, inputs: list[Tensor], node: Node, run: Execution) -> Tensor:
    (x,) = inputs
    traced = node.name in run.traced
    number = {
        what: run.number(getattr(op, what), x.ndim - 1) for what in ("decay", "threshold", "reset_value", "initial")
    }
    threshold = number["threshold"]
    if node.name in run.thresholds:
        threshold = torch.tensor(run.thresholds[node.name])
    v = number["initial"].expand(x.shape[1:])
    spikes = torch.empty(x.shape, dtype=torch.float32)
    membranes = torch.empty(x.shape if traced else 0)
    fired = torch.zeros(x.shape[1:], dtype=torch.bool)
    for t in range(x.shape[0]):
        m = _integrate(op, number["decay"] * v, x[t], run)
        if op.reset is Reset.SOFT and op.reset_delay:
            m = m - threshold * fired
        fired = m >= threshold if op.compare is Compare.GE else m > threshold
        if op.reset is Reset.HARD:
            v = torch.where(fired, number["reset_value"], m)
        elif op.reset is Reset.SOFT and not op.reset_delay:
            v = m - threshold * fired
        else:
            v = m
        spikes[t] = fired
        if traced:
            membranes[t] = m
    if traced:
        run.membranes[node.name] = membranes
    return spikes


@execute.register
def _(op: Li, inputs: list[Tensor], node: Node, run: Execution) -> Tensor:
    (x,) = inputs
    decay = run.number(op.decay, x.ndim - 1)
    m = run.number(op.initial, x.ndim - 1).expand(x.shape[1:])
    membranes = torch.empty(x.shape)
    for t in range(x.shape[0]):
        m = _integrate(op, decay * m, x[t], run)
        membranes[t] = m
    if node.name in run.traced:
        run.membranes[node.name] = membranes
    return membranes


def _integrate(op: Lif | Li, decayed: Tensor, x: Tensor, run: Execution) -> Tensor:
    """decayed + input_scale * x + leak_bias; a factor of 1 and a term of 0 are left out."""
    scaled = x if op.input_scale == 1.0 else run.number(op.input_scale, x.ndim) * x
    m = decayed + scaled
    return m if op.leak_bias == 0.0 else m + run.number(op.leak_bias, x.ndim)


def _merged(x: Tensor, ndim: int, layer: Callable[[Tensor], Tensor]) -> Tensor:
    """Apply a layer with T and N merged, as frameworks run it; `ndim` axes are what the layer takes."""
    if x.ndim == ndim:
        return layer(x)
    y = layer(x.flatten(0, 1))
    return y.reshape(*x.shape[:2], *y.shape[1:])


def _check_input(graph: Graph, x: Tensor) -> None:
    node = graph.input
    want = graph.types[node.name]
    fits = x.ndim == len(want.shape) and all(
        isinstance(size, str) or size == got for size, got in zip(want.shape, x.shape, strict=True)
    )
    if not fits:
        raise CompileError(f"{node.name}: input has shape {tuple(x.shape)}, the network takes {want}", node.loc)
    if not torch.isfinite(x).all():
        raise CompileError(f"{node.name}: input holds a NaN or infinite value", node.loc)
