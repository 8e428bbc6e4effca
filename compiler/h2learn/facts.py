"""What the closed forms need to know of a network: its layers, without weights and without a schedule."""

from __future__ import annotations

from compiler.h2learn.assign_engines import assign_engine
from compiler.h2learn.isolate_pools import isolate_pools, pool_of
from compiler.h2learn.layers import NetworkLayer, split_layers
from compiler.ir import Graph, Node, TensorType
from compiler.ir.ops import Conv2d
from compiler.passes import FoldBatchNorm, HoistEncode, MeanLast, SinkFlatten, run_passes
from hwmodel.config import H2LearnConfig
from hwmodel.program import Layer, NeuronFacts


def network_layers(graph: Graph, config: H2LearnConfig) -> tuple[Layer, ...]:
    """The layers as an ideal dataflow runs them, in order; batch normalisation is folded.

    Raises: CompileError for what the accelerator cannot run.
    """
    passes = (HoistEncode(), FoldBatchNorm(), MeanLast(), SinkFlatten())
    lowered, _ = run_passes(graph, passes)
    parts = (
        part
        for layer in split_layers(lowered).layers
        for part in isolate_pools(lowered, layer, (config.tile.h, config.tile.w))
    )
    return tuple(_facts(lowered, part) for part in parts)


def _facts(graph: Graph, layer: NetworkLayer) -> Layer:
    op = layer.synapse.op if layer.synapse is not None else None
    is_conv = isinstance(op, Conv2d)
    rows, columns = _used(layer)
    return Layer(
        name=layer.name,
        engine=assign_engine(layer),
        kind="pool" if op is None else "conv" if is_conv else "fc",
        nodes=tuple(node.name for node in layer.nodes),
        neurons=_neurons(graph, layer),
        c_in=layer.source_type.size("C"),
        c_out=layer.synapse_type.size("C"),
        kernel=layer.kernel,
        stride=op.stride if isinstance(op, Conv2d) else (1, 1),
        out_h=rows,
        out_w=columns,
        groups=op.groups if isinstance(op, Conv2d) else 1,
        hold=layer.held,
    )


def _neurons(graph: Graph, layer: NetworkLayer) -> tuple[NeuronFacts, ...]:
    """The neuron stages; a layer without one hands its sums on at its own resolution."""
    stages = [node for node in (layer.neuron1, layer.neuron2) if node is not None]
    if not stages:
        return (NeuronFacts(node="", fires=False, shape=maps_of(layer.output_type)),)
    return tuple(NeuronFacts(node=node.name, fires=True, shape=maps_of(graph.types[node.name])) for node in stages)


def maps_of(kind: TensorType) -> tuple[int, int, int]:
    """Channels, rows and columns of a value."""
    if not kind.has("H"):
        return kind.size("C"), 1, 1
    return kind.size("C"), kind.size("H"), kind.size("W")


def _used(layer: NetworkLayer) -> tuple[int, int]:
    """Rows and columns of the sums that pooling does not drop."""
    _, rows, columns = maps_of(layer.synapse_type)
    pools: list[Node] = [node for node in (layer.pool1, layer.pool2) if node is not None]
    _, out_rows, out_columns = maps_of(layer.output_type)
    for node in reversed(pools):
        out_rows, out_columns = out_rows * pool_of(node).stride[0], out_columns * pool_of(node).stride[1]
    return min(rows, out_rows), min(columns, out_columns)
