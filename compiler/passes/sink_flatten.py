"""Moves a Flatten behind the neurons that follow it, so that neurons keep their feature maps."""

from __future__ import annotations

from dataclasses import dataclass, replace

from compiler.ir import Graph, Node
from compiler.ir.ops import Flatten, Li, Lif, parameter_names


@dataclass(frozen=True, slots=True)
class SinkFlatten:
    """Rewrite neuron(flatten(x)) as flatten(neuron(x)).

    Needs: a verified graph. Ensures: no Lif or Li takes the result of a Flatten that has no other reader; the
    same values exactly.
    Raises: CompileError where the neurons have a number of their own for each feature: maps have one per channel.
    """

    def __call__(self, graph: Graph) -> Graph:
        while True:
            pair = next((p for node in graph.nodes if (p := _behind_flatten(graph, node)) is not None), None)
            if pair is None:
                return graph
            graph = _swapped(graph, *pair)


def _behind_flatten(graph: Graph, neuron: Node) -> tuple[Node, Node] | None:
    """The Flatten that only this neuron reads, and the neuron."""
    if not isinstance(neuron.op, Lif | Li):
        return None
    flatten = graph.node(neuron.inputs[0])
    if not isinstance(flatten.op, Flatten) or len(graph.consumers(flatten.name)) != 1:
        return None
    maps = graph.types[flatten.inputs[0]]
    if parameter_names(neuron.op) and (maps.size("H"), maps.size("W")) != (1, 1):
        raise graph.site(neuron).fail(
            f"stands behind a flatten of {maps} and has a number for each feature",
            "place the flatten behind the neurons; they then have one number per channel",
        )
    return flatten, neuron


def _swapped(graph: Graph, flatten: Node, neuron: Node) -> Graph:
    early = replace(neuron, inputs=flatten.inputs)
    late = replace(flatten, inputs=(neuron.name,))
    nodes: list[Node] = []
    for node in graph.nodes:
        if node.name == neuron.name:
            nodes += [early, late]
        elif node.name != flatten.name:
            inputs = tuple(flatten.name if name == neuron.name else name for name in node.inputs)
            nodes.append(replace(node, inputs=inputs))
    output = flatten.name if graph.output == neuron.name else graph.output
    return graph.with_nodes(tuple(nodes), output=output)
