"""The ONNX graph under construction: names, nodes, arrays and functions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from compiler.ir import Graph, Node, Number, Param, TensorType
from compiler.ir.ops import parameter_names

if TYPE_CHECKING:
    from onnx import FunctionProto, NodeProto, TensorProto, ValueInfoProto

OPSET = 17  # the highest that IR version 8 speaks: the first with functions, which every current reader has
IR_VERSION = 8
DOMAIN = "spikec"
_NONE: Mapping[str, object] = MappingProxyType({})


@dataclass(slots=True)
class Writer:
    """Collects what the rules write. Equal graphs give equal models: every name follows from the graph."""

    graph: Graph
    draws_as_input: bool
    nodes: list[NodeProto] = field(default_factory=list)
    initialisers: dict[str, TensorProto] = field(default_factory=dict)
    inputs: list[ValueInfoProto] = field(default_factory=list)
    functions: dict[str, FunctionProto] = field(default_factory=dict)
    values: dict[str, str] = field(default_factory=dict)  # ONNX names of the nodes' values
    _taken: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        """Parameters keep their names; a value whose name is taken gets underscores."""
        for node in self.graph.nodes:
            for name in parameter_names(node.op):
                self._taken.add(name)
                self._keep(name, self.graph.parameters[name])
        for node in self.graph.nodes:
            self.values[node.name] = self._unique(node.name)

    def value_type(self, name: str) -> TensorType:
        """The type of a node's value."""
        return self.graph.types[name]

    def emit(
        self,
        node: Node,
        op_type: str,
        inputs: Sequence[str],
        attributes: Mapping[str, object] = _NONE,
        *,
        part: str = "",
        domain: str = "",
    ) -> str:
        """Append an ONNX node; without `part` its result is the value of the graph's node."""
        from onnx import helper

        output = self._unique(f"{node.name}.{part}") if part else self.values[node.name]
        made = helper.make_node(op_type, inputs, [output], name=output, domain=domain, **attributes)
        made.doc_string = str(node.loc)
        self.nodes.append(made)
        return output

    def constant(self, node: Node, part: str, values: npt.ArrayLike, dtype: type[np.generic] = np.float32) -> str:
        """An array of the export's own."""
        name = self._unique(f"{node.name}.{part}")
        self._keep(name, np.asarray(values, dtype))
        return name

    def number(self, node: Node, part: str, value: Number, trailing: int) -> str:
        """A scalar, or values per channel that broadcast over `trailing` further axes."""
        if not isinstance(value, Param):
            return self.constant(node, part, value)
        if not trailing:
            return value.name
        axes = self.constant(node, f"{part}.axes", range(1, trailing + 1), np.int64)
        return self.emit(node, "Unsqueeze", [value.name, axes], part=part)

    def input(self, name: str, shape: Sequence[int | str]) -> None:
        """An input of the model."""
        self.inputs.append(value_info(name, shape))

    def draws(self, node: Node) -> str:
        """An input of the model that holds a node's uniform draws."""
        value = self._unique(f"{node.name}.draws")
        self.input(value, self.value_type(node.name).shape)
        return value

    def _unique(self, name: str) -> str:
        while name in self._taken:
            name += "_"
        self._taken.add(name)
        return name

    def _keep(self, name: str, array: npt.NDArray[np.generic]) -> None:
        from onnx import TensorProto

        kinds = {"float32": TensorProto.FLOAT, "int64": TensorProto.INT64}
        plain = np.ascontiguousarray(array).astype(array.dtype.newbyteorder("<"))
        self.initialisers[name] = TensorProto(
            name=name, dims=array.shape, data_type=kinds[array.dtype.name], raw_data=plain.tobytes()
        )


def value_info(name: str, shape: Sequence[int | str] | None) -> ValueInfoProto:
    """A float32 value of the shape; None leaves it open."""
    from onnx import TensorProto, helper

    return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
