"""The stage ops under torch's own checks, under its compiler and in mixed precision."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

import runtime.fused.module
import runtime.fused.ops
import spikec
from frontends.nn import LIF
from runtime.fused.ops import stage, stage_backward
from tests.runtime.fused.gradients import INPUT, differing, step, upstream_like
from tests.runtime.fused.networks import T

Arguments = tuple[Any, ...]  # of the stage op


def normed() -> nn.Module:
    return nn.Sequential(nn.Conv2d(2, 5, 3, padding=1), nn.BatchNorm2d(5), LIF(timesteps=T), nn.Conv2d(5, 4, 3))


def without_parameters() -> nn.Module:
    """Batch norms whose weight and bias are constants."""
    norm, last = nn.BatchNorm2d(5, affine=False), nn.BatchNorm2d(4, affine=False)
    layers = [nn.Conv2d(2, 5, 3, padding=1, bias=False), norm, LIF(timesteps=T), nn.Conv2d(5, 4, 3, bias=False)]
    return nn.Sequential(*layers, last)


def frozen() -> nn.Module:
    module = normed()
    module[1].eval()  # type: ignore[operator]
    return module


def plain() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(2, 4, 1), LIF(timesteps=T), nn.Conv2d(4, 6, 3, stride=2, padding=1, groups=2, bias=False)
    )


def pooled() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(2, 4, 1), LIF(timesteps=T), nn.AvgPool2d((1, 2), ceil_mode=True), nn.Flatten(), nn.Linear(4 * 18, 3)
    )


def spikes_out() -> nn.Module:
    return nn.Sequential(nn.Conv2d(2, 4, 1), LIF(timesteps=T), nn.MaxPool2d(3, stride=2, padding=1))


class Repeated(nn.Module):
    """Shows an image at each step."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = normed()

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.layers(x.unsqueeze(0).repeat(T, 1, 1, 1, 1).flatten(0, 1))
        return y.unflatten(0, (T, -1)).mean(0)


STAGES: tuple[Callable[[], nn.Module], ...] = (normed, frozen, plain, pooled, spikes_out, Repeated)


def build(make: Callable[[], nn.Module]) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    module = make()
    rows = 2 if isinstance(module, Repeated) else T * 2
    return module, 2 * torch.rand(rows, 2, 6, 6)


@contextmanager
def calls(place: ModuleType, name: str) -> Iterator[list[Arguments]]:
    """Arguments that an op is called with under that name inside."""
    seen: list[Arguments] = []
    op = getattr(place, name)

    def record(*arguments: Any) -> list[Tensor]:
        seen.append(arguments)
        results: list[Tensor] = op(*arguments)
        return results

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(place, name, record)
        yield seen


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["f32", "bf16"])
@pytest.mark.parametrize("make", STAGES)
def test_opcheck(make: Callable[[], nn.Module], dtype: torch.dtype) -> None:
    """Schema, shapes and strides of fake tensors, gradients through AOT dispatch."""
    module, x = build(make)
    fused = spikec.fuse(module, x, T).to(dtype)
    with calls(runtime.fused.module, "stage_op") as seen:
        fused(x.to(dtype).requires_grad_())
    assert seen
    for x_in, parameters, buffers, *rest in seen:
        leaves = (leaf(x_in), [leaf(parameter) for parameter in parameters])
        torch.library.opcheck(stage, (*leaves, buffers, *rest), atol=ATOL[dtype], rtol=RTOL[dtype])


def leaf(tensor: Tensor) -> Tensor:
    return tensor.detach().clone().requires_grad_()


# of two runs of the same kernels; torch's convolutions may add up in another order
ATOL = {torch.float32: 1e-5, torch.bfloat16: 2.0**-7}
RTOL = {torch.float32: 1e-5, torch.bfloat16: 2.0**-7}


@pytest.mark.parametrize("need_x", [False, True])
@pytest.mark.parametrize("make", STAGES)
def test_opcheck_backward(make: Callable[[], nn.Module], need_x: bool) -> None:
    module, x = build(make)
    fused = spikec.fuse(module, x, T)
    with calls(runtime.fused.ops, "stage_backward") as seen:
        y = fused(x.requires_grad_(need_x))
        y.backward(torch.randn_like(y))
    assert seen
    for arguments in seen:
        torch.library.opcheck(stage_backward, tree_map_only(Tensor, Tensor.detach, arguments))


@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
@pytest.mark.parametrize("make", [normed, pooled, Repeated, without_parameters])
def test_compiled_module(make: Callable[[], nn.Module], backend: str) -> None:
    module, x = build(make)
    fused = spikec.fuse(module, x, T)
    upstream = upstream_like(module, x)
    twin = copy.deepcopy(fused)
    compiled = torch.compile(twin, fullgraph=True, backend=backend)
    want = step(fused, x, upstream)
    got = step(compiled, x, upstream)
    assert [name.removeprefix("_orig_mod.") for name in got.grads] == list(want.grads)
    torch.testing.assert_close(got.y, want.y, rtol=1e-5, atol=1e-5)  # decomposed sums, in another order
    for (name, first), second in zip(want.grads.items(), got.grads.values(), strict=True):
        scale = 1.0 if name == "0.bias" or first is None else float(first.abs().max())  # a batch norm cancels the bias
        torch.testing.assert_close(second, first, rtol=1e-4, atol=1e-5 * max(scale, 1.0))
    for (name, first), second in zip(fused.named_buffers(), twin.buffers(), strict=True):
        torch.testing.assert_close(second, first, rtol=1e-6, atol=1e-6, msg=name)


def small() -> nn.Module:
    """Membranes on halves, so that bf16 spikes as f32: only gradients round."""
    module = nn.Sequential(
        nn.Conv2d(2, 4, 1), LIF(decay=0.5, threshold=1.0, timesteps=T), nn.Flatten(), nn.Linear(4 * 12, 3)
    )
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.round(2 * torch.randn(parameter.shape)) / 2)
    return module


BF16 = 2.0**-8  # half a unit in the last place of 1


def near(got: Tensor, want: Tensor) -> None:
    """Within some roundings to bf16 of the largest value: sums of 2 * 12 terms, two layers."""
    assert float((got.float() - want).abs().max()) <= 8 * BF16 * float(want.abs().max())
    assert not torch.equal(want, torch.zeros_like(want))


@pytest.mark.parametrize("mode", ["autocast", "bfloat16"])
def test_bf16(mode: str) -> None:
    torch.manual_seed(3)
    module = small()
    x = torch.randint(-1, 4, (T * 2, 2, 3, 4)) / 2
    upstream = torch.randn(T * 2, 3)
    want = step(copy.deepcopy(module), x, upstream)
    fused = spikec.fuse(module, x, T)
    if mode == "autocast":
        with torch.autocast("cpu", torch.bfloat16):
            got = step(fused, x, upstream)
        expected = torch.float32
    else:
        got = step(fused.bfloat16(), x.bfloat16(), upstream)
        expected = torch.bfloat16
    assert got.y.dtype == torch.bfloat16
    near(got.y, want.y)
    for name, grad in got.grads.items():
        assert grad is not None
        assert grad.dtype == expected, name
        reference = want.grads[name]
        assert reference is not None
        near(grad, reference)


def test_autocast_with_batch_statistics() -> None:
    """Batch norms keep f32 parameters and statistics; the loss falls as in f32."""
    module, x = build(normed)
    fused = spikec.fuse(copy.deepcopy(module), x, T)
    with torch.autocast("cpu", torch.bfloat16):
        fused(x).square().mean().backward()
    module(x).square().mean().backward()
    for parameter in fused.parameters():
        grad = parameter.grad
        assert grad is not None
        assert grad.dtype == torch.float32
        assert bool(torch.isfinite(grad).all())
    for (name, want), got in zip(module.named_buffers(), fused.buffers(), strict=True):
        assert got.dtype == want.dtype
        torch.testing.assert_close(got, want, rtol=2 * BF16, atol=2 * BF16, msg=name)  # of inputs rounded to bf16


def test_the_same_bits_at_every_run() -> None:
    module, x = build(normed)
    upstream = upstream_like(module, x)
    fused = spikec.fuse(module, x, T)
    first = step(fused, x, upstream)
    assert differing(first, step(fused, x, upstream)) == []
    assert first.grads[INPUT] is not None
