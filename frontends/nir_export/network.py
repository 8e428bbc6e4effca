"""A graph as one NIR graph; what NIR has no node for is refused, what only we read goes into metadata."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from compiler.ir import CompileError, Encoding, Graph, Loc, Node
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
    Readout,
    Scale,
)
from compiler.ir.text import print_graph
from frontends.findings import Finding, Ground
from frontends.nir_export.layers import layer_node
from frontends.nir_export.neurons import neuron_node
from frontends.nir_export.places import (
    DIGEST,
    DT,
    OUTPUT,
    TEXT,
    TIMESTEPS,
    WRITER,
    array_places,
    nir_names,
)
from frontends.nir_file.nodes import GRAPH, Field, NirNode


@dataclass(frozen=True, slots=True)
class Exported:
    """The NIR graph, and what other readers of it should know."""

    root: NirNode
    findings: tuple[Finding, ...]


def nir_graph(graph: Graph, dt: float) -> Exported:
    """The graph as NIR.

    dt: seconds of a time step; tau and r follow from it.
    Raises: CompileError naming the node that NIR has none for.
    """
    if not (np.isfinite(dt) and dt > 0.0):
        raise CompileError(f"dt is {dt:g}, must be a positive number of seconds", Loc(graph.name))
    export = _Export(graph, dt, nir_names(graph.nodes), _is_lines(graph))
    for node in graph.nodes:
        export.node(node)
    return Exported(export.root(), tuple(export.findings))


@dataclass(slots=True)
class _Export:
    """One export. sources: of each value, the NIR nodes whose outputs it is the sum of."""

    graph: Graph
    dt: float
    names: dict[str, str]
    is_lines: bool
    nodes: dict[str, NirNode] = field(default_factory=dict)
    edges: list[tuple[str, str]] = field(default_factory=list)
    sources: dict[str, tuple[str, ...]] = field(default_factory=dict)
    read_out: set[str] = field(default_factory=set)  # values behind a readout, which stay out of NIR
    findings: list[Finding] = field(default_factory=list)

    def node(self, node: Node) -> None:
        taken = [self.sources[name] for name in node.inputs]
        if self.read_out & set(node.inputs) and not isinstance(node.op, Scale):
            raise self.graph.site(node).fail(
                f"{type(node.op).__name__} stands behind a readout over time, which NIR has no node for",
                "only a Scale may follow the readout; the pass MeanLast moves a mean behind linear layers",
            )
        match node.op:
            case Input():
                self._put(node, NirNode(kind="Input", fields={"shape": self._extents(node.name)}), ())
            case Encode():
                self.sources[node.name] = self._encoded(node)
            case Readout():
                self.sources[node.name] = taken[0]
                self.read_out.add(node.name)
                self._tell(node, f"readout over time ({node.op.kind})", "get every step")
            case Scale() if self.read_out & set(node.inputs):
                self.sources[node.name] = taken[0]
                self.read_out.add(node.name)
                self._tell(node, "scale of the readout", "get every step")
            case Add():
                self._add(node, *taken)
            case Lif() | Li():
                made, kept = neuron_node(self.graph, node, self._shape(node.name), self.dt)
                if kept:
                    self._tell(node, kept, "take NIR's own neuron")
                self._put(node, made, taken[0])
            case BatchNorm():
                hint = "fold it into the weights first: --fold-batch-norm, or the pass FoldBatchNorm"
                raise self.graph.site(node).fail("NIR has no batch norm", hint)
            case MaxPool2d():
                raise self.graph.site(node).fail("NIR has no maximum pooling", "average pooling can be exported")
            case Conv2d() | Linear() | AvgPool2d() | Flatten() | Scale():
                x = node.inputs[0]
                made = layer_node(self.graph, node, self._shape(x), is_line=self.is_lines)
                self._warn_of_shapes(node)
                self._put(node, made, taken[0])
            case _:
                raise self.graph.site(node).fail(f"NIR has no node for {type(node.op).__name__}")

    def root(self) -> NirNode:
        """The NIR graph of all nodes so far."""
        output = self.graph.output
        self.nodes[OUTPUT] = NirNode(kind="Output", fields={"shape": self._extents(self._last_value())})
        edges = (*self.edges, *((source, OUTPUT) for source in self.sources[output]))
        metadata: dict[str, Field] = {
            WRITER: "spikec",
            TEXT: print_graph(self.graph),
            DIGEST: self.graph.digest(),
            DT: np.array(self.dt, np.float64),
            TIMESTEPS: np.array(self.graph.timesteps, np.int64),
        }
        for place in array_places(self.graph.nodes, self.names):
            if not place.node:
                metadata[place.key] = np.asarray(self.graph.parameters[place.param])
        return NirNode(kind=GRAPH, metadata=metadata, nodes=self.nodes, edges=edges)

    def _last_value(self) -> str:
        """The value that the output is, before it is read out over time."""
        name = self.graph.output
        while name in self.read_out:
            (name,) = self.graph.node(name).inputs
        return name

    def _put(self, node: Node, made: NirNode, sources: tuple[str, ...]) -> None:
        name = self.names[node.name]
        self.nodes[name] = made
        self.edges += [(source, name) for source in sources]
        self.sources[node.name] = (name,)

    def _add(self, node: Node, left: tuple[str, ...], right: tuple[str, ...]) -> None:
        """Edges into one node are a sum; an edge cannot stand twice, so a value used twice goes through a Scale."""
        if not set(left) & set(right):
            self.sources[node.name] = (*left, *right)
            return
        factor = 2.0 if left == right else 1.0
        scale = np.full(self._shape(node.name), factor, np.float32)
        self._put(node, NirNode(kind="Scale", fields={"scale": scale}), left)
        if left != right:
            self.sources[node.name] = (self.names[node.name], *right)

    def _encoded(self, node: Node) -> tuple[str, ...]:
        """A direct encoding gives each step the same; any other is left out where it is the first thing."""
        assert isinstance(node.op, Encode)
        (x,) = node.inputs
        if node.op.kind is not Encoding.DIRECT:
            if not isinstance(self.graph.node(x).op, Input) or len(self.graph.consumers(x)) != 1:
                raise self.graph.site(node).fail(
                    f"NIR has no {node.op.kind} encoding", "it may only stand directly behind the input, and alone"
                )
            self._tell(node, f"{node.op.kind} encoding", "give it spikes")
        else:
            self._tell(node, "direct encoding", "give it the value at each step")
        return self.sources[x]

    def _tell(self, node: Node, what: str, others: str) -> None:
        text = f"{what}: in spikec's metadata only; other readers {others}"
        self.findings.append(Finding(place=node.name, ground=Ground.ASSUMED, text=text))

    def _warn_of_shapes(self, node: Node) -> None:
        """nir 1.0.8 takes a kernel's rows for its columns too, and the channels of a group for all channels."""
        op = node.op
        if not isinstance(op, Conv2d):
            return
        rows, columns = self.graph.parameters[op.weight.name].shape[2:]
        if op.groups != 1 or (rows != columns and not self.is_lines):
            text = "nir 1.0.8 computes wrong shapes of grouped and non-square convolutions; read with type_check=False"
            self.findings.append(Finding(place=node.name, ground=Ground.ASSUMED, text=text))

    def _shape(self, value: str) -> tuple[int, ...]:
        """A value's shape without samples and time; of lines without the row axis."""
        kind = self.graph.types[value]
        shape = tuple(kind.size(axis) for axis in kind.axes if axis in "CHW")
        return (shape[0], shape[2]) if self.is_lines and len(shape) == 3 else shape

    def _extents(self, value: str) -> np.ndarray[tuple[int, ...], np.dtype[np.int64]]:
        return np.array(self._shape(value), np.int64)


def _is_lines(graph: Graph) -> bool:
    """Whether all feature maps are lines that only Conv1d works on."""
    maps = [kind for kind in graph.types.values() if kind.has("H")]
    if not maps or any(kind.size("H") != 1 for kind in maps):
        return False
    for node in graph.nodes:
        match node.op:
            case AvgPool2d():
                return False
            case Conv2d(weight=weight, stride=stride, padding=padding):
                if graph.parameters[weight.name].shape[2] != 1 or stride[0] != 1 or padding[0] != 0:
                    return False
    return any(isinstance(node.op, Conv2d) for node in graph.nodes)
