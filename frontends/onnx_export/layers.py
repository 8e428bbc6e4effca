"""One rule for each op: the standard ONNX nodes that compute what `evaluate` computes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import singledispatch

import numpy as np

from compiler.ir import CompileError, Encoding, Node, Reading
from compiler.ir.ops import (
    Add,
    AvgPool2d,
    BatchNorm,
    Conv2d,
    Encode,
    Flatten,
    Input,
    Li,
    Lif,
    Linear,
    MaxPool2d,
    Op,
    Readout,
    Scale,
)
from frontends.onnx_export.neurons import function_name, neuron_attributes, neuron_function, number_fields
from frontends.onnx_export.writer import DOMAIN, Writer


@singledispatch
def write(op: Op, node: Node, writer: Writer) -> None:
    """Write a node.

    Raises: CompileError if ONNX cannot express the op.
    """
    raise CompileError(f"{node.name}: no rule to write {type(op).__name__} as ONNX", node.loc)


@write.register
def _(op: Input, node: Node, writer: Writer) -> None:
    writer.input(writer.values[node.name], op.shape)


@write.register
def _(op: Encode, node: Node, writer: Writer) -> None:
    x = _input(node, writer)
    repeats = [op.timesteps, *(1 for _ in writer.value_type(node.inputs[0]).shape)]
    match op.kind:
        case Encoding.DIRECT:
            shape = writer.constant(node, "shape", repeats, np.int64)
            writer.emit(node, "Expand", [x, shape])
        case Encoding.BERNOULLI:
            if op.mask is None and not writer.draws_as_input:
                raise CompileError(
                    f"{node.name}: ONNX cannot draw the numbers of a seed",
                    node.loc,
                    hint="to_onnx(..., draws_as_input=True) makes them an input; or encode with a mask",
                )
            draws = op.mask.name if op.mask is not None else writer.draws(node)
            _cast(node, writer, writer.emit(node, "Less", [draws, x], part="fires"))
        case Encoding.LATENCY:
            steps = np.arange(op.timesteps).reshape(-1, *repeats[1:])
            late = writer.emit(node, "Sub", [writer.constant(node, "one", 1.0), x], part="late")
            last = writer.constant(node, "last", op.timesteps - 1)
            step = writer.emit(node, "Round", [writer.emit(node, "Mul", [late, last], part="exact")], part="step")
            now = writer.emit(node, "Equal", [writer.constant(node, "steps", steps), step], part="now")
            zero = writer.constant(node, "zero", 0.0)
            positive = writer.emit(node, "Greater", [x, zero], part="positive")
            _cast(node, writer, writer.emit(node, "And", [now, positive], part="fires"))


@write.register
def _(op: Conv2d, node: Node, writer: Writer) -> None:
    parameters = [param.name for param in (op.weight, op.bias) if param is not None]
    attributes = {
        "kernel_shape": list(writer.graph.parameters[op.weight.name].shape[2:]),
        "strides": list(op.stride),
        "pads": [*op.padding, *op.padding],
        "group": op.groups,
    }
    _merged(node, writer, lambda x, part: writer.emit(node, "Conv", [x, *parameters], attributes, part=part))


@write.register
def _(op: Linear, node: Node, writer: Writer) -> None:
    parameters = [param.name for param in (op.weight, op.bias) if param is not None]
    _merged(node, writer, lambda x, part: writer.emit(node, "Gemm", [x, *parameters], {"transB": 1}, part=part))


@write.register
def _(op: BatchNorm, node: Node, writer: Writer) -> None:
    parameters = [param.name for param in (op.weight, op.bias, op.mean, op.var)]
    attributes = {"epsilon": float(op.eps)}
    _merged(
        node,
        writer,
        lambda x, part: writer.emit(node, "BatchNormalization", [x, *parameters], attributes, part=part),
    )


@write.register
def _(op: AvgPool2d, node: Node, writer: Writer) -> None:
    _pool(op, node, writer, "AveragePool", {"count_include_pad": int(op.count_include_pad)})


@write.register
def _(op: MaxPool2d, node: Node, writer: Writer) -> None:
    _pool(op, node, writer, "MaxPool", {})


@write.register
def _(op: Flatten, node: Node, writer: Writer) -> None:
    target = writer.value_type(node.name)
    lead = [target.size("T"), -1] if target.has("T") else [-1]
    shape = writer.constant(node, "shape", [*lead, target.size("C")], np.int64)
    writer.emit(node, "Reshape", [_input(node, writer), shape])


@write.register
def _(op: Add, node: Node, writer: Writer) -> None:
    writer.emit(node, "Add", [writer.values[name] for name in node.inputs])


@write.register
def _(op: Scale, node: Node, writer: Writer) -> None:
    factor = writer.number(node, "factor", op.factor, _trailing(node, writer))
    writer.emit(node, "Mul", [_input(node, writer), factor])


@write.register
def _(op: Readout, node: Node, writer: Writer) -> None:
    x = _input(node, writer)
    match op.kind:
        case Reading.RATE:
            writer.emit(node, "ReduceMean", [x], {"axes": [0], "keepdims": 0})
        case Reading.MAX:
            writer.emit(node, "ReduceMax", [x], {"axes": [0], "keepdims": 0})
        case Reading.LAST:
            last = writer.constant(node, "index", writer.value_type(node.inputs[0]).size("T") - 1, np.int64)
            writer.emit(node, "Gather", [x, last], {"axis": 0})


@write.register(Lif)
@write.register(Li)
def _(op: Lif | Li, node: Node, writer: Writer) -> None:
    trailing = _trailing(node, writer)
    numbers = [writer.number(node, what, getattr(op, what), trailing) for what in number_fields(op)]
    name = function_name(op)
    if name not in writer.functions:
        writer.functions[name] = neuron_function(op)
    writer.emit(node, name, [_input(node, writer), *numbers], neuron_attributes(op), domain=DOMAIN)


def _pool(op: AvgPool2d | MaxPool2d, node: Node, writer: Writer, op_type: str, further: Mapping[str, int]) -> None:
    attributes = {
        "kernel_shape": list(op.kernel),
        "strides": list(op.stride),
        "pads": [*op.padding, *op.padding],
        "ceil_mode": int(op.ceil_mode),
        **further,
    }
    _merged(node, writer, lambda x, part: writer.emit(node, op_type, [x], attributes, part=part))


def _merged(node: Node, writer: Writer, layer: Callable[[str, str], str]) -> None:
    """Apply a layer with T and N merged; it takes its input's name and the part of the node that it is."""
    x, source, target = _input(node, writer), writer.value_type(node.inputs[0]), writer.value_type(node.name)
    if not source.has("T"):
        layer(x, "")
        return
    merged = writer.constant(node, "merged.shape", [-1, *source.shape[2:]], np.int64)
    separate = writer.constant(node, "shape", [target.size("T"), -1, *target.shape[2:]], np.int64)
    y = layer(writer.emit(node, "Reshape", [x, merged], part="merged"), "layer")
    writer.emit(node, "Reshape", [y, separate])


def _cast(node: Node, writer: Writer, condition: str) -> None:
    from onnx import TensorProto

    writer.emit(node, "Cast", [condition], {"to": TensorProto.FLOAT})


def _input(node: Node, writer: Writer) -> str:
    return writer.values[node.inputs[0]]


def _trailing(node: Node, writer: Writer) -> int:
    """Axes behind the channels."""
    axes = writer.value_type(node.name).axes
    return len(axes) - axes.index("C") - 1
