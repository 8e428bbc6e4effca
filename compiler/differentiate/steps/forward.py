"""Forward steps that keep nothing but their value: the network ops themselves, with the bits of `evaluate`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import singledispatch

import torch
from torch import Tensor
from torch.nn import functional

from compiler.codes import bernoulli_draws, latency_code
from compiler.differentiate.steps.base import Arrays, Step, merged
from compiler.ir import Encoding, Reading
from compiler.ir.ops import (
    Add,
    AvgPool2d,
    BatchNorm,
    Conv2d,
    Encode,
    Flatten,
    Linear,
    Op,
    Readout,
    Scale,
    parameter_names,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Forward(Step):
    """y = op(x), as the op's docstring defines it; of a batch norm, with its running statistics."""

    op: Op

    @property
    def parameters(self) -> tuple[str, ...]:
        return parameter_names(self.op)

    def run(self, inputs: Sequence[Tensor], arrays: Arrays) -> tuple[Tensor, ...]:
        return (_apply(self.op, inputs, arrays),)


@singledispatch
def _apply(op: Op, inputs: Sequence[Tensor], arrays: Arrays) -> Tensor:
    raise AssertionError(f"{type(op).__name__} has a forward step of its own, or none")


@_apply.register
def _(op: Encode, inputs: Sequence[Tensor], arrays: Arrays) -> Tensor:
    (x,) = inputs
    match op.kind:
        case Encoding.DIRECT:
            return x.expand(op.timesteps, *x.shape).contiguous()  # strides of 0 change how a batch norm rounds
        case Encoding.BERNOULLI:
            draws = (
                arrays.array(op.mask)
                if op.mask is not None
                else torch.from_numpy(bernoulli_draws(op.seed or 0, op.timesteps, x.shape, arrays.first_sample))
            )
            return (draws < x).to(arrays.dtype)
        case Encoding.LATENCY:
            return torch.from_numpy(latency_code(x.to(torch.float32).numpy(), op.timesteps)).to(arrays.dtype)


@_apply.register
def _(op: Conv2d, inputs: Sequence[Tensor], arrays: Arrays) -> Tensor:
    weight, bias = arrays.array(op.weight), arrays.array(op.bias) if op.bias is not None else None
    return merged(inputs[0], 4, lambda v: functional.conv2d(v, weight, bias, op.stride, op.padding, 1, op.groups))


@_apply.register
def _(op: Linear, inputs: Sequence[Tensor], arrays: Arrays) -> Tensor:
    weight, bias = arrays.array(op.weight), arrays.array(op.bias) if op.bias is not None else None
    return merged(inputs[0], 2, lambda v: functional.linear(v, weight, bias))


@_apply.register
def _(op: BatchNorm, inputs: Sequence[Tensor], arrays: Arrays) -> Tensor:
    (x,) = inputs
    mean, var, weight, bias = (arrays.array(p) for p in (op.mean, op.var, op.weight, op.bias))
    ndim = 4 if x.ndim >= 4 else 2
    return merged(x, ndim, lambda v: functional.batch_norm(v, mean, var, weight, bias, False, 0.0, op.eps))


@_apply.register
def _(op: AvgPool2d, inputs: Sequence[Tensor], arrays: Arrays) -> Tensor:
    return merged(
        inputs[0],
        4,
        lambda v: functional.avg_pool2d(v, op.kernel, op.stride, op.padding, op.ceil_mode, op.count_include_pad),
    )


@_apply.register
def _(op: Flatten, inputs: Sequence[Tensor], arrays: Arrays) -> Tensor:
    return inputs[0].flatten(-3)


@_apply.register
def _(op: Add, inputs: Sequence[Tensor], arrays: Arrays) -> Tensor:
    return inputs[0] + inputs[1]


@_apply.register
def _(op: Scale, inputs: Sequence[Tensor], arrays: Arrays) -> Tensor:
    (x,) = inputs
    has_time = x.ndim in (3, 5)
    return x * arrays.number(op.factor, x.ndim - has_time)


@_apply.register
def _(op: Readout, inputs: Sequence[Tensor], arrays: Arrays) -> Tensor:
    assert op.kind is not Reading.MAX, "a maximum keeps its winners"
    return inputs[0].mean(0) if op.kind is Reading.RATE else inputs[0][-1]
