"""What one instruction costs: cycles of its engine and countable work, and the bytes that a transfer moves."""

from __future__ import annotations

from collections.abc import Sequence

from hwmodel.config import H2LearnConfig, Halo, MembraneWrite, Synchronise
from hwmodel.isa import (
    ENGINE_BUFFERS,
    GRADIENT_BUFFERS,
    Buffer,
    ConvTile,
    FcTile,
    Grad,
    GradConvTile,
    GradFcTile,
    Instruction,
    LutMode,
    LutProgram,
    OuterTile,
    Queue,
    Soma,
    Store,
    Transfer,
    UpdateFcTile,
    UpdateTile,
)
from hwmodel.program import Format, Layer, Role, Tensor
from hwmodel.timing.tiles import TileSource
from hwmodel.work import F16_BYTES, Work

__all__ = ["F16_BYTES", "SGD_ADDS", "SGD_MULTIPLIES", "instruction_work", "kept_rim", "streamed_work", "transfer_bytes"]

_SOURCES = (Buffer.S_IN, Buffer.BE_IN, Buffer.WU_IN)
SGD_MULTIPLIES, SGD_ADDS = 3, 3  # weight decay, momentum, learning rate
UPDATE_WINDOW_SAMPLES = 2  # samples whose gradients a sub-LUT of the Weight Update Engine serves in a linear layer


def instruction_work(
    instruction: Instruction, config: H2LearnConfig, queue: Queue, tiles: TileSource, position: int = 0
) -> Work:
    """Cycles that an engine is busy with one instruction, and what it does; nothing for what only synchronises.

    Forward Engine, convolution: ceil(nn / lanes) * nt * tile; an edge tile costs a full one.
    Forward Engine, linear: ceil(nn / lanes) * nt for each group of rows x sub-LUTs inputs.
    Backward Engine, dense: nt * nn * ceil(rows * row width / pe_group) * taps, stepping through whole rows
    of a tile, and the fills of the pipeline; linear: ceil(outputs / pe_group).
    Backward Engine, gradient of a convolution: what `tiles` counts.
    Weight Update Engine, convolution: nn * windows * (ceil(taps * channels / lanes) + program); linear:
    ceil(inputs * ceil(nn / 2) / lanes).
    LUT programming: program_cycles for a convolution. The Soma, Grad, the adder of weight gradients and the SGD unit
    work in the shadow of the array or at the pace of memory.
    """
    match instruction:
        case LutProgram():
            return _programming(instruction, config)
        case ConvTile() if queue is Queue.FE:
            return _forward_conv(instruction, config)
        case FcTile() if queue is Queue.FE:
            return _forward_linear(instruction, config)
        case GradConvTile():
            return _gradient(instruction, config, tiles, position)
        case ConvTile() | FcTile() | GradFcTile() | OuterTile():
            return _dense_pass(instruction, config)
        case UpdateTile():
            return _update(instruction, config)
        case UpdateFcTile():
            return _update_linear(instruction, config)
        case Soma():
            return Work(soma_steps=instruction.nt * instruction.nn * instruction.h * instruction.w * instruction.cols)
        case Grad():
            outputs = instruction.out_h * instruction.out_w * instruction.cols
            return Work(soma_steps=instruction.nt * instruction.nn * outputs)
    return Work()


def transfer_bytes(
    transfer: Transfer,
    tensor: Tensor,
    config: H2LearnConfig,
    *,
    window_density: float = 1.0,
    rim: tuple[int, int] = (0, 0),
) -> float:
    """Bytes that a load or store moves; halo that is not in memory is free, bits count exactly.

    `window_density` is the part of the compressed membrane potentials that is kept; with `m_write` dense they move in
    full. `rim` counts the rows and columns that a tile shares with the one before it, and that it does not load again
    where the configuration keeps them.
    """
    elements = transfer.nt * transfer.nn * transfer.nc
    if not transfer.flat:
        height = min(transfer.y0 + transfer.h, tensor.shape[2]) - max(transfer.y0, 0)
        width = min(transfer.x0 + transfer.w, tensor.shape[3]) - max(transfer.x0, 0)
        height -= rim[0] * (transfer.y0 > 0)
        width -= rim[1] * (transfer.x0 > 0)
        elements *= max(height, 0) * max(width, 0)
    if tensor.format is Format.S1:
        return elements / 8
    if tensor.format is Format.MCOMP and config.timing.m_write is MembraneWrite.COMPRESSED:
        return F16_BYTES * elements * window_density
    return F16_BYTES * elements


def kept_rim(transfer: Transfer, tensor: Tensor, layers: Sequence[Layer], config: H2LearnConfig) -> tuple[int, int]:
    """Rows and columns of a loaded tile that stand on chip since the tile before it.

    A window of k moves s: neighbours share k - s rows, and tiles of gradients, whose outputs are s times as many,
    share (k - 1) // s.
    """
    timing = config.timing
    rule = timing.spike_halo if tensor.format is Format.S1 else timing.gradient_halo
    if rule is Halo.REFETCHED or transfer.buffer not in _SOURCES:
        return 0, 0
    if tensor.role is Role.GRADIENT:
        behind = layers[min(transfer.layer + 1, len(layers) - 1)]
        (kernel_h, kernel_w), (stride_h, stride_w) = behind.kernel, behind.stride
        return (kernel_h - 1) // stride_h, (kernel_w - 1) // stride_w
    own = layers[transfer.layer]
    return max(own.kernel[0] - own.stride[0], 0), max(own.kernel[1] - own.stride[1], 0)


def streamed_work(store: Store, moved_bytes: float) -> Work:
    """Operations on what a store takes out of a stream: one addition a weight gradient, an SGD step a weight."""
    elements = moved_bytes / F16_BYTES
    if store.buffer in (Buffer.WU_GRAD, Buffer.BE_GRAD):
        return Work(adds=elements)
    if store.buffer is Buffer.WU_WEIGHT:
        return Work(adds=SGD_ADDS * elements, multiplies=SGD_MULTIPLIES * elements)
    return Work()


def _programming(program: LutProgram, config: H2LearnConfig) -> Work:
    forward = config.forward
    pes = program.rows * program.cols
    sub_luts = pes * forward.sub_luts
    weights = ENGINE_BUFFERS[Queue.FE].weights
    if program.mode is LutMode.FC:
        loaded = sub_luts * program.groups
        return Work(lut_writes=loaded, read={weights: loaded * F16_BYTES})
    return Work(
        cycles=forward.program_cycles,
        adds=sub_luts * _subset_sums(forward.lut_entries),
        lut_writes=sub_luts * forward.lut_entries,
        read={weights: pes * forward.taps_per_pe * F16_BYTES},
    )


def _subset_sums(entries: int) -> int:
    """Additions that fill a sub-LUT: one for each entry of two weights or more."""
    return entries - entries.bit_length()


def _forward_conv(tile: ConvTile, config: H2LearnConfig) -> Work:
    forward = config.forward
    outputs = tile.nt * tile.nn * tile.h * tile.w
    look_ups = outputs * tile.rows * tile.cols * forward.sub_luts
    source = tile.nt * tile.nn * tile.rows * _region(tile) / 8
    psum = outputs * tile.cols * F16_BYTES
    return Work(
        cycles=-(-tile.nn // forward.lanes) * tile.nt * config.tile.h * config.tile.w,
        adds=look_ups,
        look_ups=look_ups,
        read={Buffer.S_IN: source, Buffer.PSUM: psum * tile.accumulate},
        written={Buffer.PSUM: psum},
    )


def _forward_linear(tile: FcTile, config: H2LearnConfig) -> Work:
    forward = config.forward
    samples = tile.nt * tile.nn
    look_ups = samples * tile.groups * tile.rows * tile.cols * forward.sub_luts
    psum = samples * tile.cols * F16_BYTES
    return Work(
        cycles=-(-tile.nn // forward.lanes) * tile.nt * tile.groups,
        adds=look_ups,
        look_ups=look_ups,
        read={Buffer.S_IN: samples * tile.inputs / 8, Buffer.PSUM: psum * tile.accumulate},
        written={Buffer.PSUM: psum},
    )


def _dense_pass(tile: ConvTile | FcTile | GradFcTile | OuterTile, config: H2LearnConfig) -> Work:
    """The Backward Engine without its finders."""
    images = tile.nt * tile.nn
    match tile:
        case ConvTile():
            return _dense(tile, tile.tap_rows * tile.kernel_w, tile.rows, config)
        case OuterTile():
            return _dense(tile, tile.kernel_h * tile.kernel_w, tile.channels, config)
        case FcTile():
            return _dense_linear(images, tile.inputs, tile.cols, config)
        case GradFcTile():
            return _dense_linear(images * tile.h * tile.w, tile.rows, tile.cols, config)


def _dense(tile: ConvTile | OuterTile, taps: int, rows: int, config: H2LearnConfig) -> Work:
    """Every pair; a convolution reads its weights once, of an outer product the weights are the sums."""
    backward = config.backward
    outputs = tile.h * tile.w
    steps = -(-tile.h * config.tile.w // backward.pe_group)
    # PEs that wait for nobody run on from tile to tile
    fills = 1 if backward.synchronise is Synchronise.ITERATION or backward.run_ahead else tile.nt * tile.nn
    images = tile.nt * tile.nn
    macs = images * outputs * taps * rows * tile.cols
    source = images * rows * _region(tile) * F16_BYTES
    psum = images * outputs * tile.cols * F16_BYTES
    weights = taps * rows * tile.cols * F16_BYTES
    if isinstance(tile, OuterTile):
        adds, written = macs, weights
        read = {Buffer.BE_IN: source, Buffer.BE_M: psum}
    else:
        adds, written = macs + images * outputs * rows * tile.cols, psum
        read = {Buffer.BE_IN: source, Buffer.BE_W: weights, Buffer.BE_PSUM: psum * tile.accumulate}
    return Work(
        cycles=images * steps * taps + fills * backward.pipe,
        macs=macs,
        multiplies=macs,
        adds=adds,
        read=read,
        written={Buffer.BE_PSUM: written},
    )


def _dense_linear(outputs: int, rows: int, cols: int, config: H2LearnConfig) -> Work:
    macs = outputs * rows * cols
    psum = outputs * cols * F16_BYTES
    return Work(
        cycles=-(-outputs // config.backward.pe_group),
        macs=macs,
        multiplies=macs,
        adds=2 * macs,
        read={Buffer.BE_IN: outputs * rows * F16_BYTES, Buffer.BE_W: rows * cols * F16_BYTES},
        written={Buffer.BE_PSUM: psum},
    )


def _gradient(tile: GradConvTile, config: H2LearnConfig, tiles: TileSource, position: int) -> Work:
    """The valid pairs; each output that was found goes through the accumulators of all rows, section 3.2.3."""
    found = tiles.counts(tile, position)
    images = tile.nt * tile.nn
    source = images * tile.rows * config.tile.h * config.tile.w
    return Work(
        cycles=found.cycles,
        macs=found.macs,
        multiplies=found.macs,
        adds=found.macs + found.outputs * tile.rows,
        outputs_found=found.outputs,
        read={
            Buffer.BE_IN: source * (F16_BYTES + 1 / 8),
            Buffer.BE_W: tile.kernel_h * tile.kernel_w * tile.rows * tile.cols * F16_BYTES,
            Buffer.BE_MASK: images * tile.h * tile.w * tile.cols / 8,
            Buffer.BE_PSUM: found.outputs * F16_BYTES * tile.accumulate,
        },
        written={Buffer.BE_PSUM: found.outputs * F16_BYTES},
    )


def _update(tile: UpdateTile, config: H2LearnConfig) -> Work:
    update = config.weight_update
    windows = tile.nn * tile.h * -(-tile.w // update.window)
    taps = tile.kernel_h * tile.kernel_w * tile.channels
    look_ups = windows * taps * tile.nt * tile.cols * update.sub_luts
    sub_luts = windows * tile.nt * tile.cols * update.sub_luts
    gradients = tile.nt * tile.nn * tile.h * tile.w * tile.cols * F16_BYTES
    sums = taps * tile.cols * F16_BYTES
    names = GRADIENT_BUFFERS[Queue.WUE]
    return Work(
        cycles=windows * (-(-taps // update.lanes) + update.program_cycles),
        adds=look_ups + sub_luts * _subset_sums(update.lut_entries),
        look_ups=look_ups,
        lut_writes=sub_luts * update.lut_entries,
        read={
            names.gradient: gradients,
            names.source: tile.nt * tile.nn * tile.channels * _region(tile) / 8,
            names.psum: windows * sums,
        },
        written={names.psum: windows * sums},
    )


def _update_linear(tile: UpdateFcTile, config: H2LearnConfig) -> Work:
    update = config.weight_update
    pairs = -(-tile.nn // UPDATE_WINDOW_SAMPLES)
    look_ups = pairs * tile.inputs * tile.nt * tile.cols
    names = GRADIENT_BUFFERS[Queue.WUE]
    sums = tile.inputs * tile.cols * F16_BYTES
    return Work(
        cycles=-(-tile.inputs * pairs // update.lanes),
        adds=look_ups,
        look_ups=look_ups,
        read={
            names.gradient: tile.nt * tile.nn * tile.cols * F16_BYTES,
            names.source: tile.nt * tile.nn * tile.inputs / 8,
            names.psum: sums * tile.accumulate,
        },
        written={names.psum: sums},
    )


def _region(tile: ConvTile | OuterTile | UpdateTile) -> int:
    """Rows times columns of the source that a tile reads."""
    kernel_h = tile.tap_rows if isinstance(tile, ConvTile) else tile.kernel_h
    return ((tile.h - 1) * tile.stride_h + kernel_h) * ((tile.w - 1) * tile.stride_w + tile.kernel_w)
