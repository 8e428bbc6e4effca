"""Backward and update steps of convolutions, matrix products, sums, scales and reshapes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor
from torch.nn.grad import conv2d_input, conv2d_weight

from compiler.differentiate.steps.base import Arrays, Step, merged, samples
from compiler.ir import TensorType
from compiler.ir.ops import Conv2d, Linear, Scale, parameter_names


@dataclass(frozen=True, slots=True, kw_only=True)
class ConvBackward(Step):
    """dx[c, i] = sum over o, p, k with i = stride * p + k - padding of weight[o, c, k] * dy[o, p]

    Shapes: dy (..., O, H', W') -> dx (..., C, H, W).
    Source: equation 2.4, spatial part.
    """

    op: Conv2d
    source: TensorType  # of x

    @property
    def parameters(self) -> tuple[str, ...]:
        return (self.op.weight.name,)

    def run(self, inputs: Sequence[Tensor], arrays: Arrays) -> tuple[Tensor, ...]:
        weight, op = arrays.array(self.op.weight), self.op
        extents = [self.source.size(axis) for axis in "CHW"]

        def backward(dy: Tensor) -> Tensor:
            size = [len(dy), *extents]
            dx: Tensor = conv2d_input(size, weight, dy, op.stride, op.padding, 1, op.groups)  # type: ignore[no-untyped-call]
            return dx

        return (merged(inputs[0], 4, backward),)


@dataclass(frozen=True, slots=True, kw_only=True)
class ConvUpdate(Step):
    """dweight[o, c, k] = sum over t, n, p of dy[o, p] * x[c, stride * p + k - padding]; dbias[o] = sum of dy[o]

    Shapes: dy (..., O, H', W'), x (..., C, H, W) -> dweight (O, C / groups, kh, kw), dbias (O,).
    Source: equations 2.7 and 2.8.
    """

    op: Conv2d

    def run(self, inputs: Sequence[Tensor], arrays: Arrays) -> tuple[Tensor, ...]:
        dy, x = (samples(value, 4) for value in inputs)
        op = self.op
        size = arrays.array(op.weight).shape
        dweight: Tensor = conv2d_weight(x, size, dy, op.stride, op.padding, 1, op.groups)  # type: ignore[no-untyped-call]
        return (dweight,) if op.bias is None else (dweight, dy.sum((0, 2, 3)))


@dataclass(frozen=True, slots=True, kw_only=True)
class LinearBackward(Step):
    """dx[c] = sum over o of weight[o, c] * dy[o]

    Shapes: dy (..., O) -> dx (..., C).
    Source: equation 2.4, spatial part.
    """

    op: Linear

    @property
    def parameters(self) -> tuple[str, ...]:
        return (self.op.weight.name,)

    def run(self, inputs: Sequence[Tensor], arrays: Arrays) -> tuple[Tensor, ...]:
        return (inputs[0] @ arrays.array(self.op.weight),)


@dataclass(frozen=True, slots=True, kw_only=True)
class LinearUpdate(Step):
    """dweight[o, c] = sum over t, n of dy[o] * x[c]; dbias[o] = sum of dy[o]

    Shapes: dy (..., O), x (..., C) -> dweight (O, C), dbias (O,).
    Source: equations 2.7 and 2.8.
    """

    op: Linear

    def run(self, inputs: Sequence[Tensor], arrays: Arrays) -> tuple[Tensor, ...]:
        dy, x = (samples(value, 2) for value in inputs)
        dweight = dy.T @ x
        return (dweight,) if self.op.bias is None else (dweight, dy.sum(0))


@dataclass(frozen=True, slots=True, kw_only=True)
class ScaleBackward(Step):
    """dx = factor * dy; the factor is not trained. Shapes: dy as x."""

    op: Scale

    @property
    def parameters(self) -> tuple[str, ...]:
        return parameter_names(self.op)

    def run(self, inputs: Sequence[Tensor], arrays: Arrays) -> tuple[Tensor, ...]:
        (dy,) = inputs
        has_time = dy.ndim in (3, 5)
        return (dy * arrays.number(self.op.factor, dy.ndim - has_time),)


@dataclass(frozen=True, slots=True, kw_only=True)
class AddBackward(Step):
    """dleft = dright = dy."""

    def run(self, inputs: Sequence[Tensor], arrays: Arrays) -> tuple[Tensor, ...]:
        return inputs[0], inputs[0]


@dataclass(frozen=True, slots=True, kw_only=True)
class FlattenBackward(Step):
    """The gradient in the shape of the feature maps. Shapes: dy (..., C * H * W) -> dx (..., C, H, W)."""

    source: TensorType  # of x

    def run(self, inputs: Sequence[Tensor], arrays: Arrays) -> tuple[Tensor, ...]:
        (dy,) = inputs
        return (dy.reshape(*dy.shape[:-1], *(self.source.size(axis) for axis in "CHW")),)


@dataclass(frozen=True, slots=True, kw_only=True)
class Accumulate(Step):
    """The sum of the gradients that several readers send, from the last reader to the first."""

    def run(self, inputs: Sequence[Tensor], arrays: Arrays) -> tuple[Tensor, ...]:
        first, *others = inputs
        total = first
        for other in others:
            total = total + other
        return (total,)
