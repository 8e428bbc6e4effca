"""Ops that are linear in their input: convolution, matrix product, batch norm, sums and reshapes."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from compiler.ir.ops.base import Op, Site, image, window_extent
from compiler.ir.types import DType, TensorType
from compiler.ir.values import Number, Param


@dataclass(frozen=True, slots=True, kw_only=True)
class Conv2d(Op):
    """Two-dimensional convolution (cross-correlation) with zero padding.

    y[o, p] = bias[o] + sum over c, k of weight[o, c, k] * x[c, stride * p + k - padding]

    Shapes: x (..., C, H, W), weight (O, C / groups, kh, kw), bias (O,). Conv1d is H = 1.
    Source: equation 2.3.
    """

    weight: Param
    bias: Param | None = None
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (0, 0)
    groups: int = 1

    def infer(self, inputs: tuple[TensorType, ...], site: Site) -> TensorType:
        x = image(inputs[0], site)
        out, per_group, kernel_h, kernel_w = site.array(self.weight, 4).shape
        if min(self.stride) < 1 or min(self.padding) < 0 or self.groups < 1:
            raise site.fail(f"stride {self.stride}, padding {self.padding}, groups {self.groups} out of range")
        if out % self.groups or per_group * self.groups != x.size("C"):
            raise site.fail(
                f"weight {self.weight} {(out, per_group, kernel_h, kernel_w)} with {self.groups} groups "
                f"does not fit {x.size('C')} channels"
            )
        _check_bias(self.bias, out, site)
        rows = window_extent(x.size("H"), kernel_h, self.stride[0], self.padding[0])
        columns = window_extent(x.size("W"), kernel_w, self.stride[1], self.padding[1])
        if rows < 1 or columns < 1:
            raise site.fail(f"kernel {kernel_h}x{kernel_w} is larger than the padded input {x}")
        return x.resized(C=out, H=rows, W=columns).of(DType.F32)


@dataclass(frozen=True, slots=True, kw_only=True)
class Linear(Op):
    """Fully connected layer: y = weight x + bias.

    Shapes: x (..., C), weight (O, C), bias (O,).
    Source: equation 2.3.
    """

    weight: Param
    bias: Param | None = None

    def infer(self, inputs: tuple[TensorType, ...], site: Site) -> TensorType:
        (x,) = inputs
        if x.axes not in ("NC", "TNC"):
            raise site.fail(f"takes features, got {x}", "flatten the feature maps first")
        out, features = site.array(self.weight, 2).shape
        if features != x.size("C"):
            raise site.fail(f"weight {self.weight} takes {features} features, got {x.size('C')}")
        _check_bias(self.bias, out, site)
        return x.resized(C=out).of(DType.F32)


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchNorm(Op):
    """Batch normalisation with its running statistics.

    y = weight * (x - mean) / sqrt(var + eps) + bias, per channel

    Shapes: each parameter (C,).
    Source: equations 4.1 to 4.3 (evaluation mode).
    """

    weight: Param
    bias: Param
    mean: Param
    var: Param
    eps: float = 1e-5

    def infer(self, inputs: tuple[TensorType, ...], site: Site) -> TensorType:
        (x,) = inputs
        for param in (self.weight, self.bias, self.mean, self.var):
            site.channels(param, x.size("C"), "batch norm")
        if not 0.0 <= self.eps < math.inf or float(site.array(self.var, 1).min()) + self.eps <= 0.0:
            raise site.fail(f"variance {self.var} plus eps {self.eps} is not positive")
        return x.of(DType.F32)


@dataclass(frozen=True, slots=True, kw_only=True)
class Add(Op):
    """Elementwise sum of two values, as at the end of a residual block."""

    @property
    def arity(self) -> int:
        return 2

    def infer(self, inputs: tuple[TensorType, ...], site: Site) -> TensorType:
        left, right = inputs
        if left.shape != right.shape or left.axes != right.axes:
            raise site.fail(f"adds {left} to {right}: shapes differ")
        return left.of(DType.F32)


@dataclass(frozen=True, slots=True, kw_only=True)
class Scale(Op):
    """y = factor * x, factor a scalar or one per channel."""

    factor: Number

    def infer(self, inputs: tuple[TensorType, ...], site: Site) -> TensorType:
        (x,) = inputs
        if not np.isfinite(site.values(self.factor, x.size("C"), "factor")).all():
            raise site.fail("factor is not finite")
        return x.of(DType.F32)


@dataclass(frozen=True, slots=True, kw_only=True)
class Flatten(Op):
    """Feature maps to features in C, H, W order.

    Shapes: x (..., C, H, W) -> y (..., C * H * W).
    """

    def infer(self, inputs: tuple[TensorType, ...], site: Site) -> TensorType:
        x = image(inputs[0], site)
        features = x.size("C") * x.size("H") * x.size("W")
        return x.without("W").without("H").resized(C=features)


def _check_bias(bias: Param | None, out: int, site: Site) -> None:
    if bias is not None:
        site.channels(bias, out, "bias")
