"""The loop indices of a layer: column blocks, and the output blocks that stay on chip until complete."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from compiler.h2learn.layers import NetworkLayer
from compiler.h2learn.schedule_dataflow import Chunk, Schedule
from compiler.h2learn.tile_feature_maps import Tile
from compiler.ir.ops import Conv2d


@dataclass(frozen=True, slots=True, kw_only=True)
class ColumnBlock:
    """Output channels that one output block covers."""

    index: int
    first: int
    size: int
    first_source: int  # first input channel of its group


@dataclass(frozen=True, slots=True, kw_only=True)
class OutputBlock:
    """One block of outputs, kept on chip over its row blocks."""

    tile: Tile
    columns: ColumnBlock
    times: Chunk
    samples: Chunk


def column_blocks(layer: NetworkLayer, cols: int) -> tuple[ColumnBlock, ...]:
    """The column blocks of a layer; none spans two groups of a convolution."""
    op = layer.synapse.op if layer.synapse is not None else None
    groups = op.groups if isinstance(op, Conv2d) else 1
    outs = layer.synapse_type.size("C") // groups
    sources = layer.source_type.size("C") // groups
    places = [(group, first) for group in range(groups) for first in range(0, outs, cols)]
    return tuple(
        ColumnBlock(
            index=index,
            first=group * outs + first,
            size=min(cols, outs - first),
            first_source=group * sources,
        )
        for index, (group, first) in enumerate(places)
    )


def output_blocks(layer: NetworkLayer, schedule: Schedule) -> Iterator[OutputBlock]:
    """All output blocks in execution order; the time chunks of a neuron follow each other.

    Source: figure 3.8 (batch and time first, then input channels; the outer two loops are free).
    """
    columns = column_blocks(layer, schedule.cols)
    for samples in schedule.samples:
        for tile in schedule.tiles:
            for block in columns:
                for times in schedule.times:
                    yield OutputBlock(tile=tile, columns=block, times=times, samples=samples)
