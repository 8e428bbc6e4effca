"""The layers of a stage on torch's kernels, called on all rows at once or on chunks of them."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from compiler.fused.program import Layer

_ATEN = torch.ops.aten
_ONEDNN = getattr(torch.ops.mkldnn, "_linear_pointwise", None)  # in builds of torch with oneDNN


def layer_forward(layer: Layer, y: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """The layer's result, channels last.

    Shapes: y (rows, C, H, W) -> (rows, O, H', W'), or (rows, C) -> (rows, O).
    """
    if not layer.convolution:
        return _linear(y, weight, bias)
    parts = _chunks(layer, y)
    if len(parts) == 1:
        return functional.conv2d(y, weight, bias, layer.stride, layer.padding, 1, layer.groups)
    result: Tensor | None = None
    first = 0
    for part in parts:
        values = functional.conv2d(part, weight, bias, layer.stride, layer.padding, 1, layer.groups)
        if result is None:
            shape = (len(y), *values.shape[1:])
            result = torch.empty(shape, dtype=values.dtype, device=y.device, memory_format=torch.channels_last)
        result[first : first + len(part)] = values
        first += len(part)
    assert result is not None
    return result


def layer_grad_input(layer: Layer, grad: Tensor, y: Tensor, weight: Tensor) -> Tensor:
    """The gradient of the layer's input; of `y` only the shape counts."""
    if not layer.convolution:
        return _linear(grad, weight.t(), None)
    parts = []
    for some, part in zip(_chunks(layer, grad), _chunks(layer, y), strict=True):
        found = _convolution_backward(layer, some, part, weight, (True, False, False))[0]
        assert found is not None
        parts.append(found)
    result = parts[0] if len(parts) == 1 else torch.cat(parts)
    return result.contiguous(memory_format=torch.channels_last)


def layer_grad_parameters(
    layer: Layer, grad: Tensor, y: Tensor, weight: Tensor, *, need_weight: bool, need_bias: bool
) -> tuple[Tensor | None, Tensor | None]:
    """The gradients of weight and bias."""
    if not layer.convolution:
        grad_weight = _linear(grad.t(), y.t(), None) if need_weight else None
        return grad_weight, grad.sum(0) if need_bias else None
    totals: list[Tensor | None] = [None, None]
    for some, part in zip(_chunks(layer, grad), _chunks(layer, y), strict=True):
        found = _convolution_backward(layer, some, part, weight, (False, need_weight, need_bias))
        for at in (0, 1):
            value, total = found[1 + at], totals[at]
            totals[at] = value if total is None or value is None else total.add_(value)
    return totals[0], totals[1]


def _linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """x weight^T + bias. On CPUs in f32 by oneDNN, which was 2.4 times as fast as the BLAS library that torch takes."""
    if x.dtype == torch.float32 and x.device.type == "cpu" and _ONEDNN is not None:
        product: Tensor = _ONEDNN(x, weight, bias, "none", [], "")
        return product
    return functional.linear(x, weight, bias)


def _chunks(layer: Layer, rows: Tensor) -> tuple[Tensor, ...]:
    if rows.is_cuda or not 0 < layer.rows_per_call < len(rows):  # orders are chosen for a CPU's caches
        return (rows,)
    return torch.split(rows, layer.rows_per_call)


def _convolution_backward(
    layer: Layer, grad: Tensor, y: Tensor, weight: Tensor, mask: tuple[bool, bool, bool]
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    bias_sizes = [weight.shape[0]] if mask[2] else None
    found: tuple[Tensor | None, Tensor | None, Tensor | None] = _ATEN.convolution_backward(
        grad, y, weight, bias_sizes, layer.stride, layer.padding, (1, 1), False, (0, 0), layer.groups, mask
    )
    return found
