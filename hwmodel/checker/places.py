"""Which parts of banks a training instruction reads and writes."""

from __future__ import annotations

from hwmodel.checker.banks import Place, part_of
from hwmodel.isa import (
    ENGINE_BUFFERS,
    GRADIENT_BUFFERS,
    AddGradient,
    Buffer,
    Grad,
    GradConvTile,
    GradFcTile,
    Instruction,
    OuterTile,
    Part,
    PoolKind,
    Queue,
    SgdStep,
    UpdateFcTile,
    UpdateTile,
)

Places = tuple[tuple[Place, ...], tuple[Place, ...]]  # reads, writes

_BE = ENGINE_BUFFERS[Queue.BE]


def training_places(queue: Queue, instruction: Instruction) -> Places:
    """Reads and writes, for the proof that accesses of different queues are ordered."""
    match instruction:
        case GradConvTile() as tile:
            masks = (part_of(_BE.mask, tile.dst_bank, tile.mask_part),) if tile.out_sparsity else ()
            source = (part_of(_BE.source, tile.src_bank, part) for part in (Part.RESULT, Part.FIRST))
            return (*source, (_BE.weights, tile.w_bank), *masks), ((_BE.psum, tile.dst_bank),)
        case GradFcTile() as tile:
            return ((_BE.source, tile.src_bank), (_BE.weights, tile.w_bank)), ((_BE.psum, tile.dst_bank),)
        case Grad() as grad:
            return _grad(grad)
        case UpdateTile() | UpdateFcTile() | OuterTile() as tile:
            buffers = GRADIENT_BUFFERS[queue]
            reads = ((buffers.source, tile.src_bank), (buffers.gradient, tile.gm_bank))
            bias = (part_of(buffers.psum, tile.dst_bank, Part.FIRST),) if tile.bias else ()
            return reads, ((buffers.psum, tile.dst_bank), *bias)
        case AddGradient() as add:
            buffers = GRADIENT_BUFFERS[queue]
            return (part_of(buffers.psum, add.psum_bank, add.part),), ((buffers.stream, add.stream_bank),)
        case SgdStep() as step:
            places: tuple[Place, ...] = (
                (Buffer.WU_GRAD, step.gradient_bank),
                (Buffer.WU_WEIGHT, step.weight_bank),
                *(((Buffer.WU_MOMENTUM, step.momentum_bank),) if step.has_momentum else ()),
            )
            return (), places
    return (), ()


def _grad(grad: Grad) -> Places:
    bank = grad.bank
    reads: list[Place] = [(_BE.neuron, grad.neuron_bank)]
    states: list[Place] = [(_BE.state, stage) for stage in range(grad.present1 + grad.present2)]
    for part in (Part.FIRST, Part.SECOND):
        reads += [part_of(buffer, bank, part) for buffer in (_BE.out, _BE.mask, Buffer.BE_M)]
    if grad.pool1 is PoolKind.MAX:
        reads.append(part_of(_BE.mask, bank, Part.WINNERS))
    writes: list[Place] = [(_BE.psum, bank), (_BE.mask, bank)]
    if grad.state_out:
        writes += states
    if grad.state_in:
        reads += states
    return tuple(reads), tuple(writes)
