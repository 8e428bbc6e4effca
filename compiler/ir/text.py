"""The IR as text: printed for people and `.spk` files, parsed back to an equal graph."""

from __future__ import annotations

import json
from dataclasses import is_dataclass

from compiler.ir.fields import class_word, field_types
from compiler.ir.graph import Graph, Node
from compiler.ir.lexer import bare_or_quoted, tokens, word_or_quoted
from compiler.ir.ops import Parameters
from compiler.ir.parser import Parser
from compiler.ir.types import TensorType
from compiler.ir.values import Param
from hwmodel.errors import CompileError


def print_graph(graph: Graph) -> str:
    """The graph without its arrays, one line per node.

    Every field is written out, so that a stored text keeps its meaning when a default changes.
    """
    lines = [_node(node, graph.types[node.name]) for node in graph.nodes]
    body = "\n".join(f"  {line}" for line in (*lines, f"return %{bare_or_quoted(graph.output)}"))
    return f"graph {json.dumps(graph.name)} {{\n{body}\n}}\n"


def parse_graph(text: str, parameters: Parameters, *, file: str = "<text>") -> Graph:
    """The graph of a text with its arrays.

    Fields that have a default may be left out, and so may a node's type and its loc (then this text).
    Raises: CompileError for every fault of the text, and those of `Graph`.
    """
    parser = Parser(list(tokens(text, file)))
    name, nodes, output = parser.graph()
    graph = Graph(name, nodes, output, parameters)
    for written in parser.types:
        inferred = graph.types[written.node]
        if written.type != inferred:
            raise CompileError(
                f"%{written.node} is written as {_type(written.type)}, but its op gives {_type(inferred)}",
                written.loc,
                hint="correct the type or leave it out",
            )
    return graph


def _node(node: Node, value: TensorType) -> str:
    inputs = [f"%{bare_or_quoted(name)}" for name in node.inputs]
    call = f"{class_word(type(node.op))}({', '.join(inputs + _fields(node.op))})"
    line = f":{node.loc.line}" if node.loc.line else ""
    return f"%{bare_or_quoted(node.name)} = {call} : {_type(value)} loc({json.dumps(node.loc.file)}{line})"


def _fields(owner: object) -> list[str]:
    return [f"{name}={_value(getattr(owner, name))}" for name in field_types(type(owner))]


def _value(value: object) -> str:
    match value:
        case bool() | None:
            return str(value).lower()
        case int() | float():
            return repr(value)
        case Param():
            return f"@{bare_or_quoted(value.name)}"
        case str():
            return word_or_quoted(value)
        case tuple():
            return f"({', '.join(_value(item) for item in value)})"
    assert is_dataclass(value), f"no text for {value!r}"
    return f"{class_word(type(value))}({', '.join(_fields(value))})"


def _type(value: TensorType) -> str:
    dims = (
        axis if size == axis else f"{axis}={_value(size)}" for axis, size in zip(value.axes, value.shape, strict=True)
    )
    return f"{value.dtype}[{', '.join(dims)}]"
