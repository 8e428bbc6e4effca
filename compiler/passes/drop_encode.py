"""Takes the encoding off the front of a network, so that it takes spikes."""

from __future__ import annotations

from dataclasses import dataclass, replace

from compiler.ir import Graph
from compiler.ir.ops import Encode, Input


@dataclass(frozen=True, slots=True)
class DropEncode:
    """Make the encoded sequence the network's input.

    Needs: an encoding that alone reads the input. Ensures: on the encoded input, the same values; a network without
    an encoding stays as it is.
    """

    def __call__(self, graph: Graph) -> Graph:
        source = graph.input
        readers = graph.consumers(source.name)
        encodes = [node for node in readers if isinstance(node.op, Encode)]
        if not encodes:
            return graph
        if len(readers) > 1:
            raise graph.site(encodes[0]).fail("is not the only one that reads the input")
        (encode,) = encodes
        kind = graph.types[encode.name]
        given = replace(encode, op=Input(shape=kind.shape, dtype=kind.dtype, axes=kind.axes), inputs=())
        nodes = (given if node is encode else node for node in graph.nodes if node is not source)
        return graph.with_nodes(tuple(nodes))
