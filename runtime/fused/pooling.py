"""Pooling that no kernel takes in, overlapping or padded: torch's operators on maps with the channels last."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from compiler.ir.ops import AvgPool2d, MaxPool2d

_ATEN = torch.ops.aten
Pool = AvgPool2d | MaxPool2d


def pool_forward(op: Pool, maps: Tensor) -> Tensor:
    """Shapes: (T, N, H, W, C) -> (T, N, H', W', C)."""
    x = images(maps)
    if isinstance(op, AvgPool2d):
        pooled = functional.avg_pool2d(x, op.kernel, op.stride, op.padding, op.ceil_mode, op.count_include_pad)
    else:
        pooled = functional.max_pool2d(x, op.kernel, op.stride, op.padding, ceil_mode=op.ceil_mode)
    return as_maps(pooled, maps.shape[0])


def pool_backward(op: Pool, maps: Tensor, grad: Tensor) -> Tensor:
    """The gradient of the input from that of the result."""
    x, grad_y = images(maps), images(grad)
    if isinstance(op, AvgPool2d):
        options = (op.kernel, op.stride, op.padding, op.ceil_mode, op.count_include_pad, None)
        found: Tensor = _ATEN.avg_pool2d_backward(grad_y, x, *options)
    else:
        window = (op.kernel, op.stride, op.padding, (1, 1), op.ceil_mode)
        _, indices = _ATEN.max_pool2d_with_indices(x, *window)
        found = _ATEN.max_pool2d_with_indices_backward(grad_y, x, *window, indices)
    return as_maps(found, maps.shape[0])


def images(maps: Tensor) -> Tensor:
    """Shapes: (T, N, H, W, C) -> (T * N, C, H, W), a view in channels_last format."""
    return maps.flatten(0, 1).permute(0, 3, 1, 2)


def as_maps(rows: Tensor, timesteps: int) -> Tensor:
    """Shapes: (T * N, C, H, W) -> (T, N, H, W, C) contiguous; a view of a tensor in channels_last format."""
    last = rows.permute(0, 2, 3, 1).contiguous()
    return last.view(timesteps, -1, *last.shape[1:])
