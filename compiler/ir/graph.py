"""The graph IR: immutable nodes in SSA form over typed values, with named parameter arrays beside them."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

import networkx as nx
import numpy as np

from compiler.ir.ops import Array, Input, Op, Parameters, Site, parameter_names
from compiler.ir.types import TensorType
from hwmodel.errors import CompileError, Loc


@dataclass(frozen=True, slots=True)
class Node:
    """One value: the op that makes it, the names of the values it takes, and where it came from."""

    name: str
    op: Op
    inputs: tuple[str, ...]
    loc: Loc


@dataclass(frozen=True, eq=False)
class Graph:
    """A network: nodes in order of execution, one output, parameters by name.

    Building one verifies it; the input is never changed afterwards (arrays become read-only).
    Raises: CompileError naming every faulty node.
    """

    name: str
    nodes: tuple[Node, ...]
    output: str
    parameters: Parameters = field(default_factory=dict)
    types: Mapping[str, TensorType] = field(init=False)

    def __post_init__(self) -> None:
        frozen = {name: _frozen(array) for name, array in self.parameters.items()}
        object.__setattr__(self, "parameters", MappingProxyType(frozen))
        object.__setattr__(self, "types", MappingProxyType(_infer(self)))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Graph) and self.digest() == other.digest()

    def __hash__(self) -> int:
        return hash(self.digest())

    def __deepcopy__(self, memo: object) -> Graph:
        return self  # nothing in it ever changes

    def __reduce__(self) -> tuple[type[Graph], tuple[str, tuple[Node, ...], str, dict[str, Array]]]:
        return Graph, (self.name, self.nodes, self.output, dict(self.parameters))

    def digest(self) -> str:
        """SHA-256 over nodes, origins and the parameters' bits."""
        digest = hashlib.sha256(repr((self.name, self.nodes, self.output)).encode())
        for name in sorted(self.parameters):
            array = self.parameters[name]
            digest.update(f"{name}{array.shape}".encode() + array.tobytes())
        return digest.hexdigest()

    def verify(self) -> None:
        """Check structure, parameters and types again, as building the graph did.

        Raises: CompileError naming every faulty node.
        """
        _infer(self)

    def node(self, name: str) -> Node:
        """The node of that name."""
        return next(node for node in self.nodes if node.name == name)

    @property
    def input(self) -> Node:
        """The one input node."""
        return next(node for node in self.nodes if isinstance(node.op, Input))

    @property
    def timesteps(self) -> int:
        """Length of the time axis (0 for a network without one)."""
        return next((t.size("T") for t in self.types.values() if t.has("T")), 0)

    def digraph(self) -> nx.DiGraph:
        """The value graph, for order, reachability and liveness."""
        graph = nx.DiGraph()
        graph.add_nodes_from(node.name for node in self.nodes)
        graph.add_edges_from((source, node.name) for node in self.nodes for source in node.inputs)
        return graph

    def consumers(self, name: str) -> tuple[Node, ...]:
        """The nodes that read a value."""
        return tuple(node for node in self.nodes if name in node.inputs)

    def site(self, node: Node) -> Site:
        """A node's place, for errors and parameter access."""
        return Site(node.name, node.loc, self.parameters)

    def with_nodes(
        self, nodes: tuple[Node, ...], *, output: str | None = None, parameters: Parameters | None = None
    ) -> Graph:
        """A graph with other nodes; parameters that no node reads any more are dropped."""
        kept = {name for node in nodes for name in parameter_names(node.op)}
        arrays = {**self.parameters, **(parameters or {})}
        return Graph(self.name, nodes, output or self.output, {k: v for k, v in arrays.items() if k in kept})


def _frozen(array: Array) -> Array:
    if array.dtype == np.float32 and not array.flags.writeable and array.flags.c_contiguous:
        return array
    copy = np.array(array, dtype=np.float32, order="C")
    copy.setflags(write=False)
    return copy


def _infer(graph: Graph) -> dict[str, TensorType]:
    """Types of all values; collects the faults of independent nodes and raises once."""
    if not graph.nodes:
        raise CompileError("the graph has no nodes", Loc(graph.name))
    faults = _structural_faults(graph)
    types: dict[str, TensorType] = {}
    for node in graph.nodes:
        if any(name not in types for name in node.inputs):
            continue  # a fault upstream, already collected
        try:
            if len(node.inputs) != node.op.arity:
                raise graph.site(node).fail(f"takes {node.op.arity} inputs, got {len(node.inputs)}")
            types[node.name] = node.op.infer(tuple(types[name] for name in node.inputs), graph.site(node))
        except CompileError as fault:
            faults.append(fault)
    if faults:
        first, *others = faults
        also = (f"also {fault.loc}: {fault.message}" for fault in others)
        raise CompileError(first.message, first.loc, hint="\n  ".join(filter(None, (first.hint, *also))))
    return types


def _structural_faults(graph: Graph) -> list[CompileError]:
    faults = []
    defined: set[str] = set()
    for node in graph.nodes:
        unknown = [name for name in node.inputs if name not in defined]
        if unknown:
            hint = "nodes stand in order of execution; the value is defined later, or in a cycle, or never"
            faults.append(CompileError(f"{node.name}: %{unknown[0]} is not defined yet", node.loc, hint=hint))
        defined.add(node.name)
    for name, count in Counter(node.name for node in graph.nodes).items():
        if count > 1:
            faults.append(CompileError(f"{name}: defined {count} times", graph.node(name).loc))
    if graph.output not in defined:
        faults.append(CompileError(f"output %{graph.output} is not defined", Loc(graph.name)))
    inputs = sum(isinstance(node.op, Input) for node in graph.nodes)
    if inputs != 1:
        faults.append(CompileError(f"the graph has {inputs} inputs, must have 1", Loc(graph.name)))
    faults += [
        CompileError(f"parameter @{name} holds a NaN or infinite value", Loc(graph.name))
        for name, array in graph.parameters.items()
        if not np.isfinite(array).all()
    ]
    return faults
