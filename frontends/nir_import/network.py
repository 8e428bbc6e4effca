"""Builds the graph of a NIR file, node by node, with a finding for each that says something."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from compiler.ir import CompileError, DType, Graph, Loc, Node, TensorType
from compiler.ir.ops import Add, Array, Input, Op, Site
from frontends.findings import Finding, Ground
from frontends.nir_file.nodes import NirNode
from frontends.nir_import.flat import IDENTITY, FlatGraph, FlatNode
from frontends.nir_import.layers import Layer, translate
from frontends.nir_import.neurons import NEURONS, read_neuron
from frontends.nir_import.reading import Reading

_AXES = {1: "TNC", 3: "TNCHW"}


@dataclass(slots=True)
class Network:
    """The graph under construction: for one shape of a sample, and one number of time steps.

    shape: (C,), (C, L) or (C, H, W).
    """

    file: str
    reading: Reading
    shape: tuple[int, ...]
    timesteps: int
    nodes: list[Node] = field(default_factory=list)
    types: dict[str, TensorType] = field(default_factory=dict)
    arrays: dict[str, Array] = field(default_factory=dict)
    values: dict[str, str] = field(default_factory=dict)  # of NIR nodes: the graph's node
    findings: list[Finding] = field(default_factory=list)
    lines: set[str] = field(default_factory=set)  # values that are lines (C, L), kept as (C, 1, L)

    def build(self, flat: FlatGraph, name: str) -> Graph:
        """Translate every node.

        Raises: CompileError naming the node that the graph cannot express.
        """
        output = ""
        for item in flat.nodes:
            loc = self._loc(item)
            if item.node.kind == "Input":
                self._input(item, loc)
                continue
            x = self._sum(item, loc)
            if item.node.kind == "Output":
                output = x
                self._check_output(item.node, x, loc)
            self.values[item.path] = x if item.node.kind in ("Output", IDENTITY) else self._node(item, x, loc)
        return Graph(name, tuple(self.nodes), output, self.arrays)

    def _loc(self, item: FlatNode) -> Loc:
        return Loc(f"{self.file}:{item.path}")

    def _input(self, item: FlatNode, loc: Loc) -> None:
        """Lines get one row: the graph knows features and feature maps."""
        shape = (self.shape[0], 1, self.shape[1]) if len(self.shape) == 2 else self.shape
        name = self._add(
            item.path, Input(shape=(self.timesteps, "N", *shape), dtype=DType.F32, axes=_AXES[len(shape)]), (), loc
        )
        if len(self.shape) == 2:
            self.lines.add(name)
        self.values[item.path] = name

    def _sum(self, item: FlatNode, loc: Loc) -> str:
        """What a node takes: NIR adds up the edges into it."""
        first, *others = (self.values[source] for source in item.sources)
        for other in others:
            first = self._add(f"{item.path}.sum", Add(), (first, other), loc)
        return first

    def _node(self, item: FlatNode, x: str, loc: Loc) -> str:
        shape = self._features(x)
        if item.node.kind in NEURONS:
            read = read_neuron(item.node, item.path, shape, self.reading, loc)
            self.arrays.update(read.arrays)
            self._read(item, read.text)
            return self._add(item.path, read.op, (x,), loc)
        translated = translate(Layer(item.node, item.path, shape, loc))
        self.arrays.update(translated.arrays)
        for suffix, op in translated.ops:
            x = self._add(f"{item.path}{suffix}", op, (x,), loc)
        self._rounded(item)
        return x

    def _rounded(self, item: FlatNode) -> None:
        """Say where 64-bit weights are not f32 numbers."""
        for name in ("weight", "bias"):
            value = item.node.fields.get(name)
            if isinstance(value, np.ndarray) and not np.array_equal(
                value.astype(np.float32).astype(value.dtype), value
            ):
                self._read(item, f"{name} is {value.dtype}, rounded to f32")

    def _read(self, item: FlatNode, text: str) -> None:
        self.findings.append(Finding(place=item.path, ground=Ground.READ, text=f"{item.node.kind}: {text}"))

    def _add(self, name: str, op: Op, inputs: tuple[str, ...], loc: Loc) -> str:
        """Append a node under a name that none has yet.

        Raises: CompileError where the op does not take its inputs.
        """
        unique, count = name, 2
        while unique in self.types:
            unique, count = f"{name}.{count}", count + 1
        self.types[unique] = op.infer(tuple(self.types[i] for i in inputs), Site(unique, loc, self.arrays))
        self.nodes.append(Node(unique, op, inputs, loc))
        if inputs and all(i in self.lines for i in inputs) and self.types[unique].has("H"):
            self.lines.add(unique)
        return unique

    def _features(self, value: str) -> tuple[int, ...]:
        """A value's shape as NIR counts it."""
        kind = self.types[value]
        shape = tuple(kind.size(axis) for axis in kind.axes if axis in "CHW")
        return (shape[0], shape[2]) if value in self.lines else shape

    def _check_output(self, node: NirNode, x: str, loc: Loc) -> None:
        """The shape that the file states for the output, where it does, ends in what the network gives."""
        stated = _shape(node.fields)
        got = self._features(x)
        if stated and stated[-len(got) :] != got:
            raise CompileError(f"the output has shape {got}, the file says {stated}", loc)


def stated_shape(flat: FlatGraph) -> tuple[int, ...]:
    """The input's shape, as its node says it or else as the first node that takes it does; () for neither."""
    (item,) = (item for item in flat.nodes if item.node.kind == "Input")
    stated = _shape(item.node.fields)
    takers = (other.node for other in flat.nodes if item.path in other.sources)
    return stated or next((shape for taker in takers if (shape := _taken(taker))), ())


def _taken(node: NirNode) -> tuple[int, ...]:
    """The shape that a node says it takes; () where it says none."""
    weight, extents = node.fields.get("weight"), node.fields.get("input_shape")
    match node.kind:
        case "Linear" | "Affine" if isinstance(weight, np.ndarray) and weight.ndim == 2:
            return (weight.shape[1],)
        case "Conv1d" | "Conv2d" if (
            isinstance(weight, np.ndarray) and weight.ndim > 2 and isinstance(extents, np.ndarray)
        ):
            groups = node.fields.get("groups")
            count = int(groups.reshape(-1)[0]) if isinstance(groups, np.ndarray) and groups.size == 1 else 1
            return (weight.shape[1] * count, *(int(v) for v in extents.reshape(-1).tolist()))
        case "Flatten":
            return _shape({"shape": node.fields["input_type"]}) if "input_type" in node.fields else ()
        case "LIF" | "IF":
            threshold = node.fields.get("v_threshold")
            return threshold.shape if isinstance(threshold, np.ndarray) else ()
    return ()


def _shape(fields: Mapping[str, object]) -> tuple[int, ...]:
    value = fields.get("shape")
    if not isinstance(value, np.ndarray) or value.dtype.kind not in "iu" or value.ndim > 1:
        return ()
    return tuple(int(v) for v in value.reshape(-1).tolist())
