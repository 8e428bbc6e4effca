"""Maximum pooling in front of a ReLU instead of behind it, where that spares the pooling of spikes."""

from __future__ import annotations

from dataclasses import replace

from compiler.ir import Graph, Node
from compiler.ir.ops import Input, Lif, MaxPool2d


def pool_first(graph: Graph) -> Graph:
    """Rewrite max(relu(x)) as relu(max(x)) where x does not change over time.

    The two are equal, since a ReLU does not fall. As spikes they are not: the rate of the logical or of spike trains
    is more than the highest of their rates, but the maximum of constant drives is exact. Drives are constant where no
    other ReLU lies between them and the input.

    Needs: a graph whose populations stand for ReLUs. Ensures: the same values.
    """
    for pool in graph.nodes:
        if isinstance(pool.op, MaxPool2d):
            graph = _swapped(graph, graph.node(pool.inputs[0]), pool)
    return graph


def _swapped(graph: Graph, relu: Node, pool: Node) -> Graph:
    if not _may_follow(graph, relu):
        return graph
    early = replace(pool, inputs=relu.inputs)
    late = replace(relu, inputs=(pool.name,))
    nodes = []
    for node in graph.nodes:
        if node.name == pool.name:
            nodes += [early, late]
        elif node.name != relu.name:
            inputs = tuple(relu.name if name == pool.name else name for name in node.inputs)
            nodes.append(replace(node, inputs=inputs))
    output = relu.name if graph.output == pool.name else graph.output
    return graph.with_nodes(tuple(nodes), output=output)


def _may_follow(graph: Graph, relu: Node) -> bool:
    """Whether a ReLU rises with its input, which is constant, and nothing but the pooling reads it."""
    if not isinstance(relu.op, Lif) or relu.op.input_scale != 1.0:  # of a batch norm, whose gain may be negative
        return False
    read_once = len(graph.consumers(relu.name)) == 1 and graph.output != relu.name
    return read_once and is_constant(graph, relu.inputs[0])


def is_constant(graph: Graph, name: str) -> bool:
    """Whether a value is the same at every step: it depends on no population."""
    node = graph.node(name)
    return isinstance(node.op, Input) or (
        not isinstance(node.op, Lif) and all(is_constant(graph, source) for source in node.inputs)
    )
