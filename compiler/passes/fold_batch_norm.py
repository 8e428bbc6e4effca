"""Removes affine nodes: batch norms and scales go into the weights before or the neuron after them."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from compiler.ir import Graph, Node, Param
from compiler.ir.ops import Array, BatchNorm, Conv2d, Li, Lif, Linear, Scale

Float64 = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class FoldBatchNorm:
    """Fold BatchNorm and Scale into the convolution or linear layer before, or else the neuron after.

    y = gain * x + shift with gain = weight / sqrt(var + eps), shift = bias - mean * gain; computed in f64.
    w' = gain * w, b' = gain * b + shift; or input_scale' = input_scale * gain,
    leak_bias' = leak_bias + input_scale * shift.

    Needs: a verified graph. Ensures: no BatchNorm, no Scale that has such a neighbour; each x of a neuron
    within rounding (the sums are the same in real numbers, their f32 roundings differ).
    Raises: CompileError for an affine node without such a neighbour.
    Source: equation 4.3 with running statistics.
    """

    def __call__(self, graph: Graph) -> Graph:
        while True:
            node = next((n for n in graph.nodes if isinstance(n.op, BatchNorm | Scale)), None)
            if node is None:
                return graph
            graph = _fold(graph, node)


def _fold(graph: Graph, node: Node) -> Graph:
    gain, shift = _affine(graph, node)
    producer = graph.node(node.inputs[0])
    consumers = graph.consumers(node.name)
    if isinstance(producer.op, Conv2d | Linear) and len(graph.consumers(producer.name)) == 1:
        folded, arrays = _into_weights(graph, producer, gain, shift)
        gone, source = node.name, producer.name
    elif len(consumers) == 1 and isinstance(consumers[0].op, Lif | Li):
        folded, arrays = _into_neuron(graph, consumers[0], gain, shift)
        gone, source = node.name, node.inputs[0]
    else:
        raise graph.site(node).fail(
            f"{type(node.op).__name__} stands neither after a layer with weights nor before a neuron",
            "only such a one can be folded into weights or neuron",
        )
    nodes = []
    for other in graph.nodes:
        if other.name == gone:
            continue
        current = folded if other.name == folded.name else other
        inputs = tuple(source if name == gone else name for name in current.inputs)
        nodes.append(replace(current, inputs=inputs))
    output = source if graph.output == gone else graph.output
    return graph.with_nodes(tuple(nodes), output=output, parameters=arrays)


def _affine(graph: Graph, node: Node) -> tuple[Float64, Float64]:
    channels = graph.types[node.name].size("C")
    site = graph.site(node)
    if isinstance(node.op, Scale):
        gain = site.channels(node.op.factor, channels, "factor").astype(np.float64)
        return gain, np.zeros(channels)
    op = node.op
    assert isinstance(op, BatchNorm)
    weight, bias, mean, var = (
        graph.parameters[p.name].astype(np.float64) for p in (op.weight, op.bias, op.mean, op.var)
    )
    gain = weight / np.sqrt(var + op.eps)
    return gain, bias - mean * gain


def _into_weights(
    graph: Graph,
    producer: Node,
    gain: Float64,
    shift: Float64,
) -> tuple[Node, dict[str, Array]]:
    op = producer.op
    assert isinstance(op, Conv2d | Linear)
    weight = graph.parameters[op.weight.name].astype(np.float64)
    bias = graph.parameters[op.bias.name].astype(np.float64) if op.bias is not None else 0.0
    names = (f"{producer.name}.folded_weight", f"{producer.name}.folded_bias")
    arrays = {
        names[0]: (weight * gain.reshape(-1, *(1,) * (weight.ndim - 1))).astype(np.float32),
        names[1]: (bias * gain + shift).astype(np.float32),
    }
    return replace(producer, op=replace(op, weight=Param(names[0]), bias=Param(names[1]))), arrays


def _into_neuron(
    graph: Graph,
    neuron: Node,
    gain: Float64,
    shift: Float64,
) -> tuple[Node, dict[str, Array]]:
    op = neuron.op
    assert isinstance(op, Lif | Li)
    site = graph.site(neuron)
    scale = site.channels(op.input_scale, len(gain), "input_scale").astype(np.float64)
    leak = site.channels(op.leak_bias, len(gain), "leak_bias").astype(np.float64)
    names = (f"{neuron.name}.folded_scale", f"{neuron.name}.folded_leak")
    arrays = {
        names[0]: (scale * gain).astype(np.float32),
        names[1]: (leak + scale * shift).astype(np.float32),
    }
    return replace(neuron, op=replace(op, input_scale=Param(names[0]), leak_bias=Param(names[1]))), arrays
