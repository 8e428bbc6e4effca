"""Steps of pooling."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

import torch
from torch import Tensor
from torch.nn import functional

from compiler.differentiate.steps.base import Arrays, Step, merged, samples
from compiler.ir import TensorType
from compiler.ir.ops import AvgPool2d, MaxPool2d


@dataclass(frozen=True, slots=True, kw_only=True)
class AvgPoolBackward(Step):
    """dx[i] = sum over the windows p that hold i of dy[p] / divisor[p]

    The divisor counts the cells of a window inside the data, with its padding if `count_include_pad`; never
    those that `ceil_mode` adds beyond the padding.

    Shapes: dy (..., C, H', W') -> dx (..., C, H, W).
    """

    op: AvgPool2d
    source: TensorType  # of x

    def run(self, inputs: Sequence[Tensor], arrays: Arrays) -> tuple[Tensor, ...]:
        return (merged(inputs[0], 4, self._backward),)

    def _backward(self, dy: Tensor) -> Tensor:
        op, height, width = self.op, self.source.size("H"), self.source.size("W")
        rows = self._cells(0, dy.shape[2], height).to(dy.dtype)
        columns = self._cells(1, dy.shape[3], width).to(dy.dtype)
        share = dy / (rows[:, None] * columns)
        (top, left), (down, right) = op.padding, op.stride
        reach = [(n - 1) * s + k for n, s, k in zip(dy.shape[2:], op.stride, op.kernel, strict=True)]
        padded = dy.new_zeros(*dy.shape[:2], max(reach[0], top + height), max(reach[1], left + width))
        for i, j in product(range(op.kernel[0]), range(op.kernel[1])):
            rows_at = slice(i, reach[0] - op.kernel[0] + i + 1, down)
            columns_at = slice(j, reach[1] - op.kernel[1] + j + 1, right)
            padded[:, :, rows_at, columns_at] += share
        return padded[:, :, top : top + height, left : left + width]

    def _cells(self, axis: int, windows: int, size: int) -> Tensor:
        """How many cells of each window count along one axis."""
        kernel, stride, padding = (pair[axis] for pair in (self.op.kernel, self.op.stride, self.op.padding))
        begin = torch.arange(windows) * stride - padding
        if self.op.count_include_pad:
            return (begin + kernel).clamp(max=size + padding) - begin
        return (begin + kernel).clamp(max=size) - begin.clamp(min=0)


@dataclass(frozen=True, slots=True, kw_only=True)
class MaxPoolForward(Step):
    """y[p] = maximum of its window; winners[p] = row * W + column of the first cell, by rows, that reaches it.

    Shapes: x (..., C, H, W) -> y (..., C, H', W'), winners of the same shape.
    """

    op: MaxPool2d

    @property
    def winner_bits(self) -> int:
        """What one winner takes, stored as its place in the window."""
        return (math.prod(self.op.kernel) - 1).bit_length()

    def run(self, inputs: Sequence[Tensor], arrays: Arrays) -> tuple[Tensor, ...]:
        (x,) = inputs
        op = self.op
        y, winners = functional.max_pool2d(
            samples(x, 4), op.kernel, op.stride, op.padding, ceil_mode=op.ceil_mode, return_indices=True
        )
        shape = (*x.shape[:-2], *y.shape[-2:])
        return y.reshape(shape), winners.reshape(shape)


@dataclass(frozen=True, slots=True, kw_only=True)
class MaxPoolBackward(Step):
    """dx[i] = sum over the windows p whose winner is i of dy[p]

    Shapes: dy (..., C, H', W'), winners of the same shape -> dx (..., C, H, W).
    """

    source: TensorType  # of x

    def run(self, inputs: Sequence[Tensor], arrays: Arrays) -> tuple[Tensor, ...]:
        dy, winners = inputs
        height, width = self.source.size("H"), self.source.size("W")
        dx = dy.new_zeros(*dy.shape[:-2], height * width)
        dx.scatter_add_(-1, winners.flatten(-2).long(), dy.flatten(-2))
        return (dx.unflatten(-1, (height, width)),)  # type: ignore[no-untyped-call]
