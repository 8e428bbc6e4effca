"""What a training step computes and moves, as predictions count it: facts of nodes, launches, units of work."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from compiler.ir import Graph, Node
from compiler.ir.fields import class_word
from compiler.ir.ops import BatchNorm, Conv2d, Flatten, Linear

F32_BYTES = 4
STAGE = "stage"  # kind of a unit that is a fused stage


class Direction(StrEnum):
    """Of a launch."""

    FORWARD = "forward"
    BACKWARD = "backward"


class Family(StrEnum):
    """What bounds a kernel, and how figure 4.7 groups them."""

    CONVOLUTION = "convolution"
    MATRIX_MULTIPLY = "matrix multiply"
    ELEMENTWISE = "elementwise"  # by bandwidth: each value read or written once


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeFacts:
    """One node of a network at a batch. Units: values, over all samples and, where it has one, the time axis."""

    name: str
    kind: str
    steps: int  # length of the result's time axis, 1 without one
    inputs: tuple[int, ...]
    outputs: int
    channels: int
    multiply_adds: int  # forward, of a convolution or linear layer
    weights: int  # trained parameters without biases
    biases: int
    input_gradient: bool  # whether a parameter stands before it

    @property
    def parameter_bytes(self) -> int:
        """Trained parameters."""
        return (self.weights + self.biases) * F32_BYTES


def training_facts(graph: Graph, batch: int) -> Mapping[str, NodeFacts]:
    """The facts of each node by name, in the order of the graph."""
    found: dict[str, NodeFacts] = {}
    trained: set[str] = set()  # values that depend on a parameter
    for node in graph.nodes:
        facts = _facts(graph, node, batch, input_gradient=any(name in trained for name in node.inputs))
        found[node.name] = facts
        if facts.input_gradient or facts.parameter_bytes:
            trained.add(node.name)
    return found


def _facts(graph: Graph, node: Node, batch: int, *, input_gradient: bool) -> NodeFacts:
    result, op = graph.types[node.name], node.op
    outputs = elements(graph, node.name, batch)
    weight, bias = _parameters(graph, node)
    return NodeFacts(
        name=node.name,
        kind=class_word(type(op)),
        steps=result.size("T") if result.has("T") else 1,
        inputs=tuple(elements(graph, name, batch) for name in node.inputs),
        outputs=outputs,
        channels=result.size("C"),
        multiply_adds=outputs * math.prod(weight[1:]) if isinstance(op, Conv2d | Linear) else 0,
        weights=math.prod(weight) if weight else 0,
        biases=bias,
        input_gradient=input_gradient,
    )


def _parameters(graph: Graph, node: Node) -> tuple[tuple[int, ...], int]:
    """Shape of the trained weight, () without one, and the number of trained biases."""
    match node.op:
        case Conv2d(weight=weight, bias=bias) | Linear(weight=weight, bias=bias) | BatchNorm(weight=weight, bias=bias):
            return graph.parameters[weight.name].shape, 0 if bias is None else graph.parameters[bias.name].size
    return (), 0


def elements(graph: Graph, value: str, batch: int) -> int:
    """Values of a tensor with that many samples."""
    return math.prod(batch if isinstance(size, str) else size for size in graph.types[value].shape)


@dataclass(frozen=True, slots=True, kw_only=True)
class Launch:
    """So many equal kernels on the device. Units: bytes and multiply-adds of one of them."""

    kernel: str
    direction: Direction
    read_bytes: int
    written_bytes: int
    count: int = 1
    family: Family = Family.ELEMENTWISE
    multiply_adds: int = 0

    @property
    def moved_bytes(self) -> int:
        """Of one kernel."""
        return self.read_bytes + self.written_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Unit:
    """One operator of a dataflow: a node that torch computes, the eager neurons of a layer, or a fused stage.

    reads, writes: values by name, in bytes; a view has the name of what it views.
    kept: what lives from here to its backward pass, by storage, in bytes.
    forward_bytes, backward_bytes: what else lives only while it runs.
    keeps_gradient: its inputs' gradients are made here, outside of what else is counted.
    """

    name: str
    kind: str
    reads: Mapping[str, int]
    writes: Mapping[str, int]
    launches: tuple[Launch, ...]
    kept: Mapping[str, int] = field(default_factory=dict)
    forward_bytes: int = 0
    backward_bytes: int = 0
    parameter_bytes: int = 0
    input_gradient: bool = True
    keeps_gradient: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """One training step in one dataflow, without loss and data loading. Units: bytes."""

    network: str
    dataflow: str
    timesteps: int
    batch: int
    units: tuple[Unit, ...]
    block_bytes: int = 0  # scratch memory that is held throughout

    @property
    def parameter_bytes(self) -> int:
        """Trained parameters."""
        return sum(unit.parameter_bytes for unit in self.units)

    @property
    def kept_bytes(self) -> int:
        """Kept for the backward pass, what several units keep counted once."""
        return sum({key: size for unit in self.units for key, size in unit.kept.items()}.values())


def roots(graph: Graph) -> Mapping[str, str]:
    """By value, the value whose memory it shares: flattening is a view."""
    found: dict[str, str] = {}
    for node in graph.nodes:
        found[node.name] = found[node.inputs[0]] if isinstance(node.op, Flatten) else node.name
    return found
