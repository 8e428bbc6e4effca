"""Layers without state as nodes of NIR."""

from __future__ import annotations

import numpy as np

from compiler.ir import Graph, Node, Number, Param
from compiler.ir.ops import AvgPool2d, Conv2d, Flatten, Linear, Op, Scale, window_extent
from frontends.nir_file.nodes import Field, NirNode


def layer_node(graph: Graph, node: Node, shape: tuple[int, ...], *, is_line: bool) -> NirNode:
    """The NIR node of a layer.

    shape: of what it takes, without samples and time. is_line: a Conv2d works on lines (C, L).
    Raises: CompileError for a pooling whose windows NIR cannot state.
    """
    match node.op:
        case Conv2d() as op:
            return _conv1d(graph, op, shape) if is_line else _conv2d(graph, op, shape)
        case Linear(weight=weight, bias=None):
            return NirNode(kind="Linear", fields={"weight": _array(graph, weight)})
        case Linear(weight=weight, bias=Param() as bias):
            return NirNode(kind="Affine", fields={"weight": _array(graph, weight), "bias": _array(graph, bias)})
        case AvgPool2d() as op:
            return _pool(graph, node, op, shape)
        case Flatten():
            fields: dict[str, Field] = {"input_type": _integers(shape), "start_dim": _one(0), "end_dim": _one(-1)}
            return NirNode(kind="Flatten", fields=fields)
    assert isinstance(node.op, Scale)
    return NirNode(kind="Scale", fields={"scale": _spread(graph, node.op.factor, shape)})


def _conv2d(graph: Graph, op: Conv2d, shape: tuple[int, ...]) -> NirNode:
    fields: dict[str, Field] = {
        "input_shape": _integers(shape[1:]),
        "weight": _array(graph, op.weight),
        "stride": _integers(op.stride),
        "padding": _integers(op.padding),
        "dilation": _integers((1, 1)),
        "groups": _one(op.groups),
        "bias": _bias(graph, op),
    }
    return NirNode(kind="Conv2d", fields=fields)


def _conv1d(graph: Graph, op: Conv2d, shape: tuple[int, ...]) -> NirNode:
    fields: dict[str, Field] = {
        "input_shape": _one(shape[1]),
        "weight": np.ascontiguousarray(_array(graph, op.weight)[:, :, 0]),
        "stride": _one(op.stride[1]),
        "padding": _one(op.padding[1]),
        "dilation": _one(1),
        "groups": _one(op.groups),
        "bias": _bias(graph, op),
    }
    return NirNode(kind="Conv1d", fields=fields)


def _pool(graph: Graph, node: Node, op: AvgPool2d, shape: tuple[int, ...]) -> NirNode:
    """NIR's average counts padding, and keeps no partial window."""
    sizes = tuple(zip(shape[1:], op.kernel, op.stride, op.padding, strict=True))
    if op.ceil_mode and any(window_extent(*size) != window_extent(*size, True) for size in sizes):
        raise graph.site(node).fail("NIR's AvgPool2d keeps no partial last window (ceil_mode)")
    if any(op.padding) and not op.count_include_pad:
        raise graph.site(node).fail("NIR's AvgPool2d counts the padding in its divisor (count_include_pad)")
    fields: dict[str, Field] = {
        "kernel_size": _integers(op.kernel),
        "stride": _integers(op.stride),
        "padding": _integers(op.padding),
    }
    return NirNode(kind="AvgPool2d", fields=fields)


def _bias(graph: Graph, op: Op) -> Field:
    """NIR's convolutions always have a bias."""
    assert isinstance(op, Conv2d)
    if op.bias is None:
        return np.zeros(graph.parameters[op.weight.name].shape[0], np.float32)
    return _array(graph, op.bias)


def _spread(graph: Graph, value: Number, shape: tuple[int, ...]) -> Field:
    numbers = _array(graph, value).reshape(-1, *(1,) * (len(shape) - 1)) if isinstance(value, Param) else value
    return np.ascontiguousarray(np.broadcast_to(np.asarray(numbers, np.float64), shape))


def _array(graph: Graph, param: Param) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    return np.asarray(graph.parameters[param.name])


def _integers(values: tuple[int, ...]) -> Field:
    return np.array(values, np.int64)


def _one(value: int) -> Field:
    return np.array(value, np.int64)
