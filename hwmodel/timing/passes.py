"""The dissertation's dataflow layer by layer: grid iterations as prototype instructions, times how often they run.

No buffer is exceeded and nothing is cut: what the engines would do if every layer fitted. The compiled program, which
obeys the buffers, is simulated elsewhere; the two stand side by side.
Source: sections 3.2.2 to 3.2.4, figure 3.8.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import product

from hwmodel.config import H2LearnConfig, Halo, MembraneWrite
from hwmodel.isa import (
    ConvTile,
    FcTile,
    GradConvTile,
    GradFcTile,
    Instruction,
    LutMode,
    LutProgram,
    OuterTile,
    Queue,
    UpdateFcTile,
    UpdateTile,
)
from hwmodel.program import Layer
from hwmodel.timing.instructions import F16_BYTES, instruction_work
from hwmodel.timing.tiles import TileSource
from hwmodel.work import Work

BIT = 1 / 8
Block = tuple[int, int]  # size, and how many of that size


@dataclass(frozen=True, slots=True, kw_only=True)
class Pass:
    """One layer on one engine, for one sub-batch.

    Units: cycles, bytes. `sample_bytes` go through the memory of the sub-batch, `gradient_bytes` through Mem 2.
    """

    layer: int
    queue: Queue
    work: Work
    sample_bytes: float
    gradient_bytes: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """Everything but the network: the machine, the sub-batch, and what is known of the masks.

    window_density: part of the membrane potentials inside the surrogate's window, by layer.
    momentum: whether the update of the weights reads and writes a momentum beside the gradients.
    """

    config: H2LearnConfig
    timesteps: int
    batch: int
    tiles: TileSource
    window_density: Mapping[int, float] = field(default_factory=dict)
    momentum: bool = True

    @property
    def images(self) -> int:
        """Samples times steps."""
        return self.timesteps * self.batch

    def membrane_bytes(self, layer: int) -> float:
        """Bytes of one membrane potential as the forward pass stores it."""
        dense = self.config.timing.m_write is MembraneWrite.DENSE
        return F16_BYTES * (1.0 if dense else self.window_density.get(layer, 1.0))


def forward_pass(number: int, layer: Layer, setting: Setting, *, keeps: bool) -> Pass:
    """A layer forwards; with `keeps` the membrane potentials and masks that training needs are stored."""
    is_dense = layer.engine is Queue.BE
    outputs = sum(c * h * w for c, h, w in (neuron.shape for neuron in layer.neurons)) * setting.images
    last = layer.neurons[-1].shape
    stored = last[0] * last[1] * last[2] * setting.images * BIT
    if keeps:
        stored += outputs * (setting.membrane_bytes(number) + BIT)
        stored += (outputs - stored_outputs(layer, setting)) * BIT  # spikes of the first neuron
    if layer.kind == "fc":
        work, loaded = _forward_linear(layer, setting, is_dense)
    else:
        work, loaded = _forward_conv(layer, setting, is_dense)
    return Pass(layer=number, queue=layer.engine, work=work, sample_bytes=loaded + stored)


def stored_outputs(layer: Layer, setting: Setting) -> int:
    """Spikes that a layer hands on."""
    channels, height, width = layer.neurons[-1].shape
    return channels * height * width * setting.images


def gradient_pass(number: int, layer: Layer, behind: Layer | None, setting: Setting) -> Pass:
    """The gradient of a layer's sums, from those of the layer behind it (from the host where there is none).

    Bytes: the gradients that arrive with their mask, the weights, the kept tensors, the result with its mask.
    """
    config, images = setting.config, setting.images
    results = layer.c_out * layer.out_h * layer.out_w * images
    kept = sum(c * h * w for c, h, w in (neuron.shape for neuron in layer.neurons)) * images
    moved = results * (F16_BYTES + BIT) + kept * (setting.membrane_bytes(number) + 2 * BIT)
    channels, height, width = layer.neurons[-1].shape
    work = Work()
    if behind is None:
        return Pass(layer=number, queue=Queue.BE, work=work, sample_bytes=moved + channels * images * F16_BYTES)
    rows, cols = config.backward.rows, config.backward.cols
    if behind.kind == "fc":
        positions = height * width
        for (row, row_count), (col, col_count) in product(blocks(behind.c_out, rows), blocks(channels, cols)):
            tile = _gradient_fc(number, row, col, positions, setting)
            work += _cost(tile, Queue.BE, setting).times(row_count * col_count)
        moved += F16_BYTES * behind.c_in * behind.c_out
        moved += -(-channels // cols) * behind.c_out * images * F16_BYTES
        return Pass(layer=number, queue=Queue.BE, work=work, sample_bytes=moved)
    inside, outside = channels // behind.groups, behind.c_out // behind.groups
    for (h, w), tiles in tile_classes(height, width, config):
        for (row, row_count), (col, col_count) in product(blocks(outside, rows), blocks(inside, cols)):
            tile_cost = _cost(_gradient_conv(number, behind, h, w, row, col, setting), Queue.BE, setting)
            work += tile_cost.times(tiles * row_count * col_count * behind.groups)
    column_blocks = -(-inside // cols)
    tiles = _tile_count(height, width, config)
    arriving = _gradient_elements(behind, height, width, config) * images
    moved += column_blocks * arriving * (F16_BYTES + BIT)
    moved += tiles * behind.kernel[0] * behind.kernel[1] * behind.c_in // behind.groups * behind.c_out * F16_BYTES
    return Pass(layer=number, queue=Queue.BE, work=work, sample_bytes=moved)


def update_pass(number: int, layer: Layer, setting: Setting) -> Pass:
    """The weight gradients of a layer, added to those in Mem 2; of an encoding layer on the Backward Engine."""
    config = setting.config
    is_dense = layer.engine is Queue.BE
    weights = layer.kernel[0] * layer.kernel[1] * layer.c_in // layer.groups * layer.c_out
    gradients = layer.c_out * layer.out_h * layer.out_w * setting.images * F16_BYTES
    cols = config.backward.cols if is_dense else config.weight_update.cols
    inside, outside = layer.c_in // layer.groups, layer.c_out // layer.groups
    work = Work()
    column_blocks = -(-outside // cols) * layer.groups
    if layer.kind == "fc":
        source = layer.c_in * setting.images * BIT * column_blocks
        for nt, steps in blocks(setting.timesteps, config.weight_update.rows):
            for col, count in blocks(outside, cols):
                work += _cost(_update_fc(number, layer, nt, col, setting), Queue.WUE, setting).times(steps * count)
        moved = source + gradients
    else:
        source = column_blocks * _source_bytes(layer, setting, is_dense)
        for instruction, times in _update_tiles(number, layer, inside, outside, setting, is_dense):
            work += _cost(instruction, Queue.BE if is_dense else Queue.WUE, setting).times(times)
        moved = source + gradients
    return Pass(
        layer=number,
        queue=Queue.BE if is_dense else Queue.WUE,
        work=work,
        sample_bytes=moved,
        gradient_bytes=2 * F16_BYTES * weights,
    )


def blocks(total: int, size: int) -> Iterator[Block]:
    """A range cut into blocks: so many full ones, and the rest."""
    if total // size:
        yield size, total // size
    if total % size:
        yield total % size, 1


def tile_classes(height: int, width: int, config: H2LearnConfig) -> Iterator[tuple[tuple[int, int], int]]:
    """Tiles of a map by size, with their number."""
    for (h, rows), (w, columns) in product(blocks(height, config.tile.h), blocks(width, config.tile.w)):
        yield (h, w), rows * columns


def _tile_count(height: int, width: int, config: H2LearnConfig) -> int:
    return -(-height // config.tile.h) * -(-width // config.tile.w)


def _cost(instruction: Instruction, queue: Queue, setting: Setting) -> Work:
    return instruction_work(instruction, setting.config, queue, setting.tiles)


def _forward_conv(layer: Layer, setting: Setting, is_dense: bool) -> tuple[Work, float]:
    config, forward, backward = setting.config, setting.config.forward, setting.config.backward
    inside, outside = layer.c_in // layer.groups, layer.c_out // layer.groups
    taps = layer.kernel[0] * layer.kernel[1]
    pieces = 1 if is_dense else -(-taps // forward.taps_per_pe)
    rows, cols = (backward.rows, backward.cols) if is_dense else (forward.rows, forward.cols)
    work = Work()
    for (h, w), tiles in tile_classes(layer.out_h, layer.out_w, config):
        for (row, row_count), (col, col_count) in product(blocks(inside * pieces, rows), blocks(outside, cols)):
            cost = _cost(_conv_tile(layer, h, w, row, col, setting), layer.engine, setting)
            if not is_dense:
                cost += _cost(_lut_program(row, col, taps, LutMode.CONV, 0), Queue.FE, setting)
            work += cost.times(tiles * row_count * col_count * layer.groups)
    column_blocks = -(-outside // cols)
    weights = _tile_count(layer.out_h, layer.out_w, config) * taps * inside * layer.c_out * F16_BYTES
    return work, column_blocks * _source_bytes(layer, setting, is_dense) + weights


def _forward_linear(layer: Layer, setting: Setting, is_dense: bool) -> tuple[Work, float]:
    forward, backward = setting.config.forward, setting.config.backward
    weights = layer.c_in * layer.c_out * F16_BYTES
    work = Work()
    if is_dense:
        for (row, row_count), (col, col_count) in product(
            blocks(layer.c_in, backward.rows), blocks(layer.c_out, backward.cols)
        ):
            work += _cost(_fc_tile(layer, 1, row, row, col, setting), Queue.BE, setting).times(row_count * col_count)
        columns = -(-layer.c_out // backward.cols)
        return work, weights + columns * layer.c_in * setting.images * F16_BYTES
    per_group = forward.rows * forward.sub_luts
    for (inputs, count), (col, col_count) in product(blocks(layer.c_in, per_group), blocks(layer.c_out, forward.cols)):
        rows = -(-inputs // forward.sub_luts)
        cost = _cost(_fc_tile(layer, 1, inputs, rows, col, setting), Queue.FE, setting)
        cost += _cost(_lut_program(rows, col, 1, LutMode.FC, 1), Queue.FE, setting)
        work += cost.times(count * col_count)
    columns = -(-layer.c_out // forward.cols)
    return work, weights + columns * layer.c_in * setting.images * BIT


def _source_bytes(layer: Layer, setting: Setting, is_real: bool) -> float:
    """All tiles of a convolution's input, once."""
    timing = setting.config.timing
    images = setting.batch if layer.hold else setting.images
    keeps = (timing.gradient_halo if is_real else timing.spike_halo) is Halo.KEPT
    elements = 1.0
    for axis, extent in enumerate((layer.out_h, layer.out_w)):
        tile = setting.config.tile.h if axis == 0 else setting.config.tile.w
        elements *= _axis_elements(extent, tile, layer.kernel[axis], layer.stride[axis], keeps)
    return elements * layer.c_in * images * (F16_BYTES if is_real else BIT)


def _axis_elements(extent: int, tile: int, kernel: int, stride: int, keeps: bool) -> int:
    """Source rows (or columns) that the tiles of one axis load; the padding is not in memory."""
    inner = extent * stride
    if keeps:
        return inner
    padding = (kernel - 1) // 2
    total = 0
    for start in range(0, extent, tile):
        first = start * stride - padding
        last = first + (min(tile, extent - start) - 1) * stride + kernel
        total += min(last, inner) - max(first, 0)
    return total


def _gradient_elements(behind: Layer, height: int, width: int, config: H2LearnConfig) -> int:
    """Gradients of the layer behind that the tiles of height x width outputs load, all its channels."""
    elements = behind.c_out // behind.groups * behind.groups
    for axis, extent in enumerate((height, width)):
        tile = config.tile.h if axis == 0 else config.tile.w
        available = behind.out_h if axis == 0 else behind.out_w
        if config.timing.gradient_halo is Halo.KEPT:
            elements *= available
            continue
        kernel, stride, padding = behind.kernel[axis], behind.stride[axis], (behind.kernel[axis] - 1) // 2
        elements *= sum(
            min((start + min(tile, extent - start) - 1 + padding) // stride + 1, available)
            - max(-(-(start + padding - kernel + 1) // stride), 0)
            for start in range(0, extent, tile)
        )
    return elements


def _update_tiles(
    number: int, layer: Layer, inside: int, outside: int, setting: Setting, is_dense: bool
) -> Iterator[tuple[Instruction, int]]:
    config = setting.config
    for (h, w), tiles in tile_classes(layer.out_h, layer.out_w, config):
        if is_dense:
            for (row, row_count), (col, col_count) in product(
                blocks(inside, config.backward.rows), blocks(outside, config.backward.cols)
            ):
                tile = _outer(number, layer, h, w, row, col, setting)
                yield tile, tiles * row_count * col_count * layer.groups
            continue
        for nt, steps in blocks(setting.timesteps, config.weight_update.rows):
            for col, count in blocks(outside, config.weight_update.cols):
                yield _update(number, layer, h, w, nt, inside, col, setting), tiles * steps * count * layer.groups


# -- prototypes -------------------------------------------------------------------------------------------------------


def _conv_tile(layer: Layer, h: int, w: int, rows: int, cols: int, setting: Setting) -> ConvTile:
    return ConvTile(
        layer=0, src_bank=0, w_bank=0, dst_bank=0, accumulate=True, kernel_h=layer.kernel[0], kernel_w=layer.kernel[1],
        stride_h=layer.stride[0], stride_w=layer.stride[1], h=h, w=w, nt=setting.timesteps, nn=setting.batch,
        rows=rows, cols=cols, first_piece=0, tap_row0=0, tap_rows=layer.kernel[0], hold=layer.hold,
    )  # fmt: skip


def _fc_tile(layer: Layer, groups: int, inputs: int, rows: int, cols: int, setting: Setting) -> FcTile:
    return FcTile(
        layer=0, src_bank=0, w_bank=0, dst_bank=0, accumulate=True, groups=groups, inputs=inputs, rows=rows, cols=cols,
        nt=setting.timesteps, nn=setting.batch, hold=layer.hold,
    )  # fmt: skip


def _lut_program(rows: int, cols: int, taps: int, mode: LutMode, groups: int) -> LutProgram:
    return LutProgram(
        layer=0, w_bank=0, mode=mode, rows=rows, groups=groups, cols=cols, taps=taps, inputs=rows, first_piece=0
    )


def _gradient_conv(number: int, behind: Layer, h: int, w: int, rows: int, cols: int, setting: Setting) -> GradConvTile:
    return GradConvTile(
        layer=number, src_bank=0, w_bank=0, dst_bank=0, accumulate=True, kernel_h=behind.kernel[0],
        kernel_w=behind.kernel[1], stride_h=behind.stride[0], stride_w=behind.stride[1], h=h, w=w,
        top=behind.kernel[0] - 1, left=behind.kernel[1] - 1, nt=setting.timesteps, nn=setting.batch, rows=rows,
        cols=cols, out_sparsity=True, mask_part=1,
    )  # fmt: skip


def _gradient_fc(number: int, rows: int, cols: int, positions: int, setting: Setting) -> GradFcTile:
    return GradFcTile(
        layer=number, src_bank=0, w_bank=0, dst_bank=0, accumulate=True, h=1, w=positions, nt=setting.timesteps,
        nn=setting.batch, rows=rows, cols=cols,
    )  # fmt: skip


def _update(
    number: int, layer: Layer, h: int, w: int, nt: int, channels: int, cols: int, setting: Setting
) -> UpdateTile:
    return UpdateTile(
        layer=number, src_bank=0, gm_bank=0, dst_bank=0, accumulate=True, bias=False, kernel_h=layer.kernel[0],
        kernel_w=layer.kernel[1], stride_h=layer.stride[0], stride_w=layer.stride[1], h=h, w=w, nt=nt,
        nn=setting.batch, channels=channels, cols=cols,
    )  # fmt: skip


def _update_fc(number: int, layer: Layer, nt: int, cols: int, setting: Setting) -> UpdateFcTile:
    return UpdateFcTile(
        layer=number, src_bank=0, gm_bank=0, dst_bank=0, accumulate=True, bias=False, inputs=layer.c_in, cols=cols,
        nt=nt, nn=setting.batch,
    )  # fmt: skip


def _outer(number: int, layer: Layer, h: int, w: int, rows: int, cols: int, setting: Setting) -> OuterTile:
    return OuterTile(
        layer=number, src_bank=0, gm_bank=0, dst_bank=0, accumulate=True, bias=False, kernel_h=layer.kernel[0],
        kernel_w=layer.kernel[1], stride_h=layer.stride[0], stride_w=layer.stride[1], h=h, w=w,
        nt=setting.timesteps, nn=setting.batch, channels=rows, cols=cols, hold=layer.hold,
    )  # fmt: skip
