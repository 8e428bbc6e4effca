"""The graph under construction: values by trace node, names, parameters."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, fx

from compiler.ir import Graph, Loc, Node, Param
from compiler.ir.ops import Array, Op
from frontends.torch_import.adapters import Neuron
from frontends.torch_import.axes import Layout, Value
from frontends.torch_import.trace import Call, Trace


@dataclass(frozen=True, slots=True, kw_only=True)
class Constant:
    """A parameter, buffer or literal of the network."""

    name: str
    tensor: Tensor


Operand = Value | Constant


@dataclass(slots=True)
class Network:
    """Collects nodes and parameters while the calls of a trace are translated under one layout."""

    trace: Trace
    layout: Layout
    name: str
    operands: dict[fx.Node, Operand] = field(default_factory=dict)
    nodes: list[Node] = field(default_factory=list)
    parameters: dict[str, Array] = field(default_factory=dict)
    names: set[str] = field(default_factory=set)
    called: set[int] = field(default_factory=set)  # stateful neurons

    def start(self) -> None:
        """Place the input and the constants."""
        example = self.trace.example
        binary = bool(((example == 0) | (example == 1)).all())
        self.nodes.append(Node(self._unique("input"), self.layout.input_op(binary), (), Loc(self.trace.input.name)))
        self.operands[self.trace.input] = Value(name="input", lead=self.layout.lead, extents=self.layout.features)

    def graph(self) -> Graph:
        """The finished graph."""
        output = self.operands[self.trace.output]
        assert isinstance(output, Value)
        return Graph(self.name, tuple(self.nodes), output.name, self.parameters)

    def operand(self, call: Call, name: str) -> Operand:
        """What an argument holds."""
        node = call.arguments[name]
        if isinstance(node, fx.Node) and node.name in self.trace.constants:
            path, tensor = self.trace.constants[node.name]
            return Constant(name=path, tensor=tensor)
        if not isinstance(node, fx.Node) or node not in self.operands:
            raise call.fail(f"{name} is {node!r}, not a tensor of the network")
        return self.operands[node]

    def value(self, call: Call, name: str = "input") -> Value:
        """The activation that an argument holds."""
        operand = self.operand(call, name if name in call.arguments else "self")
        if not isinstance(operand, Value):
            raise call.fail(f"{name} is the constant {operand.name}, not computed from the input")
        return operand

    def constant(self, call: Call, name: str) -> Constant | None:
        """The parameter that an argument holds, if it holds one."""
        if call.arguments[name] is None:
            return None
        operand = self.operand(call, name)
        if not isinstance(operand, Constant):
            raise call.fail(
                f"{name} is computed in the network, not a parameter",
                "torch.nn.utils.parametrize.remove_parametrizations makes it one",
            )
        return operand

    def parameter(self, call: Call, name: str, tensor: Tensor) -> Param:
        """Put a float32 array beside the graph.

        Raises: CompileError for another element type, a NaN or an infinite value.
        """
        if tensor.dtype != torch.float32:
            raise call.fail(f"{name} is {tensor.dtype}, must be torch.float32", "call module.float()")
        if not bool(torch.isfinite(tensor).all()):
            raise call.fail(f"{name} holds a NaN or infinite value")
        array: Array = np.array(tensor.detach().cpu().numpy())
        if name in self.parameters and self.parameters[name].shape != array.shape:
            name = f"{name}.{array.ndim}d"
        self.parameters[name] = array
        return Param(name)

    def emit(self, call: Call, op: Op, *inputs: Value) -> str:
        """Append a node, named after its module or, outside a layer, after its op."""
        kind = type(op).__name__.lower()
        inside = f"{call.path}.{kind}" if call.path else kind
        name = self._unique(call.path if call.in_layer else inside)
        line = call.source.line if call.source else 0
        self.nodes.append(Node(name, op, tuple(value.name for value in inputs), Loc(call.path or self.name, line)))
        return name

    def neuron(self, call: Call) -> Neuron:
        """The neuron that a call of `spikec::neuron` stands for.

        Raises: CompileError for the second call of one that keeps its state.
        """
        index = call.integer("index")
        neuron = self.trace.neurons[index]
        if neuron.keeps_state and index in self.called:
            raise call.fail("this neuron is called twice; it would go on from its state", "use two modules")
        self.called.add(index)
        return neuron

    def _unique(self, name: str) -> str:
        stem = re.sub(r"[^A-Za-z0-9_.]", "_", name)
        candidates = (stem, *(f"{stem}_{count}" for count in range(2, len(self.names) + 3)))
        chosen = next(candidate for candidate in candidates if candidate not in self.names)
        self.names.add(chosen)
        return chosen
