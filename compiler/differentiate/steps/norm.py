"""Steps of batch normalisation, with the batch's statistics or the running ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from compiler.differentiate.steps.base import Arrays, Step, per_channel, samples, sum_to_channels
from compiler.ir import TensorType
from compiler.ir.ops import BatchNorm


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchNormForward(Step):
    """y = weight * x_hat + bias,  x_hat = (x - mean) / sqrt(var + eps), statistics over T, N, H and W.

    mean = sum of x / n,  var = sum of (x - mean)^2 / n (biased), n values of a channel.

    Shapes: x (..., C, ...) -> y of the same shape, mean (C,), var (C,).
    Source: equation 4.2.
    """

    op: BatchNorm
    source: TensorType  # of x

    @property
    def parameters(self) -> tuple[str, ...]:
        return self.op.weight.name, self.op.bias.name

    def run(self, inputs: Sequence[Tensor], arrays: Arrays) -> tuple[Tensor, ...]:
        (x,) = inputs
        weight, bias = arrays.array(self.op.weight), arrays.array(self.op.bias)
        flat = samples(x, 4 if self.source.has("H") else 2)
        y, mean, _ = torch.native_batch_norm(flat, weight, bias, None, None, True, 0.0, self.op.eps)
        others = [axis for axis in range(flat.ndim) if axis != 1]
        return y.reshape(x.shape), mean, flat.var(others, correction=0)


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchNormUpdate(Step):
    """dweight = sum over t, n, h, w of dy * x_hat;  dbias = sum of dy

    Shapes: dy (..., C, ...), x of the same shape, mean, var (C,) -> dweight (C,), dbias (C,).
    Source: equations 4.4 to 4.6.
    """

    op: BatchNorm
    source: TensorType  # of x

    def run(self, inputs: Sequence[Tensor], arrays: Arrays) -> tuple[Tensor, ...]:
        dy, x, mean, var = inputs
        x_hat = _normalised(x, mean, var, self.op.eps, self.source)
        return sum_to_channels(dy * x_hat, self.source), sum_to_channels(dy, self.source)


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchNormBackward(Step):
    """dx = weight / sqrt(var + eps) * (dy - dbias / n - x_hat * dweight / n)

    dweight and dbias are this node's own, before any sum with other readers of the parameters.

    Shapes: dy (..., C, ...), x of the same shape, mean, var, dweight, dbias (C,) -> dx of the same shape.
    Source: equation 4.3.
    """

    op: BatchNorm
    source: TensorType  # of x

    @property
    def parameters(self) -> tuple[str, ...]:
        return (self.op.weight.name,)

    def run(self, inputs: Sequence[Tensor], arrays: Arrays) -> tuple[Tensor, ...]:
        dy, x, mean, var, dweight, dbias = inputs
        x_hat = _normalised(x, mean, var, self.op.eps, self.source)
        count = x.numel() // len(mean)
        gain = arrays.array(self.op.weight) * torch.rsqrt(var + self.op.eps)
        shared, slope = (per_channel(total / count, self.source) for total in (dbias, dweight))
        return (per_channel(gain, self.source) * (dy - shared - x_hat * slope),)


@dataclass(frozen=True, slots=True, kw_only=True)
class RunningNormBackward(Step):
    """dx = weight / sqrt(var + eps) * dy, the running statistics being constants.

    Shapes: dy (..., C, ...) -> dx of the same shape.
    """

    op: BatchNorm
    source: TensorType  # of x

    @property
    def parameters(self) -> tuple[str, ...]:
        return self.op.weight.name, self.op.var.name

    def run(self, inputs: Sequence[Tensor], arrays: Arrays) -> tuple[Tensor, ...]:
        gain = arrays.array(self.op.weight) * torch.rsqrt(arrays.array(self.op.var) + self.op.eps)
        return (inputs[0] * per_channel(gain, self.source),)


@dataclass(frozen=True, slots=True, kw_only=True)
class RunningNormUpdate(Step):
    """As `BatchNormUpdate`, with the running statistics.

    Shapes: dy (..., C, ...), x of the same shape -> dweight (C,), dbias (C,).
    """

    op: BatchNorm
    source: TensorType  # of x

    @property
    def parameters(self) -> tuple[str, ...]:
        return self.op.mean.name, self.op.var.name

    def run(self, inputs: Sequence[Tensor], arrays: Arrays) -> tuple[Tensor, ...]:
        statistics = (arrays.array(self.op.mean), arrays.array(self.op.var))
        return BatchNormUpdate(op=self.op, source=self.source).run((*inputs, *statistics), arrays)


def _normalised(x: Tensor, mean: Tensor, var: Tensor, eps: float, source: TensorType) -> Tensor:
    """x_hat of equation 4.4."""
    return (x - per_channel(mean, source)) * per_channel(torch.rsqrt(var + eps), source)
