"""The custom ops of torch that run a stage, with their shapes and gradients: what autograd and compilers see."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from compiler.fused.population import Population, Window
from compiler.fused.program import StageProgram
from compiler.fused.spikes.counts import counts_of
from compiler.fused.spikes.geometry import BITS
from compiler.ir.ops import window_extent
from runtime.fused.arena import arena_of
from runtime.fused.packing import expand, pack
from runtime.fused.processes import all_reduce_over
from runtime.fused.spikes.stage_layers import SpikeBits, layer_again
from runtime.fused.stage import Gradients, StageRun, Tensors, keeps_bits

_PROGRAMS: list[StageProgram] = []  # by number: ops take no other arguments than tensors, numbers and strings
_NUMBERS: dict[StageProgram, int] = {}


def program_number(program: StageProgram) -> int:
    """The number by which ops find the program; equal programs share one."""
    if program not in _NUMBERS:
        _NUMBERS[program] = len(_PROGRAMS)
        _PROGRAMS.append(program)
    return _NUMBERS[program]


def program_of(number: int) -> StageProgram:
    """The program of a number."""
    return _PROGRAMS[number]


@torch.library.custom_op("spikec::stage", mutates_args=())
def stage(
    x: Tensor,
    parameters: Sequence[Tensor],
    buffers: Sequence[Tensor],
    source: Sequence[Tensor],
    program: int,
    name: str,
    arena: int,
    training: bool,
    group: str,
    source_program: int,
    source_layer: int,
) -> list[Tensor]:
    """A stage's results: of each layer, then the spikes if they leave it, then what only the backward pass reads.

    That is the words and the mask of the spikes, or of averages of them, where they are kept as bits, and the batch
    norm's moments (3, C); or the input's bits of a packed stage.

    name: of the stage in the plan. arena: its scratch memory. group: the process group over which batch statistics
    are taken, or "" for this process alone.

    source: words of the spikes that the layer before x read, its weight and maybe its bias: with them x is not kept,
    but computed once more in the backward pass. source_program, source_layer: the stage that the layer belongs to, and
    its place there.
    """
    run = _run(x, parameters, buffers, program, name, arena, training, group)
    results, moments, bits = run.forward()
    if _PROGRAMS[program].packed:
        return [*results, pack(x, arena_of(arena), name)]
    kept = () if bits is None else (bits.words, bits.mask)
    return [*results, *(tensor for tensor in (*kept, moments) if tensor is not None)]


@stage.register_fake
def _(
    x: Tensor,
    parameters: Sequence[Tensor],
    buffers: Sequence[Tensor],
    source: Sequence[Tensor],
    program: int,
    name: str,
    arena: int,
    training: bool,
    group: str,
    source_program: int,
    source_layer: int,
) -> list[Tensor]:
    found = _PROGRAMS[program]
    rows = _rows_shape(found, x)
    results, at = [], 2 * found.norm
    for layer in found.layers:
        weight, at = parameters[at], at + 1 + layer.bias
        shape = [rows[0], weight.shape[0]]
        if layer.convolution:
            sizes = zip(rows[2:], weight.shape[2:], layer.stride, layer.padding, strict=True)
            shape += [window_extent(size, kernel, stride, padding) for size, kernel, stride, padding in sizes]
        results.append(_empty(x, shape))
    if found.spikes:
        results.append(_empty(x, rows))
    if found.packed:
        results.append(x.new_empty(((x.numel() + 7) // 8,), dtype=torch.uint8))
    if keeps_bits(found, x):
        maps = rows if len(rows) == 4 else [*rows, 1, 1]
        words = [found.timesteps, maps[0] // found.timesteps, *maps[2:], -(-x.shape[1] // BITS)]
        counts = counts_of(found.parts[-1])
        planes = words if counts is None else [counts.planes, *words]
        results += [x.new_empty(shape, dtype=torch.int32) for shape in [planes, words][: 1 + found.masked]]
    if found.norm:
        results.append(x.new_empty((3, x.shape[1]), dtype=torch.float64))
    return results


@torch.library.custom_op("spikec::stage_backward", mutates_args=())
def stage_backward(
    grads: Sequence[Tensor],
    x: Tensor,
    shape: Sequence[int],
    parameters: Sequence[Tensor],
    buffers: Sequence[Tensor],
    moments: Tensor | None,
    bits: Sequence[Tensor],
    source: Sequence[Tensor],
    program: int,
    name: str,
    arena: int,
    training: bool,
    group: str,
    source_program: int,
    source_layer: int,
    need_x: bool,
    need: Sequence[bool],
) -> list[Tensor]:
    """The gradients that are needed: of x, then of the parameters.

    x of a packed stage is its bits, and empty where it is computed again; shape: x's own. bits: words and mask of the
    spikes, if they are kept so.
    """
    with torch.autocast(grads[0].device.type, enabled=False):  # as in the forward pass
        if _PROGRAMS[program].packed:
            x = expand(x, shape, grads[0].dtype, arena_of(arena), name)
        elif source:
            x = layer_again(_PROGRAMS[source_program], source_layer, source, arena_of(arena), name)
        run = _run(x, parameters, buffers, program, name, arena, training, group)
        kept = SpikeBits(bits[0], bits[1] if len(bits) > 1 else None) if bits else None
        found = run.backward(grads, moments, kept, need_x=need_x, need=need)
    return [value for value in _wanted(found, need) if value is not None]


@stage_backward.register_fake
def _(
    grads: Sequence[Tensor],
    x: Tensor,
    shape: Sequence[int],
    parameters: Sequence[Tensor],
    buffers: Sequence[Tensor],
    moments: Tensor | None,
    bits: Sequence[Tensor],
    source: Sequence[Tensor],
    program: int,
    name: str,
    arena: int,
    training: bool,
    group: str,
    source_program: int,
    source_layer: int,
    need_x: bool,
    need: Sequence[bool],
) -> list[Tensor]:
    of_x = [_empty(grads[0], shape)] if need_x else []
    needed = [parameter for parameter, wanted in zip(parameters, need, strict=True) if wanted]
    return [*of_x, *(_empty(parameter, parameter.shape) for parameter in needed)]


class _Context(Protocol):
    """What autograd hands from the forward to the backward pass."""

    saved_tensors: tuple[Tensor, ...]
    needs_input_grad: tuple[bool, list[bool], list[bool]]
    arguments: tuple[int, str, int, bool, str, int, int]
    source: int
    counts: tuple[int, int, int, int]
    shape: tuple[int, ...]

    def save_for_backward(self, *tensors: Tensor) -> None: ...
    def mark_non_differentiable(self, *tensors: Tensor) -> None: ...


def _setup(ctx: _Context, inputs: tuple[object, ...], output: list[Tensor]) -> None:
    x, parameters, buffers, source, *arguments = inputs
    program = arguments[0]
    found = _PROGRAMS[program]  # type: ignore[call-overload]
    bits = 1 + found.masked if keeps_bits(found, x) else 0  # type: ignore[arg-type]
    extra = output[len(output) - bits - (found.norm or found.packed) :]
    ctx.mark_non_differentiable(*extra)
    # running statistics change before the backward pass, which goes by the moments
    kept = buffers[2 * found.norm :]  # type: ignore[index]
    ctx.shape = tuple(x.shape)  # type: ignore[attr-defined]
    first = [] if found.packed else list(source) if source else [x]  # type: ignore[call-overload]
    ctx.source = len(source)  # type: ignore[arg-type]
    ctx.save_for_backward(*first, *parameters, *kept, *extra)  # type: ignore[misc]
    ctx.arguments = tuple(arguments)  # type: ignore[assignment]
    ctx.counts = (len(parameters), len(buffers), len(output) - len(extra), bits)  # type: ignore[arg-type]


def _backward(ctx: _Context, grads: list[Tensor]) -> tuple[object, ...]:
    parameter_count, buffer_count, results, bit_count = ctx.counts
    found_program, saved = _PROGRAMS[ctx.arguments[0]], list(ctx.saved_tensors)
    source, saved = saved[: ctx.source], saved[ctx.source :]
    x = source[0].new_empty(0) if source else saved.pop() if found_program.packed else saved.pop(0)
    parameters, others = saved[:parameter_count], saved[parameter_count:]
    moments = others.pop() if found_program.norm else None
    others, bits = others[: len(others) - bit_count], others[len(others) - bit_count :]
    buffers = others if moments is None else [moments[0], moments[1], *others]
    need_x, need = ctx.needs_input_grad[0], list(ctx.needs_input_grad[1])
    given = (list(grads[:results]), x, ctx.shape, parameters, buffers, moments, bits, source)
    found = iter(stage_backward(*given, *ctx.arguments, need_x, need))
    grad_x = next(found) if need_x else None
    grad_parameters = [next(found) if needed else None for needed in need]
    return grad_x, grad_parameters, [None] * buffer_count, [None] * ctx.source, *(None,) * 7


stage.register_autograd(_backward, setup_context=_setup)


def _run(
    x: Tensor,
    parameters: Sequence[Tensor],
    buffers: Sequence[Tensor],
    program: int,
    name: str,
    arena: int,
    training: bool,
    group: str,
) -> StageRun:
    found, memory = _PROGRAMS[program], arena_of(arena)
    if not x.is_cuda:  # there torch's allocator gives scratch memory
        memory.prepare(len(x) // (1 if found.repeated else found.timesteps))
    return StageRun(
        found,
        Tensors(x=x, parameters=parameters, buffers=buffers),
        training=training,
        arena=memory,
        name=name,
        all_reduce=all_reduce_over(group) if group and training else None,
    )


def _wanted(found: Gradients, need: Sequence[bool]) -> list[Tensor | None]:
    parameters = [value for value, needed in zip(found.parameters, need, strict=True) if needed]
    return [*([found.x] if found.x is not None else []), *parameters]


def _rows_shape(program: StageProgram, x: Tensor) -> list[int]:
    """Shape of what the layers take."""
    height, width = x.shape[2:] if x.ndim == 4 else (1, 1)
    for part in program.parts:
        window = part.window if isinstance(part, Population) else part
        if window is not None:
            height, width = (_pooled(window, at, size) for at, size in enumerate((height, width)))
    rows = x.shape[0] * (program.timesteps if program.repeated else 1)
    if x.ndim != 4 or program.flatten:
        return [rows, x.shape[1] * height * width]
    return [rows, x.shape[1], height, width]


def _pooled(window: object, at: int, size: int) -> int:
    if isinstance(window, Window):
        return window_extent(size, window.kernel[at], window.kernel[at], 0, window.ceil)
    return window_extent(size, window.kernel[at], window.stride[at], window.padding[at], window.ceil_mode)  # type: ignore[attr-defined]


def _empty(like: Tensor, shape: Sequence[int]) -> Tensor:
    last = len(shape) == 4
    return torch.empty(
        tuple(shape),
        dtype=like.dtype,
        device=like.device,
        memory_format=torch.channels_last if last else torch.contiguous_format,
    )
