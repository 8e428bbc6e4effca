"""Chooses the grid iterations of a layer's gradient on the Backward Engine: tiles, channels, steps, samples."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from itertools import product

from compiler.h2learn.blocks import ColumnBlock
from compiler.h2learn.isolate_pools import pool_of
from compiler.h2learn.keep import Kept
from compiler.h2learn.layers import NetworkLayer
from compiler.h2learn.schedule_dataflow import F16_BYTES, Chunk, bytes_of_bits, chunks, tile_sizes
from compiler.h2learn.tile_feature_maps import Span, Tile, tile_feature_maps
from compiler.ir.ops import Conv2d
from hwmodel.config import H2LearnConfig
from hwmodel.isa import NEURON_FIELDS, Buffer


class Origin(StrEnum):
    """Where the gradient of a layer's output comes from."""

    HOST = "host"  # the loss
    CONV = "conv"  # the layer behind it
    FC = "fc"
    SAME = "same"  # the layer behind it has no weights


@dataclass(frozen=True, slots=True, kw_only=True)
class Consumer:
    """The layer behind, as the gradient of its input needs it.

    Source: section 3.2.3 (one channel of its gradients per PE row, one of its input's per column).
    """

    origin: Origin
    kernel: tuple[int, int] = (1, 1)
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (0, 0)
    groups: int = 1
    outputs: int = 0  # channels of its gradients

    def source_range(self, axis: int, start: int, size: int) -> tuple[int, int]:
        """First row (or column) of its gradients that outputs start to start + size take, and how many."""
        kernel, stride, padding = self.kernel[axis], self.stride[axis], self.padding[axis]
        first = -(-(start + padding - kernel + 1) // stride)
        last = (start + size - 1 + padding) // stride
        return first, max(last - first + 1, 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class RowGroup:
    """Gradient channels of one grid iteration, within the group of the column block."""

    first: int
    size: int


@dataclass(frozen=True, slots=True, kw_only=True)
class GradientSchedule:
    """The loops of one layer's gradient, outermost first: samples, tiles, columns, time (backwards), rows."""

    consumer: Consumer
    tiles: tuple[Tile, ...]
    cols: int
    rows: int
    times: tuple[Chunk, ...]  # from the last to the first
    samples: tuple[Chunk, ...]

    def row_groups(self) -> tuple[RowGroup, ...]:
        """The rows of the iterations of an output block; none where the gradient comes from memory."""
        if self.consumer.origin in (Origin.HOST, Origin.SAME):
            return ()
        total = self.consumer.outputs // self.consumer.groups
        return tuple(RowGroup(first=first, size=min(self.rows, total - first)) for first in range(0, total, self.rows))

    def columns(self, channels: int) -> tuple[ColumnBlock, ...]:
        """Blocks of the output's channels; none spans two groups of the layer behind."""
        consumer = self.consumer
        inside, outside = channels // consumer.groups, consumer.outputs // consumer.groups
        places = [(group, first) for group in range(consumer.groups) for first in range(0, inside, self.cols)]
        return tuple(
            ColumnBlock(
                index=index,
                first=group * inside + first,
                size=min(self.cols, inside - first),
                first_source=group * outside,
            )
            for index, (group, first) in enumerate(places)
        )


def consumer_of(layer: NetworkLayer | None) -> Consumer:
    """How the gradient of a layer's output comes from the layer behind it."""
    if layer is None:
        return Consumer(origin=Origin.HOST)
    if layer.synapse is None:
        return Consumer(origin=Origin.SAME)
    op = layer.synapse.op
    outputs = layer.synapse_type.size("C")
    if not isinstance(op, Conv2d):
        return Consumer(origin=Origin.FC, outputs=outputs)
    return Consumer(
        origin=Origin.CONV,
        kernel=layer.kernel,
        stride=op.stride,
        padding=op.padding,
        groups=op.groups,
        outputs=outputs,
    )


def schedule_gradient(
    layer: NetworkLayer, behind: NetworkLayer | None, kept: Kept, config: H2LearnConfig, timesteps: int, batch: int
) -> GradientSchedule | str:
    """The largest grid iterations that fit every buffer; else what even the smallest exceeds."""
    consumer = consumer_of(behind)
    failures: list[str] = []
    for cols, rows, (height, width) in _cuts(layer, consumer, config):
        tiles = tile_feature_maps(layer, height, width)
        if consumer.origin is Origin.FC and not _runs_of_positions(layer, tiles):
            continue
        choice = _Choice(layer=layer, consumer=consumer, kept=kept, tiles=tiles, cols=cols, rows=rows)
        failures = choice.exceeded(config, 1, 1)
        if failures:
            continue
        for nn, nt in product(range(batch, 0, -1), range(timesteps, 0, -1)):
            if not choice.exceeded(config, nt, nn):
                return GradientSchedule(
                    consumer=consumer,
                    tiles=tiles,
                    cols=cols,
                    rows=rows,
                    times=tuple(reversed(chunks(timesteps, nt))),
                    samples=chunks(batch, nn),
                )
    return failures[0]


def _cuts(layer: NetworkLayer, consumer: Consumer, config: H2LearnConfig) -> Iterator[tuple[int, int, tuple[int, int]]]:
    sizes = tuple(_sizes(layer, consumer, config))
    cols = config.backward.cols
    while cols >= 1:
        rows = config.backward.rows
        while rows >= 1:
            for size in sizes:
                yield cols, rows, size
            rows //= 2
        cols //= 2


def _sizes(layer: NetworkLayer, consumer: Consumer, config: H2LearnConfig) -> Iterator[tuple[int, int]]:
    """Tiles of the Soma's input; in front of a linear layer runs of positions in memory order, rows first.

    In front of a convolution its outputs fill a tile first, even where that cuts time: the PEs work on these, and a
    pooling makes more of them afterwards.
    """
    unit_h, unit_w = _pool_unit(layer, 0), _pool_unit(layer, 1)
    if consumer.origin is not Origin.FC or not layer.synapse_type.has("H"):
        if consumer.origin is Origin.CONV and (unit_h, unit_w) != (1, 1):
            yield config.tile.h * unit_h, config.tile.w * unit_w
        yield from tile_sizes(layer, config)
        return
    maps = layer.output_type if layer.synapse is None else layer.synapse_type
    width = -(-maps.size("W") // unit_w) * unit_w
    if width <= config.tile.w:
        for rows in range(config.tile.h // unit_h, 1, -1):
            yield rows * unit_h, width
    for columns in range(config.tile.w // unit_w, 0, -1):
        yield unit_h, columns * unit_w


def _pool_unit(layer: NetworkLayer, axis: int) -> int:
    """Soma inputs that belong together; pooling from memory is cut by its outputs."""
    unit = 1
    for node in (layer.pool1, layer.pool2):
        if node is not None and layer.synapse is not None:
            unit *= pool_of(node).stride[axis]
    return unit


def _runs_of_positions(layer: NetworkLayer, tiles: tuple[Tile, ...]) -> bool:
    """Whether the outputs of each tile stand one after the other in memory."""
    width = layer.output_type.size("W") if layer.output_type.has("W") else 1
    return all(tile.rows.out_size == 1 or tile.columns.out_size == width for tile in tiles)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Choice:
    """One cut, and what it takes of the buffers."""

    layer: NetworkLayer
    consumer: Consumer
    kept: Kept
    tiles: tuple[Tile, ...]
    cols: int
    rows: int

    def exceeded(self, config: H2LearnConfig, nt: int, nn: int) -> list[str]:
        """Names of the buffers that do not hold nt steps of nn samples, with both sizes."""
        failures = [
            f"{buffer}: {size} of {config.bank_bytes(buffer)} bytes"
            for buffer, size in self._bytes(nt * nn, nn).items()
            if size > config.bank_bytes(buffer)
        ]
        backward = config.backward
        source, out = self._source_size(), self._outputs()
        if self.consumer.origin is Origin.CONV:
            if source * F16_BYTES > backward.pe_tile_bytes // 2:
                failures.append(f"a PE's tile: {source * F16_BYTES} of {backward.pe_tile_bytes // 2} bytes")
            if out * F16_BYTES > backward.pe_psum_bytes * backward.pe_group:
                failures.append(f"the PEs' partial sums: {out * F16_BYTES} bytes")
        return failures

    def _bytes(self, maps: int, samples: int) -> dict[Buffer, int]:
        cols = min(self.cols, self.layer.output_type.size("C") // self.consumer.groups)
        rows = min(self.rows, self.consumer.outputs // self.consumer.groups)
        out, inner = self._outputs(), max(tile.rows.size * tile.columns.size for tile in self.tiles)
        sizes = [max(_stage_size(self.layer, tile, stage) for tile in self.tiles) for stage in (0, 1)]
        positions = self.consumer.kernel[0] * self.consumer.kernel[1]
        weights = (out if self.consumer.origin is Origin.FC else positions) * cols * rows
        source = maps * self._source_size() * rows
        neurons = self.kept.neurons
        spikes = {n.stage for n in neurons if n.spikes} | ({0} if self.kept.first_spikes else set())
        bits = {
            Buffer.BE_OUT: [sizes[stage] for stage in spikes],
            Buffer.BE_MASK: [*(sizes[n.stage] for n in neurons), inner, inner * self.kept.winners],
        }
        halves = {
            Buffer.BE_PSUM: max(out, inner),
            Buffer.BE_M: sum(sizes[n.stage] for n in neurons if n.membrane),
        }
        return {
            Buffer.BE_IN: source * F16_BYTES + -(-source // 8),
            Buffer.BE_W: weights * F16_BYTES,
            Buffer.BE_NEURON: 2 * NEURON_FIELDS * cols * F16_BYTES,
            Buffer.BE_STATE: samples * max(sizes) * cols * F16_BYTES,
            **{buffer: bytes_of_bits(maps * size * cols for size in parts) for buffer, parts in bits.items()},
            **{buffer: maps * size * cols * F16_BYTES for buffer, size in halves.items()},
        }

    def _outputs(self) -> int:
        return max(tile.rows.out_size * tile.columns.out_size for tile in self.tiles)

    def _source_size(self) -> int:
        """Positions of the region of gradients that a tile takes."""
        match self.consumer.origin:
            case Origin.CONV:
                return max(
                    self.consumer.source_range(0, tile.rows.out_start, tile.rows.out_size)[1]
                    * self.consumer.source_range(1, tile.columns.out_start, tile.columns.out_size)[1]
                    for tile in self.tiles
                )
            case Origin.FC:
                return 1
        return 0


def _stage_size(layer: NetworkLayer, tile: Tile, stage: int) -> int:
    """Neurons of a stage in a tile."""
    return _stage_extent(layer, tile.rows, stage) * _stage_extent(layer, tile.columns, stage)


def _stage_extent(layer: NetworkLayer, span: Span, stage: int) -> int:
    if stage == 1 or layer.pool2 is None:
        return span.out_size
    return span.pools[0].out if layer.pool1 is not None else span.size
