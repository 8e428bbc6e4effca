"""Chooses what one grid iteration handles: row and column blocks, and the split of time, samples and tiles."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import product

from compiler.h2learn.assign_engines import assign_engine
from compiler.h2learn.isolate_pools import pool_of
from compiler.h2learn.keep import NOTHING, Kept
from compiler.h2learn.layers import NetworkLayer
from compiler.h2learn.partition_luts import Partition, partition
from compiler.h2learn.quantise import Quantised
from compiler.h2learn.tile_feature_maps import Tile, tile_feature_maps
from hwmodel.config import H2LearnConfig
from hwmodel.isa import ENGINE_BUFFERS, NEURON_FIELDS, Buffer, Queue

F16_BYTES = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Chunk:
    """A range of time steps or samples."""

    start: int
    size: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Schedule:
    """The loops of one layer, outermost first: sample chunks, tiles, column blocks, time chunks, row blocks.

    Output-stationary: the partial sums of a tile stay on chip over its row blocks. Where a layer exceeds a
    buffer, time is split first (the membrane potential goes through memory between chunks), then samples,
    then the tile, then the rows.
    Source: figure 3.8, section 3.2.4.
    """

    engine: Queue
    partition: Partition
    tiles: tuple[Tile, ...]
    cols: int
    times: tuple[Chunk, ...]
    samples: tuple[Chunk, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Need:
    """Bytes that a choice takes in one bank of each buffer."""

    buffers: dict[Buffer, int]
    pe_tile: int = 0  # Backward Engine: one bank of a PE's private tile
    pe_psum: int = 0


def schedule_dataflow(
    layer: NetworkLayer,
    constants: Quantised,
    config: H2LearnConfig,
    timesteps: int,
    batch: int,
    kept: Kept = NOTHING,
) -> Schedule | str:
    """The largest grid iterations that fit every buffer; else what even the smallest exceeds."""
    engine = assign_engine(layer)
    failures: list[str] = []
    for cols, split, (height, width) in _cuts(layer, engine, config):
        tiles = tile_feature_maps(layer, height, width)
        failures = _exceeded(_need(layer, constants, split, tiles, engine, cols, 1, 1, kept), engine, config)
        if failures:
            continue
        for nn, nt in product(range(batch, 0, -1), range(timesteps, 0, -1)):
            need = _need(layer, constants, split, tiles, engine, cols, nt, nn, kept)
            if not _exceeded(need, engine, config):
                return Schedule(
                    engine=engine,
                    partition=split,
                    tiles=tiles,
                    cols=cols,
                    times=chunks(timesteps, nt),
                    samples=chunks(batch, nn),
                )
    return failures[0]


def _cuts(
    layer: NetworkLayer, engine: Queue, config: H2LearnConfig
) -> Iterator[tuple[int, Partition, tuple[int, int]]]:
    """Columns, rows and tiles from the hardware's own down to the smallest; tiles shrink first."""
    cols = config.forward.cols if engine is Queue.FE else config.backward.cols
    while cols >= 1:
        for split in _partitions(layer, engine, config):
            for size in tile_sizes(layer, config):
                yield cols, split, size
        cols //= 2


def _partitions(layer: NetworkLayer, engine: Queue, config: H2LearnConfig) -> Iterator[Partition]:
    """Partitions with all rows first, then with fewer rows (or kernel rows) at a time."""
    rows = config.forward.rows if engine is Queue.FE else config.backward.rows
    while rows >= 1:
        kernel_rows = 0
        while True:
            split = partition(layer, engine, config, rows=rows, kernel_rows=kernel_rows)
            yield split
            kernel_rows = split.kernel_rows - 1
            if engine is Queue.FE or kernel_rows < 1:
                break
        rows //= 2


def tile_sizes(layer: NetworkLayer, config: H2LearnConfig) -> Iterator[tuple[int, int]]:
    """Tile sizes from the hardware's down to a single output; pooling needs whole windows."""
    unit_h = unit_w = 1
    if layer.synapse is not None:
        for node in (layer.pool1, layer.pool2):
            if node is not None:
                unit_h *= pool_of(node).stride[0]
                unit_w *= pool_of(node).stride[1]
    height, width = config.tile.h // unit_h * unit_h, config.tile.w // unit_w * unit_w
    while True:
        yield height, width
        if (height, width) == (unit_h, unit_w):
            return
        if (height >= width and height > unit_h) or width == unit_w:
            height = max(height // 2 // unit_h, 1) * unit_h
        else:
            width = max(width // 2 // unit_w, 1) * unit_w


def _need(
    layer: NetworkLayer,
    constants: Quantised,
    split: Partition,
    tiles: tuple[Tile, ...],
    engine: Queue,
    cols: int,
    nt: int,
    nn: int,
    kept: Kept,
) -> _Need:
    height = max(tile.rows.size for tile in tiles)
    width = max(tile.columns.size for tile in tiles)
    out = max(tile.rows.out_size * tile.columns.out_size for tile in tiles)
    cols = min(cols, layer.output_type.size("C"))
    steps = 1 if layer.held and layer.synapse is not None else nt
    region_h = (height - 1) * split.stride[0] + split.kernel_rows
    region_w = (width - 1) * split.stride[1] + split.kernel[1]
    source = steps * nn * region_h * region_w * split.channels_per_block
    # pooling from memory stands before the neuron, else behind or in front of it within the tile
    first_stage = height * width if layer.synapse is not None else out
    state = sum(nn * size * cols * F16_BYTES for size, _ in zip((first_stage, out), constants.stages, strict=False))
    weights = split.weight_values * cols * F16_BYTES
    neuron = len(constants.stages) * NEURON_FIELDS * cols * F16_BYTES
    values = nt * nn * cols
    sizes = [values * first_stage, values * out]  # of the neuron stages
    psum = values * height * width
    held = sum(sizes[neuron.stage] for neuron in kept.neurons if neuron.membrane)
    if constants.stages and not constants.stages[-1].fire:
        held += values * out
    spikes = [values * out, sizes[0] * kept.first_spikes]
    masks = [*(sizes[neuron.stage] for neuron in kept.neurons), psum * kept.winners]
    names = ENGINE_BUFFERS[engine]
    source_bits = 16 if engine is Queue.BE else 1
    return _Need(
        buffers={
            names.source: -(-source * source_bits // 8) if layer.synapse is not None else 0,
            names.weights: weights,
            names.psum: max(psum, held) * F16_BYTES,
            names.out: bytes_of_bits(spikes),
            names.mask: bytes_of_bits(masks),
            names.neuron: neuron,
            names.state: state,
        },
        pe_tile=region_h * region_w * F16_BYTES if engine is Queue.BE else 0,
        pe_psum=height * width * F16_BYTES if engine is Queue.BE else 0,
    )


def bytes_of_bits(parts: Iterable[int]) -> int:
    """Bytes of a bank's parts, each of so many bits."""
    return sum(-(-bits // 8) for bits in parts)


def _exceeded(need: _Need, engine: Queue, config: H2LearnConfig) -> list[str]:
    """Names of the buffers that a choice does not fit, with both sizes."""
    failures = [
        f"{buffer}: {size} of {config.bank_bytes(buffer)} bytes"
        for buffer, size in need.buffers.items()
        if size > config.bank_bytes(buffer)
    ]
    if engine is Queue.BE:
        backward = config.backward
        if need.pe_tile > backward.pe_tile_bytes // 2:
            failures.append(f"a PE's tile: {need.pe_tile} of {backward.pe_tile_bytes // 2} bytes")
        if need.pe_psum > backward.pe_psum_bytes * backward.pe_group:
            failures.append(f"the PEs' partial sums: {need.pe_psum} bytes")
    return failures


def chunks(total: int, size: int) -> tuple[Chunk, ...]:
    """Ranges of at most `size` that cover the total."""
    return tuple(Chunk(start=at, size=min(size, total - at)) for at in range(0, total, size))
