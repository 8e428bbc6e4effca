"""Places a layer's weights on the rows of a PE array: sub-LUT pieces, row blocks, kernel bands, FC groups."""

from __future__ import annotations

from dataclasses import dataclass

from compiler.h2learn.layers import NetworkLayer
from compiler.ir.ops import Conv2d
from hwmodel.config import H2LearnConfig
from hwmodel.isa import Queue


@dataclass(frozen=True, slots=True, kw_only=True)
class RowBlock:
    """The rows of one grid iteration.

    A convolution's rows count pieces (channel-major); a linear layer's count inputs.
    """

    first_channel: int  # within the group
    channels: int
    first_piece: int
    rows: int  # PE rows; a linear layer: all those that one tree adds
    kernel_row: int = 0  # Backward Engine: the band of kernel rows
    groups: int = 0  # linear layers on the Forward Engine: inputs / (rows * sub-LUTs)


@dataclass(frozen=True, slots=True, kw_only=True)
class Partition:
    """How the weights of one output block are cut into grid iterations, in the order of their sums."""

    kernel: tuple[int, int]
    kernel_rows: int  # kernel rows that one iteration handles
    stride: tuple[int, int]
    pieces: int
    blocks: tuple[RowBlock, ...]
    channels_per_block: int  # the most input channels that an iteration needs
    weight_values: int  # weights of an iteration for one column

    def kernel_rows_of(self, block: RowBlock) -> int:
        """Kernel rows of one block; the last band may be lower."""
        return min(self.kernel_rows, self.kernel[0] - block.kernel_row)


def partition(
    layer: NetworkLayer, engine: Queue, config: H2LearnConfig, *, rows: int, kernel_rows: int = 0
) -> Partition:
    """Cut for an array of `rows` rows; `kernel_rows` 0 takes the whole kernel (Backward Engine).

    Forward Engine: taps in raster order, nine per PE; row j of a block holds piece j of the channel-major
    list. Backward Engine: one channel per row, all taps of a band of kernel rows.
    Source: section 3.3.2 (3 sub-LUTs of 8 entries for 3 x 3, larger kernels over several PEs).
    """
    if layer.synapse is None:
        return Partition(
            kernel=(1, 1),
            kernel_rows=1,
            stride=(1, 1),
            pieces=0,
            blocks=(),
            channels_per_block=0,
            weight_values=0,
        )
    op = layer.synapse.op
    if not isinstance(op, Conv2d):
        return _linear(layer, engine, config, rows)
    channels = layer.source_type.size("C") // op.groups
    if engine is Queue.BE:
        return _bands(op, layer.kernel, channels, rows, kernel_rows or layer.kernel[0])
    return _pieces(op, layer.kernel, channels, rows, config.forward.taps_per_pe)


def _pieces(op: Conv2d, kernel: tuple[int, int], channels: int, rows: int, taps: int) -> Partition:
    pieces = -(-kernel[0] * kernel[1] // taps)
    blocks = []
    for first in range(0, channels * pieces, rows):
        last = min(first + rows, channels * pieces) - 1
        blocks.append(
            RowBlock(
                first_channel=first // pieces,
                channels=last // pieces - first // pieces + 1,
                first_piece=first % pieces,
                rows=last - first + 1,
            )
        )
    return Partition(
        kernel=kernel,
        kernel_rows=kernel[0],
        stride=op.stride,
        pieces=pieces,
        blocks=tuple(blocks),
        channels_per_block=(most := max(block.channels for block in blocks)),
        weight_values=most * kernel[0] * kernel[1],
    )


def _bands(op: Conv2d, kernel: tuple[int, int], channels: int, rows: int, kernel_rows: int) -> Partition:
    blocks = tuple(
        RowBlock(
            first_channel=first,
            channels=min(rows, channels - first),
            first_piece=0,
            rows=min(rows, channels - first),
            kernel_row=row,
        )
        for first in range(0, channels, rows)
        for row in range(0, kernel[0], kernel_rows)
    )
    most = max(block.rows for block in blocks)
    return Partition(
        kernel=kernel,
        kernel_rows=kernel_rows,
        stride=op.stride,
        pieces=1,
        blocks=blocks,
        channels_per_block=most,
        weight_values=most * kernel_rows * kernel[1],
    )


def _linear(layer: NetworkLayer, engine: Queue, config: H2LearnConfig, rows: int) -> Partition:
    """Inputs in memory order, three a row on the Forward Engine; with fewer `rows` the others stay silent."""
    features = layer.source_type.size("C")
    forward = config.forward
    groups, per_group = 1, rows
    if engine is Queue.FE:
        per_group = rows * forward.sub_luts
        bank_inputs = forward.taps_per_pe * forward.rows  # that the weight buffer holds for a column
        if rows == forward.rows:
            groups = max(1, min(bank_inputs // per_group, forward.lut_entries))
    blocks = []
    for first in range(0, features, per_group * groups):
        inputs = min(per_group * groups, features - first)
        blocks.append(
            RowBlock(
                first_channel=first,
                channels=inputs,
                first_piece=0,
                rows=forward.rows if engine is Queue.FE else inputs,
                groups=-(-inputs // per_group) if engine is Queue.FE else 0,
            )
        )
    return Partition(
        kernel=(1, 1),
        kernel_rows=1,
        stride=(1, 1),
        pieces=1,
        blocks=tuple(blocks),
        channels_per_block=(most := max(block.channels for block in blocks)),
        weight_values=most,
    )
