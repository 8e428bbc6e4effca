"""Spikes kept as bits: the input of a stage that begins with a layer."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional

from compiler.fused.pack import BITS, PackName, pack_kernel
from compiler.fused.population import Activation
from compiler.tvm_setup import host_target, tvm
from hwmodel.errors import CompileError, Loc
from runtime.fused.arena import Arena
from runtime.fused.threads import free_cores, match_thread_count

_NO_SPIKES = "the input holds values beside 0 and 1, but the network was fused for spikes"


def pack(x: Tensor, arena: Arena, name: str) -> Tensor:
    """One bit for each value of a stage's input, in memory order.

    Shapes: x (rows, C, H, W) with the channels last in memory, or (rows, C) -> uint8 (ceil(x.numel() / 8),).
    Raises: CompileError for a value that is neither 0 nor 1, except while a CUDA graph is captured.
    """
    _check_spikes(x, name)
    if x.is_cuda:
        return pack_by_torch(_in_memory_order(x))
    bits = arena.take((name, "forward", "bits", 0), (-(-x.numel() // BITS),), torch.uint8)
    _run(PackName.PACK, x.dtype, _in_memory_order(x), bits)
    return bits


def expand(bits: Tensor, shape: Sequence[int], dtype: torch.dtype, arena: Arena, name: str) -> Tensor:
    """The values again, in the shape that they had."""
    last = tuple(shape) if len(shape) == 2 else (shape[0], shape[2], shape[3], shape[1])
    values = arena.take((name, "backward", "y", 0), last, dtype, bits.device)
    if bits.is_cuda:
        expand_by_torch(bits, values.view(-1))
    else:
        _run(PackName.EXPAND, dtype, bits, values.view(-1))
    return values if len(shape) == 2 else values.permute(0, 3, 1, 2)


def pack_by_torch(spikes: Tensor) -> Tensor:
    """The bits of spikes (count,) on any device, as the kernel makes them."""
    fired = functional.pad((spikes > 0).view(torch.uint8), (0, -len(spikes) % BITS)).view(-1, BITS)
    bits = torch.zeros(len(fired), dtype=torch.uint8, device=spikes.device)
    for bit in range(BITS):  # column by column, so that no array of a byte each is made beside `fired`
        bits |= fired[:, bit] << bit
    return bits


def expand_by_torch(bits: Tensor, values: Tensor) -> None:
    """Fill the values (count,) from their bits, on any device."""
    for bit in range(BITS):
        column = values[bit::BITS]
        column.copy_((bits[: len(column)] >> bit) & 1)


def _check_spikes(x: Tensor, name: str) -> None:
    """On a GPU this waits for the input: an assertion on the device would not, but nothing runs there after one.

    A capture cannot wait; the steps that warm it up are checked.
    """
    if x.is_cuda and torch.cuda.is_current_stream_capturing():
        return
    if not bool(((x == 0) | (x == 1)).all()):
        raise CompileError(_NO_SPIKES, Loc(name), hint="fuse it with an example that is real-valued too")


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
