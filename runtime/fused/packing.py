"""Spikes kept as bits: the input of a stage that begins with a layer."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from compiler.fused.pack import BITS, PackName, pack_kernel
from compiler.fused.population import Activation
from compiler.tvm_setup import host_target, tvm
from hwmodel.errors import CompileError, Loc
from runtime.fused.arena import Arena
from runtime.fused.threads import free_cores, match_thread_count


def pack(x: Tensor, arena: Arena, name: str) -> Tensor:
    """One bit for each value of a stage's input, in memory order.

    Shapes: x (rows, C, H, W) with the channels last in memory, or (rows, C) -> uint8 (ceil(x.numel() / 8),).
    Raises: CompileError for a value that is neither 0 nor 1.
    """
    if not bool(((x == 0) | (x == 1)).all()):
        raise CompileError(
            "the input holds values beside 0 and 1, but the network was fused for spikes",
            Loc(name),
            hint="fuse it with an example that is real-valued too",
        )
    bits = arena.take((name, "forward", "bits", 0), (-(-x.numel() // BITS),), torch.uint8)
    _run(PackName.PACK, x.dtype, _in_memory_order(x), bits)
    return bits


def expand(bits: Tensor, shape: Sequence[int], dtype: torch.dtype, arena: Arena, name: str) -> Tensor:
    """The values again, in the shape that they had."""
    last = tuple(shape) if len(shape) == 2 else (shape[0], shape[2], shape[3], shape[1])
    values = arena.take((name, "backward", "y", 0), last, dtype)
    _run(PackName.EXPAND, dtype, bits, values.view(-1))
    return values if len(shape) == 2 else values.permute(0, 3, 1, 2)


def _in_memory_order(x: Tensor) -> Tensor:
    return (x if x.ndim == 2 else x.permute(0, 2, 3, 1)).reshape(-1)


def _run(kernel: PackName, dtype: torch.dtype, *arguments: Tensor) -> None:
    match_thread_count()
    free_cores()
    _compiled(kernel, Activation.BF16 if dtype == torch.bfloat16 else Activation.F32)(*arguments)


@functools.cache
def _compiled(kernel: PackName, activation: Activation) -> Callable[..., None]:
    function: Callable[..., None] = tvm.compile(pack_kernel(kernel, activation), target=host_target())[kernel]
    return function
