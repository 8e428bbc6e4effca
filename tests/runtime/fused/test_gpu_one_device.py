"""A stage's tensors stay on their device: run on torch's meta device, whose values nobody can read or mix with others.

A copy to the host, a value that Python waits for, or an operand on the CPU is an error there as it is a wait on a GPU.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

import runtime.fused.module
import runtime.fused.ops
import runtime.fused.stage
import spikec
from compiler.fused.gpu_launch import Extents, GpuKernel
from compiler.fused.population import Population
from frontends.nn import LIF
from runtime.fused.arena import Arena
from runtime.fused.cuda_loader import elements
from runtime.fused.gpu_neurons import GpuNeuronsRun
from runtime.fused.packing import expand_by_torch, pack_by_torch
from runtime.fused.stage import StageRun, Tensors
from tests.runtime.fused.networks import T
from tests.runtime.fused.test_gpu_neurons import Repeated, evaluated, normed, pooled
from tests.runtime.fused.test_ops import calls

META = torch.device("meta")


class OnlyOneDevice(TorchDispatchMode):
    """Refuses any operator with a tensor elsewhere, one of a single value from Python aside."""

    def __torch_dispatch__(
        self, func: Any, types: object, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves((args, kwargs, result)):
            assert not isinstance(tensor, Tensor) or tensor.device == META or tensor.ndim == 0, str(func)
        return result


def check_launch(
    population: Population,
    name: GpuKernel,
    extents: Extents,
    arrays: Mapping[str, Tensor],
    numbers: Mapping[str, float],
) -> None:
    """What the loader checks of each array, and that Python knows the numbers."""
    sizes = elements(population, name, extents)
    for each, array in arrays.items():
        assert array.device == META
        if each == "sums" and name is GpuKernel.GRADIENT_INPUT:  # which takes none; these are gradient_sums'
            continue
        assert array.numel() == sizes[each], f"{each} of {name}"
        assert array.is_contiguous(), f"{each} of {name}"
    assert all(isinstance(number, float) for number in numbers.values())


def by_channel() -> nn.Module:
    decay = torch.tensor([0.5, 0.25, 0.0, 0.75])
    return nn.Sequential(nn.Conv2d(2, 4, 1), LIF(timesteps=T, decay=decay), nn.AvgPool2d(2), nn.Conv2d(4, 3, 1))


def ignore(tensor: Tensor) -> None:
    """An all_reduce of one process."""


@pytest.mark.parametrize("synchronised", [False, True])
@pytest.mark.parametrize("make", [normed, evaluated, pooled, Repeated, by_channel])
def test_a_stage_stays_on_its_device(make: Callable[[], nn.Module], synchronised: bool) -> None:
    module = make()
    x = torch.rand(2 if isinstance(module, Repeated) else T * 2, 2, 6, 6)
    with calls(runtime.fused.module, "stage_op") as seen:
        spikec.fuse(module, x, T)(x)
    assert seen
    for arguments in seen:
        moved = tree_map_only(Tensor, lambda tensor: tensor.detach().to(META), arguments)
        run_stage(*moved, synchronised=synchronised)


def run_stage(
    x: Tensor,
    parameters: list[Tensor],
    buffers: list[Tensor],
    _source: list[Tensor],
    program: int,
    name: str,
    arena: int,
    training: bool,
    group: str,
    *_origin: int,
    synchronised: bool,
) -> None:
    def run() -> StageRun:
        return StageRun(
            runtime.fused.ops._PROGRAMS[program],
            Tensors(x=x, parameters=parameters, buffers=buffers),
            training=training,
            arena=Arena(),
            name=name,
            all_reduce=ignore if synchronised and training else None,
        )

    with pytest.MonkeyPatch.context() as patch, OnlyOneDevice():
        patch.setattr(runtime.fused.stage, "NeuronsRun", functools.partial(GpuNeuronsRun, launch=check_launch))
        results, moments, bits = run().forward()
        assert bits is None  # a GPU's stages have none
        grads = [torch.empty_like(result) for result in results]
        found = run().backward(grads, moments, need_x=True, need=[True] * len(parameters))
    assert found.x is not None
    assert found.x.shape == x.shape
    assert [None if grad is None else grad.shape for grad in found.parameters] == [each.shape for each in parameters]


def test_bits_stay_on_their_device() -> None:
    with OnlyOneDevice():
        bits = pack_by_torch(torch.empty(37, device=META))
        expand_by_torch(bits, torch.empty(37, device=META))
    assert bits.shape == (5,)


def test_the_mode_refuses_another_device() -> None:
    with OnlyOneDevice(), pytest.raises(AssertionError, match="aten"):
        torch.zeros(3)


def constants() -> nn.Module:
    """Batch norms without parameters, before neurons and behind all: the graph holds ones and zeros of its own."""
    norms = nn.BatchNorm2d(3, affine=False), nn.BatchNorm2d(2, affine=False)
    return nn.Sequential(nn.Conv2d(2, 3, 1), norms[0], LIF(timesteps=T), nn.Conv2d(3, 2, 1), norms[1])


@pytest.mark.parametrize("make", [normed, evaluated, pooled, Repeated, by_channel, constants])
def test_a_module_moves_to_another_device(make: Callable[[], nn.Module]) -> None:
    """After a step on the CPU; what the stages' ops are given is checked, and torch's own operators."""
    module = make()
    x = torch.rand(2 if isinstance(module, Repeated) else T * 2, 2, 6, 6)
    fused = spikec.fuse(module, x, T)
    fused(x)
    fused.to(META)
    given = x.to(META).requires_grad_()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "autocast", lambda *_, **__: nullcontext())  # it does not know this device
        patch.setattr(torch, "is_autocast_enabled", lambda _: False)
        fused(given)  # takes the graph's own numbers along
        with OnlyOneDevice():
            fused(given).sum().backward()
    assert given.grad is not None
    assert all(parameter.grad is not None for parameter in fused.parameters())
