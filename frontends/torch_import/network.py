"""The graph under construction: values by trace node, names, parameters."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor, fx

from compiler.ir import Graph, Loc, Node, Param, Reading, Reset
from compiler.ir.ops import Array, Input, Li, Lif, Op, Readout, Scale, parameter_names
from frontends.findings import Finding, Ground
from frontends.torch_import.adapters import Neuron
from frontends.torch_import.axes import Layout, Lead, Value
from frontends.torch_import.call import Call
from frontends.torch_import.operands import Constant, Operand, Part, Several, State, StepSum
from frontends.torch_import.trace import Trace


@dataclass(slots=True, kw_only=True)
class Population:
    """A neuron that does one step a call, as far as its calls have been followed.

    source, node: the sequence that it takes and the graph node of its spikes; steps: how many calls there were.
    """

    index: int
    op: Lif | Li
    source: Value
    node: str
    call: Call
    steps: int = 0


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
    populations: list[Population] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)
    norms: Counter[str] = field(default_factory=Counter)  # by batch norm's node, how many calls it stands for
    dropouts: list[tuple[str, float]] = field(default_factory=list)  # where, and the probability
    single: bool = False  # the trace is one step of many
    looped: bool = False  # the trace holds a loop over time
    known: dict[tuple[Op, tuple[str, ...]], str] = field(default_factory=dict)  # nodes that a loop comes to again

    def start(self) -> None:
        """Place the input and the constants."""
        example = self.trace.example
        binary = bool(((example == 0) | (example == 1)).all())
        self.nodes.append(Node(self._unique("input"), self.layout.input_op(binary), (), Loc(self.trace.input.name)))
        self.operands[self.trace.input] = Value(name="input", lead=self.layout.lead, extents=self.layout.features)

    def graph(self, output: Value) -> Graph:
        """The finished graph: what the output depends on."""
        needed = {output.name}
        for node in reversed(self.nodes):
            if node.name in needed or isinstance(node.op, Input):
                needed.update((node.name, *node.inputs))
        nodes = tuple(node for node in self.nodes if node.name in needed)
        read = {name for node in nodes for name in parameter_names(node.op)}
        arrays = {name: array for name, array in self.parameters.items() if name in read}
        return Graph(self.name, nodes, output.name, arrays)

    def operand(self, call: Call, name: str) -> Operand:
        """What an argument holds."""
        return self.resolve(call, call.arguments[name], name)

    def resolve(self, call: Call, node: object, name: str) -> Operand:
        """What a node of the trace holds."""
        constant = self.held(node) if isinstance(node, fx.Node) else None
        if constant is not None:
            return constant
        if not isinstance(node, fx.Node) or node not in self.operands:
            raise call.fail(f"{name} is {node!r}, not a tensor of the network")
        return self.operands[node]

    def held(self, node: fx.Node) -> Constant | None:
        """The constant that a node of the trace holds, if it holds one."""
        if node.name in self.trace.constants:
            path, tensor = self.trace.constants[node.name]
            return Constant(name=path, tensor=tensor)
        operand = self.operands.get(node)
        return operand if isinstance(operand, Constant) else None

    def tensor(self, call: Call, name: str = "input") -> Value | Constant:
        """The activation or constant that an argument holds."""
        operand = self.operand(call, name if name in call.arguments else "self")
        return operand if isinstance(operand, Constant) else self.as_value(call, operand, name)

    def value(self, call: Call, name: str = "input") -> Value:
        """The activation that an argument holds."""
        return self.as_value(call, self.operand(call, name if name in call.arguments else "self"), name)

    def as_value(self, call: Call, operand: Operand, name: str) -> Value:
        """An operand as an activation, read out where it is a sum over time or a membrane potential.

        Raises: CompileError for what no node holds.
        """
        match operand:
            case Value():
                return operand
            case Constant():
                raise call.fail(
                    f"{name} is the constant {operand.name}, not computed from the input",
                    "recurrent connections, which start from zeros, are not expressed" if self.looped else "",
                )
            case State():
                return self.membrane(call, operand)
            case StepSum():
                return self.total(call, operand)
            case Part():
                raise call.fail(f"{name} is the {operand.kind} of {operand.value.name}, which a graph cannot express")
            case Several():
                raise call.fail(f"{name} is a tuple of {len(operand.items)} tensors, not a tensor")

    def membrane(self, call: Call, state: State) -> Value:
        """The membrane potential of a population that is never reset: a leaky integrator beside it.

        Raises: CompileError for a population with a reset.
        """
        population = self.populations[state.population]
        op = population.op
        if isinstance(op, Lif) and op.reset is not Reset.NONE:
            raise call.fail(
                f"reads the membrane potential of {population.node}, which is reset when it spikes",
                "read its spikes, or let its last layer be without reset",
            )
        integrator = Li(decay=op.decay, input_scale=op.input_scale, leak_bias=op.leak_bias, initial=op.initial)
        name = self.emit(call, integrator, population.source, name=f"{population.node}.membrane")
        return population.source.of(name).step(state.at)

    def total(self, call: Call, summed: StepSum) -> Value:
        """The sum over all steps: the mean of T times each.

        Exact for spikes and all else whose products and sums are; otherwise a few roundings apart.
        Raises: CompileError for a sum over some of the steps.
        """
        timesteps = self.layout.extents.timesteps
        if len(summed.steps) == timesteps > 1:
            scaled = self.emit(call.outside(), Scale(factor=float(timesteps)), summed.sequence)
            summed = replace(summed, sequence=summed.sequence.of(scaled))
        return self.average(call, summed)

    def average(self, call: Call, summed: StepSum) -> Value:
        """The mean over all steps.

        Raises: CompileError for a sum over some of the steps.
        """
        timesteps = self.layout.extents.timesteps
        if len(summed.steps) != timesteps:
            raise call.fail(
                f"uses the sum of steps {sorted(summed.steps)} of {summed.sequence.name}, not of all {timesteps}",
                "only the sum over all time steps is expressed; recurrent connections are not",
            )
        name = self.emit(call.outside(), Readout(kind=Reading.RATE), summed.sequence)
        return summed.sequence.of(name).step(None, Lead.IMAGE)

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
        # literals of one kind share a name, and one weight may be used in two shapes
        others = (f"{name}_{count}" for count in range(2, len(self.parameters) + 3))
        chosen = next(
            candidate
            for candidate in (name, f"{name}.{array.ndim}d", *others)
            if candidate not in self.parameters or np.array_equal(self.parameters[candidate], array)
        )
        self.parameters[chosen] = array
        return Param(chosen)

    def emit(self, call: Call, op: Op, *inputs: Value, name: str = "") -> str:
        """A node, named after its module or, outside a layer, after its op.

        In a loop over time the same op on the same inputs is the same node: its copies for each step fold into one.
        """
        key = (op, tuple(value.name for value in inputs))
        shared = self.looped and not isinstance(op, Lif)
        if shared and key in self.known:
            return self.known[key]
        chosen = self.append(call, op, *inputs, name=name)
        if shared:
            self.known[key] = chosen
        return chosen

    def append(self, call: Call, op: Op, *inputs: Value, name: str = "") -> str:
        """A new node."""
        kind = type(op).__name__.lower()
        inside = f"{call.path}.{kind}" if call.path else kind
        chosen = self._unique(name or (call.path if call.in_layer else inside))
        line = call.source.line if call.source else 0
        self.nodes.append(Node(chosen, op, tuple(value.name for value in inputs), Loc(call.path or self.name, line)))
        return chosen

    def populate(self, call: Call, neuron: Neuron, x: Value) -> str:
        """A node for a neuron, with its arrays and what was found about it.

        Raises: CompileError where the module does not take such an input.
        """
        if neuron.channel_axes not in (None, len(x.extents)):
            raise call.fail(
                f"the neuron's numbers are made for {neuron.channel_axes} axes of features, it gets {x}",
                "one number per channel of maps has shape (C, 1, 1), per feature (C,)",
            )
        samples = self.layout.extents.samples
        if neuron.samples not in (None, samples):
            raise call.fail(f"the neuron takes {neuron.samples} samples, the example has {samples}")
        for name, tensor in neuron.arrays:
            self.parameter(call, name, tensor)
        node = self.append(call, neuron.op, x)
        self.findings += [Finding(place=node, ground=Ground.READ, text=text) for text in neuron.read]
        self.findings += [Finding(place=node, ground=Ground.ASSUMED, text=text) for text in neuron.assumed]
        return node

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
