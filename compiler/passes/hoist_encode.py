"""Moves a direct encoding to the input, so that every layer works on a sequence."""

from __future__ import annotations

from dataclasses import dataclass, replace

from compiler.ir import Encoding, Graph, Node
from compiler.ir.ops import Encode, Input


@dataclass(frozen=True, slots=True)
class HoistEncode:
    """Place a direct Encode right after the input; layers before it then run at each step on equal values.

    Needs: a verified graph whose nodes before the Encode form a chain. Ensures: the same values exactly
    (a direct encoding repeats its input, so it commutes with every op that has no time).
    """

    def __call__(self, graph: Graph) -> Graph:
        encode = next((n for n in graph.nodes if isinstance(n.op, Encode)), None)
        if encode is None or not isinstance(encode.op, Encode) or encode.op.kind is not Encoding.DIRECT:
            return graph
        source = graph.input.name
        if encode.inputs == (source,) or len(graph.consumers(source)) != 1:
            return graph
        nodes: list[Node] = []
        for node in graph.nodes:
            if node is encode:
                continue
            inputs = tuple(_moved(name, source, encode) for name in node.inputs)
            nodes.append(replace(node, inputs=inputs))
            if isinstance(node.op, Input):
                nodes.append(replace(encode, inputs=(source,)))
        output = encode.inputs[0] if graph.output == encode.name else graph.output
        return graph.with_nodes(tuple(nodes), output=output)


def _moved(name: str, source: str, encode: Node) -> str:
    if name == source:
        return encode.name
    return encode.inputs[0] if name == encode.name else name
