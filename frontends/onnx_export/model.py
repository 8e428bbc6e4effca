"""A graph as an ONNX model."""

from __future__ import annotations

from typing import TYPE_CHECKING

from compiler.ir import Graph
from compiler.ir.text import print_graph
from frontends.onnx_export.layers import write
from frontends.onnx_export.writer import DOMAIN, IR_VERSION, OPSET, Writer, value_info

if TYPE_CHECKING:
    from onnx import ModelProto

TEXT_KEY = "spikec.graph"  # metadata: what standard nodes cannot hold, as origins and exact numbers


def onnx_model(graph: Graph, *, draws_as_input: bool = False) -> ModelProto:
    """The model; equal graphs give equal models.

    Raises: CompileError naming the node that ONNX cannot express.
    """
    from onnx import helper

    writer = Writer(graph, draws_as_input)
    for node in graph.nodes:
        write(node.op, node, writer)
    output = writer.values[graph.output]
    if graph.node(graph.output) is graph.input:  # an input of a model cannot be its output
        output = writer.emit(graph.input, "Identity", [output], part="output")
    content = helper.make_graph(
        writer.nodes,
        graph.name,
        writer.inputs,
        [value_info(output, graph.types[graph.output].shape)],
        list(writer.initialisers.values()),
    )
    versions = [("", OPSET), *([(DOMAIN, 1)] if writer.functions else [])]
    model = helper.make_model(
        content,
        producer_name="spikec",
        ir_version=IR_VERSION,
        opset_imports=[helper.make_opsetid(*version) for version in versions],
        functions=list(writer.functions.values()),
    )
    model.metadata_props.add(key=TEXT_KEY, value=print_graph(graph))
    return model
