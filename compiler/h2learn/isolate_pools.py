"""Cuts pooling that a tile cannot hold off into a layer of its own, which the Soma reads from memory."""

from __future__ import annotations

from dataclasses import replace

from compiler.h2learn.layers import NetworkLayer, Pool
from compiler.ir import Graph, Node
from compiler.ir.ops import AvgPool2d, MaxPool2d


def pool_of(node: Node) -> Pool:
    """The pooling op of a node that is one."""
    assert isinstance(node.op, AvgPool2d | MaxPool2d)
    return node.op


def fits_tile(pools: list[Node], tile: tuple[int, int]) -> bool:
    """Whether windows do not overlap, need no padding, and together are no larger than a tile."""
    for axis in (0, 1):
        unit = 1
        for node in pools:
            pool = pool_of(node)
            if pool.kernel[axis] != pool.stride[axis] or pool.padding[axis]:
                return False
            unit *= pool.stride[axis]
        if pools and unit > tile[axis]:
            return False
    return True


def isolate_pools(graph: Graph, layer: NetworkLayer, tile: tuple[int, int]) -> tuple[NetworkLayer, ...]:
    """The layer, split so that each part's pooling is local to a tile or read from memory.

    A tile of (0, 0) holds no pooling at all.

    Needs: a layer of split_layers. Ensures: the same values; parts without a synapse hold at most one pool.
    """
    if layer.synapse is None:
        return (layer,)
    pool1 = [layer.pool1] if layer.pool1 is not None else []
    pool2 = [layer.pool2] if layer.pool2 is not None else []
    if not fits_tile(pool1, tile):
        return (_head(graph, layer, layer.synapse, raw=True), *_memory_layers(graph, layer, layer.synapse))
    if not fits_tile(pool1 + pool2, tile):
        assert layer.neuron1 is not None
        head = _head(graph, layer, layer.neuron1, raw=False)
        return (head, *_memory_layers(graph, layer, layer.neuron1))
    return (layer,)


def _head(graph: Graph, layer: NetworkLayer, last: Node, *, raw: bool) -> NetworkLayer:
    return replace(
        layer,
        output=last.name,
        output_type=graph.types[last.name],
        pool1=None if raw else layer.pool1,
        pool1_type=layer.synapse_type if raw else layer.pool1_type,
        neuron1=None if raw else layer.neuron1,
        pool2=None,
        neuron2=None,
    )


def _memory_layers(graph: Graph, layer: NetworkLayer, after: Node) -> list[NetworkLayer]:
    """Layers for the pools and neurons behind `after`, one pool each."""
    stages = layer.nodes[layer.nodes.index(after) + 1 :]
    layers = []
    source = after
    while stages:
        pool = stages[0] if isinstance(stages[0].op, AvgPool2d | MaxPool2d) else None
        rest = stages[1:] if pool is not None else stages
        is_pool_next = bool(rest) and isinstance(rest[0].op, AvgPool2d | MaxPool2d)
        neuron = rest[0] if rest and not is_pool_next else None
        last = neuron or pool
        assert last is not None
        source_type = graph.types[source.name]
        layers.append(
            NetworkLayer(
                name=(pool or last).name,
                source=source.name,
                output=last.name,
                source_type=source_type,
                synapse_type=source_type,
                pool1_type=graph.types[pool.name] if pool is not None else source_type,
                output_type=graph.types[last.name],
                pool1=pool,
                neuron1=neuron,
                real=source_type.dtype != "spike",
            )
        )
        stages = rest[1:] if neuron is not None else rest
        source = last
    return layers
