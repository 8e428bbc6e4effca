"""A model's nodes bound one after the other, bodies of scans step by step and functions in place of their calls."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from compiler.ir import CompileError, Loc
from frontends.onnx_import import elementwise, layers, shapes
from frontends.onnx_import.files import OPSETS, to_tensor
from frontends.onnx_import.neurons import neuron_module
from frontends.onnx_import.nodes import OnnxNode
from frontends.onnx_import.values import Known, Site, Values

if TYPE_CHECKING:
    from onnx import AttributeProto, FunctionProto, GraphProto, ModelProto, NodeProto

MAX_NODES = 20_000  # with the bodies of scans and functions counted at every use
RULES = {**elementwise.RULES, **shapes.RULES, **layers.RULES}
_MAX_DEPTH = 16
_REASONS = {
    "Loop": "a scan, or a loop unrolled by the exporter, is read",
    "If": "export the network for one case",
    "LSTM": "it is no spiking neuron",
    "GRU": "it is no spiking neuron",
    "RandomUniformLike": "random draws cannot be repeated; export the network with its encoding outside",
    "Pad": "padding inside a convolution is expressed",
    "Softmax": "a network ends with its last layer; apply it to the result",
}
Names = dict[str, str]  # of values, as a graph's nodes know them: unique names


@dataclass(frozen=True, slots=True)
class Scope:
    """Where nodes stand: what their names mean, the call's attributes, the names of what they make."""

    names: Names
    attributes: Mapping[str, AttributeProto]
    prefix: str
    depth: int


@dataclass(slots=True)
class Binder:
    """Binds a model for an input of one shape."""

    model: ModelProto
    file: str
    values: Values = field(default_factory=Values)
    count: int = 0

    def bind(self, name: str, shape: tuple[int, ...]) -> Names:
        """Bind all nodes; returns the unique names of the main graph's values.

        Raises: CompileError naming the node that is not read, or whose operands do not fit.
        """
        self.values.known[name] = Known(meta=torch.empty(shape, device="meta"))
        scope = Scope({name: name, **self._arrays(self.model.graph, "")}, {}, "", 0)
        self._nodes(self.model.graph.node, scope)
        return scope.names

    def _arrays(self, graph: GraphProto, prefix: str) -> Names:
        """The arrays that a graph holds."""
        loc = Loc(self.file)
        if graph.sparse_initializer:
            raise CompileError("holds sparse arrays", loc, hint="networks are imported with dense weights")
        names = {}
        for proto in graph.initializer:
            content = to_tensor(proto, Path(self.file).parent, loc)
            names[proto.name] = f"{prefix}{proto.name}"
            self.values.known[names[proto.name]] = Known(meta=content.to("meta"), content=content, label=proto.name)
        return names

    def _nodes(self, nodes: Sequence[NodeProto], scope: Scope) -> None:
        if scope.depth > _MAX_DEPTH:
            raise CompileError("its functions call each other without end", Loc(self.file))
        self.count += len(nodes)
        if self.count > MAX_NODES:
            raise CompileError(f"has more than {MAX_NODES} nodes, its loops unrolled", Loc(self.file))
        for index, proto in enumerate(nodes):
            self._node(_resolved(proto, scope.attributes), index, scope)

    def _node(self, proto: NodeProto, index: int, scope: Scope) -> None:
        shown = f"{scope.prefix}{proto.name or f'{proto.op_type}_{index}'}"
        missing = [name for name in proto.input if name and name not in scope.names]
        repeated = [name for name in proto.output if name and self._is_known(f"{scope.prefix}{name}")]
        node = OnnxNode(
            proto,
            shown,
            tuple(scope.names.get(name, "") for name in proto.input),
            tuple(f"{scope.prefix}{name}" if name else "" for name in proto.output),
            self.file,
        )
        if missing:
            hint = "nodes stand in order of execution; the file is damaged, or has a cycle"
            raise node.fail(f"reads {missing[0]!r}, which is not defined yet", hint)
        if repeated or not any(proto.output):
            what = f"defines {repeated[0]!r} again" if repeated else "has no result"
            raise node.fail(what, "the file is damaged; export the network again")
        site = Site(node, self.values)
        function = self._function(proto)
        if function is not None:
            self._call(site, function, proto, scope)
        elif node.op == "Scan":
            self._scan(site, proto, scope)
        else:
            rule = RULES.get(node.op)
            if rule is None:
                raise node.fail("is not an operator of spiking networks that are imported", _REASONS.get(node.op, ""))
            rule(site)
        made = {name: f"{scope.prefix}{name}" for name in proto.output if name}
        scope.names.update({name: self.values.aliases.get(unique, unique) for name, unique in made.items()})
        lost = [name for name in made if scope.names[name] not in self.values.known]
        if lost:
            raise node.fail(f"has {len(node.outputs)} results, not all are expressed")

    def _is_known(self, unique: str) -> bool:
        return unique in self.values.known or unique in self.values.aliases

    def _function(self, proto: NodeProto) -> FunctionProto | None:
        if proto.domain in ("", "ai.onnx"):
            return None
        found = [f for f in self.model.functions if (f.domain, f.name) == (proto.domain, proto.op_type)]
        return found[0] if len(found) == 1 else None

    def _call(self, site: Site, function: FunctionProto, proto: NodeProto, scope: Scope) -> None:
        """A function's nodes in place of its call; a neuron of spikec as what it is."""
        neuron = neuron_module(site, function)
        if neuron is not None:
            if len(site.shape(0)) < 3:
                raise site.node.fail(f"takes a sequence (T, N, C, ...), gets {site.shape(0)}")
            self.values.scanned.append(site.shape(0)[0])
            site.compute(neuron, site.operands(0))
            return
        versions = [entry.version for entry in function.opset_import if entry.domain in ("", "ai.onnx")]
        if any(version not in OPSETS for version in versions):
            raise site.node.fail(f"is a function of opset {versions[0]}")
        given = {attribute.name: attribute for attribute in proto.attribute}
        defaults = {attribute.name: attribute for attribute in function.attribute_proto}
        names = {name: value for name, value in zip(function.input, site.node.inputs, strict=False) if value}
        inner = Scope(names, {**defaults, **given}, f"{site.node.name}/", scope.depth + 1)
        self._nodes(function.node, inner)
        self._hand_on(site, function.output, inner)

    def _scan(self, site: Site, proto: NodeProto, scope: Scope) -> None:
        """One copy of the body for each step."""
        node = site.node
        body, count = node.graph("body"), node.integer("num_scan_inputs", 0)
        states = len(node.inputs) - count
        outputs = len(body.output) - states
        if count < 1 or states < 0 or outputs < 0 or len(body.input) != len(node.inputs) or not all(node.inputs):
            raise node.fail(
                f"has {len(node.inputs)} inputs, {count} of them sequences, for {len(body.input)} of its body"
            )
        if any(any(node.integers(name) or ()) for name in ("scan_input_directions", "scan_output_directions")):
            raise node.fail("runs backwards in time")
        axes = _scan_axes(site, "scan_input_axes", [len(site.shape(states + at)) for at in range(count)])
        extents = {site.shape(states + at)[axis] for at, axis in enumerate(axes)}
        if len(extents) != 1:
            raise node.fail(f"its sequences have {sorted(extents)} steps")
        (steps,) = extents
        if steps < 1:
            raise node.fail("its sequences have no steps")
        if steps * max(1, len(body.node)) > MAX_NODES:
            raise node.fail(f"runs {len(body.node)} nodes for {steps} steps", f"at most {MAX_NODES} in a network")
        self.values.scanned.append(steps)
        outer = {**scope.names, **self._arrays(body, f"{node.name}/")}
        carried, made = list(node.inputs[:states]), [list[str]() for _ in range(outputs)]
        for t in range(steps):
            prefix = f"{node.name}[{t}]/"
            parts = [self._part(site, states + at, axis, t, prefix) for at, axis in enumerate(axes)]
            names = dict(zip((value.name for value in body.input), (*carried, *parts), strict=True))
            inner = Scope({**outer, **names}, scope.attributes, prefix, scope.depth + 1)
            self._nodes(body.node, inner)
            results = [self._result(site, value.name, inner) for value in body.output]
            carried = results[:states]
            for sequence, value in zip(made, results[states:], strict=True):
                sequence.append(value)
        self._collect(site, carried, made)

    def _part(self, site: Site, index: int, axis: int, t: int, prefix: str) -> str:
        """One step of a sequence."""
        name = f"{prefix}input{index}"
        inner = OnnxNode(site.node.proto, site.node.name, (site.node.inputs[index],), (name,), self.file)
        Site(inner, self.values).compute(lambda x: x.select(axis, t), inner.inputs)
        return name

    def _collect(self, site: Site, carried: list[str], made: list[list[str]]) -> None:
        """The last states and the stacked results."""
        node = site.node
        axes = _scan_axes(site, "scan_output_axes", [self.values.known[s[0]].meta.ndim + 1 for s in made])
        for output, name in zip(node.outputs, carried, strict=False):
            if output:
                self.values.aliases[output] = name
        for output, sequence, axis in zip(node.outputs[len(carried) :], made, axes, strict=False):
            if output:
                inner = OnnxNode(node.proto, node.name, tuple(sequence), (output,), self.file)
                Site(inner, self.values).compute(_stack(axis), sequence)

    def _hand_on(self, site: Site, results: Sequence[str], inner: Scope) -> None:
        for output, name in zip(site.node.outputs, results, strict=False):
            if output:
                self.values.aliases[output] = self._result(site, name, inner)

    def _result(self, site: Site, name: str, inner: Scope) -> str:
        if name not in inner.names:
            raise site.node.fail(f"its body does not define its result {name!r}")
        return inner.names[name]


def _stack(axis: int) -> Callable[..., Tensor]:
    def stack(*steps: Tensor) -> Tensor:
        return torch.stack(steps, axis)

    return stack


def _scan_axes(site: Site, name: str, ndims: Sequence[int]) -> list[int]:
    axes = site.node.integers(name) or (0,) * len(ndims)
    if len(axes) != len(ndims) or any(not -n <= axis < n for axis, n in zip(axes, ndims, strict=True)):
        raise site.node.fail(f"{name} are {axes[:8]} for {len(ndims)} sequences")
    return [axis % n for axis, n in zip(axes, ndims, strict=True)]


def _resolved(proto: NodeProto, attributes: Mapping[str, AttributeProto]) -> NodeProto:
    """The node with its references to the attributes of the function's call replaced."""
    if not any(attribute.ref_attr_name for attribute in proto.attribute):
        return proto
    resolved = type(proto)()
    resolved.CopyFrom(proto)
    del resolved.attribute[:]
    for attribute in proto.attribute:
        if not attribute.ref_attr_name:
            resolved.attribute.append(attribute)
        elif attribute.ref_attr_name in attributes:
            given = resolved.attribute.add()
            given.CopyFrom(attributes[attribute.ref_attr_name])
            given.name = attribute.name
    return resolved
