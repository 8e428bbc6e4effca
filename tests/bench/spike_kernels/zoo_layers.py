"""The layers with spike input of the zoo's networks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from compiler.fused.order import LayerShape, modelled_order, this_machine
from compiler.fused.program import Layer
from compiler.fused.spikes.costs import SMALLEST
from compiler.fused.spikes.geometry import Geometry
from compiler.ir import DType, Graph, Node
from compiler.ir.ops import Conv2d, Linear
from runtime.fused.spikes.layer import SpikeLayer
from spikec.models import load_model

LARGE = 1 << 32  # multiplications of a pass: beyond, a single sample has enough of them


@dataclass(slots=True)
class ZooLayers:
    """by_layer: the places, as NETWORK/NODE, of each layer that is timed. real, small: how many are not, and why."""

    by_layer: dict[SpikeLayer, list[str]] = field(default_factory=dict)
    real: int = 0  # whose input is real values
    small: int = 0  # which run dense by rule


def zoo_layers(networks: Sequence[str], timesteps: int, batch: int) -> ZooLayers:
    """Layers of equal sizes are one."""
    found = ZooLayers()
    for network in networks:
        graph = load_model(f"zoo:{network}", timesteps=timesteps).graph
        for node in graph.nodes:
            if not isinstance(node.op, Conv2d | Linear):
                continue
            if graph.types[node.inputs[0]].dtype is not DType.SPIKE:
                found.real += 1
                continue
            layer = spike_layer(graph, node, batch)
            if layer.geometry.multiplications > LARGE:
                layer = spike_layer(graph, node, 1)
            if layer.geometry.multiplications < SMALLEST:
                found.small += 1
            else:
                found.by_layer.setdefault(layer, []).append(f"{network}/{node.name}")
    return found


def spike_layer(graph: Graph, node: Node, batch: int) -> SpikeLayer:
    """The layer on so many samples and all time steps, its dense calls in the loop order that the model chooses."""
    x, y = graph.types[node.inputs[0]], graph.types[node.name]
    timesteps = x.size("T") if x.has("T") else 1
    assert isinstance(node.op, Conv2d | Linear)
    if isinstance(node.op, Linear):
        geometry = Geometry.of_linear(timesteps * batch, x.size("C"), y.size("C"))
        return SpikeLayer(Layer(convolution=False, bias=node.op.bias is not None), geometry)
    op = node.op
    _, _, rows, columns = graph.parameters[op.weight.name].shape
    shape = LayerShape(
        timesteps=timesteps, batch=batch, channels=x.size("C"), height=x.size("H"), width=x.size("W"),
        out_channels=y.size("C"), kernel=(rows, columns), stride=op.stride, padding=op.padding, groups=op.groups,
    )  # fmt: skip
    geometry = Geometry(
        images=shape.rows, height=shape.height, width=shape.width, channels=shape.channels,
        out_channels=shape.out_channels, kernel=shape.kernel, stride=op.stride, padding=op.padding, groups=op.groups,
    )  # fmt: skip
    layer = Layer(
        convolution=True, bias=op.bias is not None, stride=op.stride, padding=op.padding, groups=op.groups,
        rows_per_call=modelled_order(shape, this_machine()).rows_per_call,
    )  # fmt: skip
    return SpikeLayer(layer, geometry)
