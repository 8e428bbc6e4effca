"""Emits the update of all parameters: on the SGD unit, or by the host, which keeps weights in f32."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from compiler.h2learn.schedule_dataflow import F16_BYTES, chunks
from compiler.h2learn.synchronise import Action, Resource
from compiler.h2learn.transfers import Mover, Region
from hwmodel.config import H2LearnConfig
from hwmodel.errors import CompileError, Loc
from hwmodel.isa import Buffer, HostUpdate, Queue, SgdStep

_STREAMS = (Buffer.WU_GRAD, Buffer.WU_WEIGHT, Buffer.WU_MOMENTUM)


@dataclass(frozen=True, slots=True, kw_only=True)
class Descent:
    """The options of stochastic gradient descent.

    Units: loss_scale multiplies the loss before its gradient is rounded to FP16, and is divided out by the update.
    """

    learning_rate: float = 0.1
    momentum: float = 0.0
    weight_decay: float = 0.0
    loss_scale: float = 1.0
    batch_group: int = 1  # sub-batches between updates, over all machines
    machines: int = 1
    master_weights: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """A parameter's place: the tensor that holds it (a bias is the first row of a neuron table), and its gradient."""

    layer: int
    tensor: int
    gradient: int
    momentum: int  # -1 without
    shape: tuple[int, int, int]  # of gradient and momentum: y, x, c


def update_actions(targets: tuple[Target, ...], descent: Descent, config: H2LearnConfig, loc: Loc) -> Iterator[Action]:
    """The update in program order.

    Raises: CompileError if a bank does not hold a single weight.
    """
    for buffer in _STREAMS:
        if config.bank_bytes(buffer) < F16_BYTES:
            raise CompileError(
                f"a weight exceeds {buffer}: {F16_BYTES} of {config.bank_bytes(buffer)} bytes",
                loc,
                hint="use a configuration with larger buffers",
            )
    banks = _Banks()
    for target in targets:
        if descent.master_weights:
            yield _on_host(target)
        else:
            for region in _slices(target.shape, config):
                yield from _step(target, region, descent, banks)


def _on_host(target: Target) -> Action:
    update = HostUpdate(layer=target.layer, gradient=target.gradient, weight=target.tensor)
    return Action(queue=Queue.HOST, instruction=update)


@dataclass(slots=True)
class _Banks:
    next: int = 0


_Slice = tuple[tuple[int, int], tuple[int, int], tuple[int, int]]


def _slices(shape: tuple[int, int, int], config: H2LearnConfig) -> Iterator[_Slice]:
    """Boxes that a bank of each stream holds: whole rows of channels where they fit."""
    values = min(config.bank_bytes(buffer) for buffer in _STREAMS) // F16_BYTES
    positions, inputs, outputs = shape
    for y in range(positions):
        for c in chunks(outputs, min(outputs, values)):
            for x in chunks(inputs, max(1, values // c.size)):
                yield (y, 1), (x.start, x.size), (c.start, c.size)


def _step(target: Target, box: _Slice, descent: Descent, banks: _Banks) -> Iterator[Action]:
    bank, banks.next = banks.next, banks.next ^ 1
    y, x, c = box
    near, far, state = (Mover(layer=target.layer, queue=queue) for queue in (Queue.DMA0, Queue.DMA1, Queue.DMA2))
    weight = Region(tensor=target.tensor, y=y, x=x, c=c)
    gradient = Region(tensor=target.gradient, y=y, x=x, c=c)
    momentum = Region(tensor=target.momentum, y=y, x=x, c=c)
    has_momentum = target.momentum >= 0
    places: tuple[Resource, ...] = ((Buffer.WU_GRAD, bank), (Buffer.WU_WEIGHT, bank))
    yield state.load(Buffer.WU_GRAD, bank, gradient)
    yield near.load(Buffer.WU_WEIGHT, bank, weight)
    if has_momentum:
        places = (*places, (Buffer.WU_MOMENTUM, bank))
        yield state.load(Buffer.WU_MOMENTUM, bank, momentum)
    yield Action(queue=Queue.WUE, instruction=_sgd(target, bank, descent), reads=places, writes=places)
    yield near.store(Buffer.WU_WEIGHT, bank, weight)
    yield far.store(Buffer.WU_WEIGHT, bank, weight)
    yield state.store(Buffer.WU_GRAD, bank, gradient)
    if has_momentum:
        yield state.store(Buffer.WU_MOMENTUM, bank, momentum)


def _sgd(target: Target, bank: int, descent: Descent) -> SgdStep:
    return SgdStep(
        layer=target.layer,
        gradient_bank=bank,
        weight_bank=bank,
        momentum_bank=bank,
        has_momentum=target.momentum >= 0,
        learning_rate=f32_bits(descent.learning_rate),
        momentum=f32_bits(descent.momentum),
        weight_decay=f32_bits(descent.weight_decay),
        inverse_loss_scale=f32_bits(1.0 / descent.loss_scale),
        batch_group=descent.batch_group,
    )


def f32_bits(value: float) -> int:
    """The bits of a number in f32."""
    return int(np.float32(value).view(np.uint32))
