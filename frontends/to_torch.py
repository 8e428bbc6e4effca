"""Graphs as torch modules: the inverse of `from_torch`, trainable by autograd."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import singledispatch

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from compiler.codes import bernoulli_draws, latency_code
from compiler.ir import CompileError, Encoding, Graph, Node, Number, Param, Reading
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
    parameter_names,
)
from frontends.nn import LI, LIF

_MOMENTUM = 0.1  # of running statistics, torch's default


def to_torch(graph: Graph) -> GraphModule:
    """The network as a module in training mode; in evaluation mode it computes what `evaluate` does.

    Its parameters are the weights, the biases and the affine numbers of batch norms; all other arrays are buffers.
    In training mode batch norms use the batch's statistics over T, N, H and W, and update the running ones.

    Raises: CompileError for an op without a rule.
    """
    return GraphModule(graph)


def graph_with(module: GraphModule, graph: Graph) -> Graph:
    """The graph with the module's present parameters and running statistics, as f32.

    Raises: CompileError if the module was made from a graph with other parameters.
    """
    arrays = {name: np.array(value.detach().float().numpy(force=True)) for name, value in module.arrays().items()}
    if {name: a.shape for name, a in arrays.items()} != {name: a.shape for name, a in graph.parameters.items()}:
        raise CompileError("the module was made from another graph: its parameters differ", graph.input.loc)
    return graph.with_nodes(graph.nodes, parameters=arrays)


class GraphModule(nn.Module):
    """The nodes of a graph, executed in their order.

    `weights` holds the parameters and `constants` the buffers, under the graph's names with "__" for "."; `neurons`
    holds the LIF and LI modules, under their nodes' names likewise. Names that clash get underscores at their end.

    Shapes: input and output as the graph's.
    """

    def __init__(self, graph: Graph) -> None:
        super().__init__()
        for node in graph.nodes:
            if _forward.dispatch(type(node.op)) is _forward.dispatch(Op):
                raise CompileError(f"{node.name}: no rule to make a torch module of {type(node.op).__name__}", node.loc)
        self._nodes, self._output = graph.nodes, graph.output
        self.weights, self.constants, self.neurons = nn.Module(), nn.Module(), nn.Module()
        self._names: dict[str, str] = {}  # of parameters, here
        self._neuron_names: dict[str, str] = {}  # of nodes, here
        trained = {param.name for node in graph.nodes for param in _trained(node.op)}
        for name in dict.fromkeys(name for node in graph.nodes for name in parameter_names(node.op)):
            self._names[name] = safe = _safe(name, self.weights, self.constants)
            tensor = torch.from_numpy(np.array(graph.parameters[name]))
            if name in trained:
                self.weights.register_parameter(safe, nn.Parameter(tensor))
            else:
                self.constants.register_buffer(safe, tensor)
        for node in graph.nodes:
            if isinstance(node.op, Lif | Li):
                self._neuron_names[node.name] = safe = _safe(node.name, self.neurons)
                self.neurons.add_module(safe, _neuron(node.op, self.array))

    def forward(self, x: Tensor, first_sample: int = 0) -> Tensor:
        """first_sample: index of the batch's first sample, on which and on the seed Bernoulli draws depend."""
        values: dict[str, Tensor] = {}
        last_use = {name: node.name for node in self._nodes for name in node.inputs}
        for node in self._nodes:
            inputs = [values[name] for name in node.inputs]
            values[node.name] = _forward(node.op, inputs or [x], node, self, first_sample)
            for name in set(node.inputs):
                if last_use[name] == node.name and name != self._output:
                    del values[name]
        return values[self._output]

    def arrays(self) -> Mapping[str, Tensor]:
        """Parameters and buffers, by the graph's names."""
        return {name: self.array(Param(name)) for name in self._names}

    def array(self, param: Param) -> Tensor:
        """One parameter or buffer."""
        safe = self._names[param.name]
        tensor: Tensor = getattr(self.weights if safe in self.weights._parameters else self.constants, safe)
        return tensor

    def neuron(self, node: str) -> nn.Module:
        """The LIF or LI module of a node."""
        return self.neurons.get_submodule(self._neuron_names[node])


def _trained(op: Op) -> tuple[Param, ...]:
    match op:
        case Conv2d() | Linear() | BatchNorm():
            return tuple(param for param in (op.weight, op.bias) if param is not None)
    return ()


def _safe(name: str, *holders: nn.Module) -> str:
    """A name for an attribute that none of the holders has."""
    safe = name.replace(".", "__")
    while any(hasattr(holder, safe) for holder in holders):
        safe += "_"
    return safe


def _neuron(op: Lif | Li, array: Callable[[Param], Tensor]) -> nn.Module:
    def number(value: Number) -> float | Tensor:
        return array(value) if isinstance(value, Param) else float(value)

    if isinstance(op, Li):
        return LI(
            decay=number(op.decay),
            input_scale=number(op.input_scale),
            leak_bias=number(op.leak_bias),
            initial=number(op.initial),
        )
    return LIF(
        decay=number(op.decay),
        threshold=number(op.threshold),
        input_scale=number(op.input_scale),
        leak_bias=number(op.leak_bias),
        reset=op.reset,
        reset_value=number(op.reset_value),
        reset_delay=op.reset_delay,
        compare=op.compare,
        detach_reset=op.detach_reset,
        initial=number(op.initial),
        surrogate=op.surrogate,
    )


@singledispatch
def _forward(op: Op, inputs: list[Tensor], node: Node, module: GraphModule, first_sample: int) -> Tensor:
    raise AssertionError(f"{type(op).__name__} was refused")


@_forward.register
def _(op: Input, inputs: list[Tensor], node: Node, module: GraphModule, first_sample: int) -> Tensor:
    return inputs[0]


@_forward.register
def _(op: Encode, inputs: list[Tensor], node: Node, module: GraphModule, first_sample: int) -> Tensor:
    (x,) = inputs
    match op.kind:
        case Encoding.DIRECT:
            return x.unsqueeze(0).repeat(op.timesteps, *(1,) * x.ndim)
        case Encoding.BERNOULLI:
            draws = (
                module.array(op.mask)
                if op.mask is not None
                else torch.from_numpy(bernoulli_draws(op.seed or 0, op.timesteps, x.shape, first_sample))
            )
            return (draws.to(x) < x).to(x)
        case Encoding.LATENCY:
            return torch.from_numpy(latency_code(x.detach().float().numpy(force=True), op.timesteps)).to(x)


@_forward.register
def _(op: Conv2d, inputs: list[Tensor], node: Node, module: GraphModule, first_sample: int) -> Tensor:
    weight, bias = module.array(op.weight), module.array(op.bias) if op.bias is not None else None
    return _merged(inputs[0], lambda v: functional.conv2d(v, weight, bias, op.stride, op.padding, 1, op.groups))


@_forward.register
def _(op: Linear, inputs: list[Tensor], node: Node, module: GraphModule, first_sample: int) -> Tensor:
    weight, bias = module.array(op.weight), module.array(op.bias) if op.bias is not None else None
    return _merged(inputs[0], lambda v: functional.linear(v, weight, bias))


@_forward.register
def _(op: BatchNorm, inputs: list[Tensor], node: Node, module: GraphModule, first_sample: int) -> Tensor:
    mean, var, weight, bias = (module.array(param) for param in (op.mean, op.var, op.weight, op.bias))
    return _merged(
        inputs[0],
        lambda v: functional.batch_norm(v, mean, var, weight, bias, module.training, _MOMENTUM, op.eps),
    )


@_forward.register
def _(op: AvgPool2d, inputs: list[Tensor], node: Node, module: GraphModule, first_sample: int) -> Tensor:
    return _merged(
        inputs[0],
        lambda v: functional.avg_pool2d(v, op.kernel, op.stride, op.padding, op.ceil_mode, op.count_include_pad),
    )


@_forward.register
def _(op: MaxPool2d, inputs: list[Tensor], node: Node, module: GraphModule, first_sample: int) -> Tensor:
    return _merged(
        inputs[0],
        lambda v: functional.max_pool2d(v, op.kernel, op.stride, op.padding, ceil_mode=op.ceil_mode),
    )


@_forward.register
def _(op: Flatten, inputs: list[Tensor], node: Node, module: GraphModule, first_sample: int) -> Tensor:
    return inputs[0].flatten(-3)


@_forward.register
def _(op: Add, inputs: list[Tensor], node: Node, module: GraphModule, first_sample: int) -> Tensor:
    return inputs[0] + inputs[1]


@_forward.register
def _(op: Scale, inputs: list[Tensor], node: Node, module: GraphModule, first_sample: int) -> Tensor:
    (x,) = inputs
    if not isinstance(op.factor, Param):
        return x * op.factor
    return x * module.array(op.factor).reshape(-1, *(1, 1) * (x.ndim >= 4))


@_forward.register
def _(op: Readout, inputs: list[Tensor], node: Node, module: GraphModule, first_sample: int) -> Tensor:
    (x,) = inputs
    match op.kind:
        case Reading.RATE:
            return x.mean(0)
        case Reading.LAST:
            return x[-1]
        case Reading.MAX:
            return x.amax(0)


@_forward.register(Lif)
@_forward.register(Li)
def _(op: Lif | Li, inputs: list[Tensor], node: Node, module: GraphModule, first_sample: int) -> Tensor:
    result: Tensor = module.neuron(node.name)(inputs[0])
    return result


def _merged(x: Tensor, layer: Callable[[Tensor], Tensor]) -> Tensor:
    """Apply a layer of (N, C) or (N, C, H, W) with T and N merged."""
    if x.ndim in (2, 4):
        return layer(x)
    y = layer(x.flatten(0, 1))
    return y.reshape(*x.shape[:2], *y.shape[1:])
