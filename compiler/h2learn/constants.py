"""Lays weights and neuron parameters out as the DMA fetches them: one contiguous block per grid iteration."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from compiler.h2learn.blocks import ColumnBlock
from compiler.h2learn.partition_luts import Partition, RowBlock
from compiler.h2learn.quantise import F16, Quantised
from hwmodel.config import H2LearnConfig
from hwmodel.isa import Queue


def weight_blocks(
    constants: Quantised,
    engine: Queue,
    split: Partition,
    columns: Sequence[ColumnBlock],
    config: H2LearnConfig,
) -> F16:
    """All weight blocks of a layer.

    Shapes: (column blocks, row blocks, values): a block is (rows, taps per PE, cols) for a convolution on the
    Forward Engine, (groups, rows, sub-LUTs, cols) for a linear layer there, (taps, rows, cols) on the Backward
    Engine, each flattened and padded with zeros at the end to the largest block.
    """
    assert constants.weights is not None
    blocks = [
        [_block(constants.weights, engine, split, block, column, config).ravel() for block in split.blocks]
        for column in columns
    ]
    values = max(array.size for row in blocks for array in row)
    out = np.zeros((len(columns), len(split.blocks), values), np.float16)
    for i, row in enumerate(blocks):
        for j, array in enumerate(row):
            out[i, j, : array.size] = array
    return out


def weight_values(engine: Queue, split: Partition, block: RowBlock, cols: int, config: H2LearnConfig) -> int:
    """FP16 values of one weight block."""
    if engine is Queue.BE:
        return block.rows * split.kernel_rows_of(block) * split.kernel[1] * cols
    if block.groups:
        return block.groups * block.rows * config.forward.sub_luts * cols
    return block.rows * config.forward.taps_per_pe * cols


def neuron_blocks(constants: Quantised, columns: Sequence[ColumnBlock]) -> F16:
    """Neuron parameters per column block. Shapes: (column blocks, stages * fields * cols), zero-padded."""
    cols = max(column.size for column in columns)
    stages = len(constants.stages)
    fields = constants.stages[0].table.shape[0]
    out = np.zeros((len(columns), stages * fields * cols), np.float16)
    for i, column in enumerate(columns):
        tables = [stage.table[:, column.first : column.first + column.size] for stage in constants.stages]
        block = np.stack(tables).ravel()
        out[i, : block.size] = block
    return out


def _block(
    weights: F16,
    engine: Queue,
    split: Partition,
    block: RowBlock,
    column: ColumnBlock,
    config: H2LearnConfig,
) -> F16:
    part = weights[column.first : column.first + column.size]
    if engine is Queue.BE:
        band = slice(block.kernel_row, block.kernel_row + split.kernel_rows_of(block))
        chosen = part[:, block.first_channel : block.first_channel + block.channels, band]
        return chosen.transpose(2, 3, 1, 0).reshape(-1, block.channels, column.size)
    if block.groups:
        inputs = part[:, block.first_channel : block.first_channel + block.channels, 0, 0].T
        shape = (block.groups, block.rows, config.forward.sub_luts, column.size)
        padded = np.zeros((block.groups * block.rows * config.forward.sub_luts, column.size), np.float16)
        padded[: len(inputs)] = inputs
        return padded.reshape(shape)
    taps = config.forward.taps_per_pe
    flat = part.reshape(column.size, part.shape[1], -1)
    padded = np.zeros((column.size, part.shape[1], split.pieces * taps), np.float16)
    padded[:, :, : flat.shape[2]] = flat
    rows = padded.reshape(column.size, -1, taps)
    first = block.first_channel * split.pieces + block.first_piece
    return np.ascontiguousarray(rows[:, first : first + block.rows].transpose(1, 2, 0))
