"""Moves a direct encoding behind the layers that read it, so that they work on one image and not on T equal ones."""

from __future__ import annotations

from dataclasses import dataclass, replace

from compiler.ir import Encoding, Graph, Node
from compiler.ir.ops import AvgPool2d, BatchNorm, Conv2d, Encode, Flatten, Lif, Linear, MaxPool2d, Scale

COMMUTES = (Conv2d, Linear, Scale, AvgPool2d, MaxPool2d, Flatten)


@dataclass(frozen=True, slots=True)
class PostponeEncode:
    """Rewrite layer(encode(x)) as encode(layer(x)) for a direct encoding; the opposite of HoistEncode.

    Needs: a verified graph. Ensures: no layer, pooling, Scale or Flatten reads a direct encoding, and neurons (with a
    batch norm of their own) have one for themselves; the same values, up to how a convolution of another batch rounds.
    A batch norm on feature maps that more than one population reads moves as layers do. In training its statistics
    are the same; only the running variance, corrected for the number of values, needs to count each T times.
    """

    def __call__(self, graph: Graph) -> Graph:
        while True:
            pair = next((p for node in graph.nodes if (p := _before_layer(graph, node)) is not None), None)
            if pair is None:
                break
            graph = _swapped(graph, *pair)
        for encode in tuple(node for node in graph.nodes if is_direct(node)):
            graph = _split(graph, encode)
        return graph


def is_direct(node: Node) -> bool:
    """Whether the node repeats its input over time."""
    return isinstance(node.op, Encode) and node.op.kind is Encoding.DIRECT


def is_neuron_norm(graph: Graph, node: Node) -> bool:
    """Whether the node is a batch norm that one population reads and nothing else."""
    readers = graph.consumers(node.name)
    has_one_reader = len(readers) == 1 and graph.output != node.name
    return isinstance(node.op, BatchNorm) and has_one_reader and isinstance(readers[0].op, Lif)


def _before_layer(graph: Graph, layer: Node) -> tuple[Node, Node] | None:
    """A direct encoding and the layer that reads it."""
    if not (isinstance(layer.op, COMMUTES) or _is_shared_norm(graph, layer)):
        return None
    encode = graph.node(layer.inputs[0])
    return (encode, layer) if is_direct(encode) else None


def _is_shared_norm(graph: Graph, node: Node) -> bool:
    """Whether the node is a batch norm that stays one, with more than one value for each channel of a sample."""
    kind = graph.types[node.name]
    has_pixels = kind.has("H") and kind.size("H") * kind.size("W") > 1  # the statistics of one value are refused
    return isinstance(node.op, BatchNorm) and has_pixels and not is_neuron_norm(graph, node)


def _swapped(graph: Graph, encode: Node, layer: Node) -> Graph:
    late = replace(encode, name=_fresh(graph, f"{layer.name}.encoded"), inputs=(layer.name,))
    is_read = graph.output == encode.name or len(graph.consumers(encode.name)) > 1
    nodes: list[Node] = []
    for node in graph.nodes:
        if node.name == layer.name:
            nodes += [replace(layer, inputs=encode.inputs), late]
        elif node.name != encode.name or is_read:
            nodes.append(_reading(node, layer.name, late.name))
    return graph.with_nodes(tuple(nodes), output=late.name if graph.output == layer.name else graph.output)


def _split(graph: Graph, encode: Node) -> Graph:
    """One encoding for each population among several readers; all other readers share the old one."""
    readers = graph.consumers(encode.name)
    neurons = [node for node in readers if isinstance(node.op, Lif) or is_neuron_norm(graph, node)]
    if graph.output != encode.name and len(neurons) == len(readers):
        neurons = neurons[1:]
    for reader in neurons:
        copy = replace(encode, name=_fresh(graph, f"{reader.name}.encoded"))
        nodes: list[Node] = []
        for node in graph.nodes:
            nodes += [copy, _reading(node, encode.name, copy.name)] if node.name == reader.name else [node]
        graph = graph.with_nodes(tuple(nodes))
    return graph


def _reading(node: Node, old: str, new: str) -> Node:
    return replace(node, inputs=tuple(new if name == old else name for name in node.inputs))


def _fresh(graph: Graph, name: str) -> str:
    while name in graph.types:
        name += "_"
    return name
