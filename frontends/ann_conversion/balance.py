"""From ReLUs to integrate-and-fire populations: thresholds, and what a spike is worth to the next layer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np

from compiler.ir import DType, Encoding, Graph, Loc, Node, Param, Reading, Reset
from compiler.ir.ops import (
    Array,
    AvgPool2d,
    Conv2d,
    Encode,
    Flatten,
    Input,
    Lif,
    Linear,
    MaxPool2d,
    Op,
    Readout,
    Scale,
    parameter_names,
)

_POSITIVELY_HOMOGENEOUS = (Flatten, MaxPool2d, AvgPool2d)  # op(w * x) = w * op(x) for a worth w > 0


def spiking(graph: Graph, thresholds: Mapping[str, float], timesteps: int) -> Graph:
    """The network of integrate-and-fire populations.

    Each ReLU becomes m[t] = v[t-1] + x[t], s[t] = m[t] >= threshold, v[t] = m[t] - threshold * s[t] from
    v[-1] = threshold / 2. Over T steps of mean drive x the sum of its spikes is floor(T * x / threshold + 1 / 2) for
    0 <= x <= threshold, if the drive is constant: threshold times its rate is the nearest level to the ReLU. A spike
    is worth its threshold to what reads it: the factor goes into the weights of the next layer, or stands as a Scale
    where there is none, as in front of a sum. The input is repeated at each step; the scores are means over time.

    Needs: a graph of one step over (1, N, ...).
    Source: dissertation, section 3.4.1, names the method; thresholds from activations: Diehl et al., IJCNN 2015;
    percentiles and the soft reset: Rueckauer et al., Frontiers in Neuroscience 11 (2017).
    """
    return _Conversion(graph, thresholds, timesteps).converted()


@dataclass(slots=True)
class _Conversion:
    graph: Graph
    thresholds: Mapping[str, float]
    timesteps: int
    nodes: list[Node] = field(default_factory=list)
    arrays: dict[str, Array] = field(default_factory=dict)
    worth: dict[str, float] = field(default_factory=dict)  # of a value that stands for worth * value
    names: dict[str, str] = field(default_factory=dict)  # of the value that stands for one of the old graph
    scaled: dict[str, str] = field(default_factory=dict)  # of the same value times its worth

    def converted(self) -> Graph:
        for node in self.graph.nodes:
            self._convert(node)
        output = self._plain(self.graph.output)
        self._append("readout", Readout(kind=Reading.RATE), (output,), self.nodes[-1].loc)
        return Graph(self.graph.name, tuple(self.nodes), self.nodes[-1].name, self._read_arrays())

    def _convert(self, node: Node) -> None:
        self.names[node.name], self.worth[node.name] = node.name, 1.0
        match node.op:
            case Input() as op:
                self._encoded(node, op)
            case Lif() as op:
                threshold = self.thresholds[node.name]
                neuron = replace(op, threshold=threshold, reset=Reset.SOFT, initial=threshold / 2)
                self._append(node.name, neuron, (self._plain(node.inputs[0]),), node.loc)
                self.worth[node.name] = threshold
            case Conv2d() | Linear() as op:
                source = node.inputs[0]
                weight = self._weighted(node, op.weight, self.worth[source])
                self._append(node.name, replace(op, weight=weight), (self.names[source],), node.loc)
            case op if isinstance(op, _POSITIVELY_HOMOGENEOUS):
                (source,) = node.inputs
                self._append(node.name, op, (self.names[source],), node.loc)
                self.worth[node.name] = self.worth[source]
            case op:
                self._append(node.name, op, tuple(self._plain(name) for name in node.inputs), node.loc)

    def _encoded(self, node: Node, op: Input) -> None:
        image = Input(shape=op.shape[1:], dtype=DType.F32, axes=op.axes.removeprefix("T"))
        self._append(node.name, image, (), node.loc)
        encode = Encode(kind=Encoding.DIRECT, timesteps=self.timesteps)
        self.names[node.name] = self._append("encode", encode, (node.name,), node.loc)

    def _plain(self, name: str) -> str:
        """The value itself, where a spike of it counts 1."""
        if self.worth[name] == 1.0:
            return self.names[name]
        if name not in self.scaled:
            loc, factor = self.graph.node(name).loc, Scale(factor=self.worth[name])
            self.scaled[name] = self._append(f"{name}.worth", factor, (self.names[name],), loc)
        return self.scaled[name]

    def _weighted(self, node: Node, weight: Param, worth: float) -> Param:
        if worth == 1.0:
            return weight
        readers = sum(weight.name in parameter_names(other.op) for other in self.graph.nodes)
        name = weight.name if readers == 1 else f"{weight.name}.{node.name}"
        self.arrays[name] = (self.graph.parameters[weight.name].astype(np.float64) * worth).astype(np.float32)
        return Param(name)

    def _append(self, name: str, op: Op, inputs: tuple[str, ...], loc: Loc) -> str:
        taken = {node.name for node in (*self.nodes, *self.graph.nodes)} - {name if name in self.graph.types else ""}
        while name in taken:
            name += "_"
        self.nodes.append(Node(name, op, inputs, loc))
        return name

    def _read_arrays(self) -> dict[str, Array]:
        read = {name for node in self.nodes for name in parameter_names(node.op)}
        arrays = {**self.graph.parameters, **self.arrays}
        return {name: array for name, array in arrays.items() if name in read}
