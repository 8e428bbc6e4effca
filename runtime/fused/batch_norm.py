"""Batch norms that no neurons follow, on torch's operators; and the running statistics of all batch norms."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional
from torch.nn.modules.batchnorm import _BatchNorm

from runtime.fused.neurons import COUNT, merge
from runtime.fused.processes import all_reduce_over

_MOMENTUM = 0.1  # of running statistics, torch's default


def batch_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float, group: str) -> tuple[Tensor, Tensor]:
    """Normalised by the batch's own statistics; and those as moments (3, C): mean, biased variance, count.

    group: process group over whose processes' batches they are taken; "" for this process alone.

    Shapes: x (N, C, ...) -> (N, C, ...).
    """
    if group:
        result: tuple[Tensor, Tensor] = _Synchronised.apply(x, weight, bias, eps, group)  # type: ignore[no-untyped-call]
        return result
    return functional.batch_norm(x, None, None, weight, bias, True, 0.0, eps), _moments(x)


def update_running(norm: _BatchNorm | None, running_mean: Tensor, running_var: Tensor, moments: Tensor) -> None:
    """As torch's batch norm in training: the variance corrected for the number of values.

    norm: whose momentum counts; None for torch's default.
    """
    mean, var, count = moments
    factor: float | Tensor = _MOMENTUM if norm is None else norm.momentum if norm.momentum is not None else 0.0
    with torch.no_grad():
        if norm is not None and norm.num_batches_tracked is not None:
            norm.num_batches_tracked.add_(1)
            if norm.momentum is None:
                factor = 1.0 / norm.num_batches_tracked
        unbiased = var * count / (count - 1)
        for running, value in ((running_mean, mean), (running_var, unbiased)):
            running.lerp_(value.to(running.dtype), torch.as_tensor(factor, dtype=running.dtype))


def _moments(x: Tensor) -> Tensor:
    with torch.no_grad():
        var, mean = torch.var_mean(x.detach().float(), _axes(x), correction=0)
        return torch.stack([mean.double(), var.double(), torch.full_like(mean.double(), x.numel() // x.shape[1])])


class _Context(Protocol):
    """What autograd hands from the forward to the backward pass."""

    saved_tensors: tuple[Tensor, ...]
    group: str

    def save_for_backward(self, *tensors: Tensor) -> None: ...
    def mark_non_differentiable(self, *tensors: Tensor) -> None: ...


class _Synchronised(torch.autograd.Function):
    """Batch norm by the statistics of all processes.

    Gradients of the parameters are this process' own, which data parallel training then averages.
    """

    @staticmethod
    def forward(
        ctx: _Context, x: Tensor, weight: Tensor, bias: Tensor, eps: float, group: str
    ) -> tuple[Tensor, Tensor]:
        moments = _moments(x)
        merge(moments, all_reduce_over(group))
        reciprocal = torch.rsqrt(moments[1] + eps).float()
        ctx.save_for_backward(x, weight, reciprocal, moments)
        ctx.group = group
        ctx.mark_non_differentiable(moments)
        y = _normed(x, moments, reciprocal) * _along(weight.float(), x) + _along(bias.float(), x)
        return y.to(x.dtype), moments

    @staticmethod
    @once_differentiable
    def backward(ctx: _Context, grad: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, reciprocal, moments = ctx.saved_tensors
        normed, wide = _normed(x, moments, reciprocal), grad.float()
        own = torch.stack([wide.sum(_axes(x)), (wide * normed).sum(_axes(x))])
        means = own.double()
        all_reduce_over(ctx.group)(means)
        of_grad, of_product = (means / moments[COUNT]).float()
        centred = wide - _along(of_grad, x) - normed * _along(of_product, x)
        grad_x = centred * _along(weight.float() * reciprocal, x)
        return grad_x.to(x.dtype), own[1].to(weight.dtype), own[0].to(weight.dtype), None, None


def _normed(x: Tensor, moments: Tensor, reciprocal: Tensor) -> Tensor:
    return (x.float() - _along(moments[0].float(), x)) * _along(reciprocal, x)


def _along(values: Tensor, x: Tensor) -> Tensor:
    """Numbers of channels, to be broadcast over the other axes."""
    return values.view(1, -1, *(1,) * (x.ndim - 2))


def _axes(x: Tensor) -> list[int]:
    return [0, *range(2, x.ndim)]
