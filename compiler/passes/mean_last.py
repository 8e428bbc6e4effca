"""Moves the mean over time behind the linear layers that follow it, so that they take spikes."""

from __future__ import annotations

from dataclasses import dataclass, replace

from compiler.ir import Graph, Reading
from compiler.ir.ops import Flatten, Linear, Readout


@dataclass(frozen=True, slots=True)
class MeanLast:
    """Rewrite linear(mean over t of s[t]) as mean over t of linear(s[t]); a Flatten moves likewise.

    Needs: a verified graph. Ensures: no Linear or Flatten takes the result of a rate Readout; the same
    output in real numbers, in f32 up to the order of its sums; every spike exactly the same.
    """

    def __call__(self, graph: Graph) -> Graph:
        while True:
            swapped = _swap_one(graph)
            if swapped is None:
                return graph
            graph = swapped


def _swap_one(graph: Graph) -> Graph | None:
    for node in graph.nodes:
        if not isinstance(node.op, Linear | Flatten):
            continue
        readout = graph.node(node.inputs[0])
        is_rate = isinstance(readout.op, Readout) and readout.op.kind is Reading.RATE
        if not is_rate or len(graph.consumers(readout.name)) != 1:
            continue
        moved = replace(node, inputs=readout.inputs)
        late = replace(readout, inputs=(node.name,))
        nodes = []
        for other in graph.nodes:
            if other.name == readout.name:
                continue
            if other.name == node.name:
                nodes += [moved, late]
                continue
            inputs = tuple(readout.name if name == node.name else name for name in other.inputs)
            nodes.append(replace(other, inputs=inputs))
        output = readout.name if graph.output == node.name else graph.output
        return graph.with_nodes(tuple(nodes), output=output)
    return None
