"""Checks each instruction by itself: a queue that can execute it, tensors that exist, no extent of 0, an end."""

from __future__ import annotations

from hwmodel.assembler import disassemble
from hwmodel.isa import (
    ENGINE_BUFFERS,
    GRADIENT_BUFFERS,
    OPCODES,
    AddGradient,
    ConvTile,
    FcTile,
    Grad,
    GradConvTile,
    GradFcTile,
    Halt,
    HostLoss,
    HostUpdate,
    Instruction,
    Load,
    LutProgram,
    OuterTile,
    PoolSetup,
    Queue,
    SgdStep,
    Soma,
    Store,
    UpdateFcTile,
    UpdateTile,
    layout,
)
from hwmodel.program import Program, Role, Streams

MEMORY_OF = {Queue.DMA0: 0, Queue.DMA1: 1, Queue.DMA2: 2}
_REGION_SIZES = {"nt", "nn", "h", "w", "nc", "inputs", "out_h", "out_w"}
_SIZES = _REGION_SIZES | {"rows", "cols", "kernel_h", "kernel_w", "stride_h", "stride_w", "tap_rows"}
_SIZES_OF = {kind: tuple(item.name for item in layout(kind) if item.name in _SIZES) for kind in OPCODES.values()}


def stream_faults(program: Program) -> list[str]:
    """Instructions that their queue cannot execute, and queues that do not end."""
    faults: list[str] = []
    for phase, streams in program.phases.items():
        prefix = f"{phase}: " if program.training is not None else ""
        faults += [prefix + fault for fault in _faults_of(program, streams)]
    return faults


def _faults_of(program: Program, streams: Streams) -> list[str]:
    faults = []
    for queue, stream in streams.items():
        if not stream or not isinstance(stream[-1], Halt):
            faults.append(f"{queue} does not end with halt")
        for position, instruction in enumerate(stream):
            what = _misplaced(program, queue, instruction) or _empty(instruction)
            if what:
                faults.append(f"{queue}[{position}] {disassemble(instruction)}: {what}")
    for queue, stream in streams.items():
        if any(isinstance(instruction, Halt) for instruction in stream[:-1]):
            faults.append(f"{queue} goes on behind a halt")
    return faults


def _misplaced(program: Program, queue: Queue, instruction: Instruction) -> str:
    if instruction.layer >= len(program.layers):
        return f"there are {len(program.layers)} layers"
    match instruction:
        case Load() | Store():
            if queue not in MEMORY_OF:
                return "only a DMA queue moves data"
            if instruction.tensor >= len(program.tensors):
                return f"there are {len(program.tensors)} tensors"
            tensor = program.tensors[instruction.tensor]
            memories = (0, 1) if tensor.mirrored else (tensor.memory,)
            if MEMORY_OF[queue] not in memories:
                return f"{tensor.name} stands in memory {tensor.memory}"
        case LutProgram():
            return "" if queue is Queue.FE else "only the Forward Engine has LUTs"
        case ConvTile() | FcTile() | PoolSetup() | Soma():
            return "" if queue in ENGINE_BUFFERS else f"{queue} has no unit for it"
        case GradConvTile() | GradFcTile() | Grad() | OuterTile():
            return "" if queue is Queue.BE else "only the Backward Engine does this"
        case UpdateTile() | UpdateFcTile() | SgdStep():
            if isinstance(instruction, SgdStep) and program.training is not None and program.training.master_weights:
                return "the host updates the weights of this program"
            return "" if queue is Queue.WUE else "only the Weight Update Engine does this"
        case AddGradient():
            return "" if queue in GRADIENT_BUFFERS else f"{queue} has no adder for gradients"
        case HostLoss() | HostUpdate():
            return _misplaced_host(program, queue, instruction)
    return ""


def _misplaced_host(program: Program, queue: Queue, instruction: HostLoss | HostUpdate) -> str:
    if queue is not Queue.HOST:
        return "only the host does this"
    first = instruction.output if isinstance(instruction, HostLoss) else instruction.weight
    if max(first, instruction.gradient) >= len(program.tensors):
        return f"there are {len(program.tensors)} tensors"
    source, gradient = program.tensors[first], program.tensors[instruction.gradient]
    if isinstance(instruction, HostLoss):
        if (source.role, gradient.role) != (Role.OUTPUT, Role.LOSS_GRADIENT):
            return f"takes {source.role} to {gradient.role}"
        together = (source.memory, source.shape) == (gradient.memory, gradient.shape)
        return "" if together else f"takes {source.name} to {gradient.name} of another sub-batch or shape"
    if program.training is None or not program.training.master_weights:
        return "the host does not update the weights of this program"
    known = program.training.parameters
    is_update = any((source.name, gradient.name) == (trained.tensor, trained.gradient) for trained in known)
    return "" if is_update else f"updates {source.name} by {gradient.name}, which are not of one parameter"


def _empty(instruction: Instruction) -> str:
    return next((f"{name} is 0" for name in _SIZES_OF[type(instruction)] if getattr(instruction, name) == 0), "")
