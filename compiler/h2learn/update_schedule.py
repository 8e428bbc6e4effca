"""Chooses the grid iterations of a layer's weight gradients: channels that stay on chip, then tiles, samples, steps."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product

from compiler.h2learn.layers import NetworkLayer
from compiler.h2learn.schedule_dataflow import F16_BYTES, Chunk, chunks
from compiler.ir.ops import Conv2d
from hwmodel.config import H2LearnConfig
from hwmodel.isa import GRADIENT_BUFFERS, Buffer, Queue


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """The layer as its weight gradients need it; a linear layer is a 1 x 1 convolution of one position."""

    engine: Queue
    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]
    groups: int
    inputs: int  # channels of a group, or features
    outputs: int  # channels of a group
    rows: int  # of the gradients
    columns: int
    is_conv: bool
    held: bool  # the source has one step

    @property
    def positions(self) -> int:
        """Weights of an input and an output channel."""
        return self.kernel[0] * self.kernel[1]


@dataclass(frozen=True, slots=True, kw_only=True)
class UpdateSchedule:
    """The loops of one layer's weight gradients, outermost first: output and input channels, tiles, samples, time.

    Source: figure 3.8 (the partial sums of the gradients are reused first, the spikes last).
    """

    shape: Shape
    outputs: tuple[Chunk, ...]  # over all groups
    inputs: tuple[Chunk, ...]  # within a group
    tile_rows: tuple[Chunk, ...]
    tile_columns: tuple[Chunk, ...]
    samples: tuple[Chunk, ...]
    times: tuple[Chunk, ...]
    slice_inputs: int  # input channels of one trip through the adder


def shape_of(layer: NetworkLayer, used: tuple[int, int]) -> Shape:
    """The shape of a layer with weights; `used` are the rows and columns of its sums that pooling does not drop."""
    assert layer.synapse is not None
    op = layer.synapse.op
    is_conv = isinstance(op, Conv2d)
    groups = op.groups if isinstance(op, Conv2d) else 1
    return Shape(
        engine=Queue.BE if layer.real else Queue.WUE,
        kernel=layer.kernel,
        stride=op.stride if isinstance(op, Conv2d) else (1, 1),
        padding=op.padding if isinstance(op, Conv2d) else (0, 0),
        groups=groups,
        inputs=layer.source_type.size("C") // groups,
        outputs=layer.synapse_type.size("C") // groups,
        rows=used[0],
        columns=used[1],
        is_conv=is_conv,
        held=layer.held,
    )


def schedule_update(shape: Shape, config: H2LearnConfig, timesteps: int, batch: int) -> UpdateSchedule | str:
    """The largest grid iterations that fit every buffer; else what even the smallest exceeds."""
    failures: list[str] = []
    for (height, width), cols, inputs in _cuts(shape, config):
        failures = _exceeded(shape, config, (height, width), cols, inputs, 1, 1)
        if failures:
            continue
        most_steps = min(timesteps, config.weight_update.rows) if shape.engine is Queue.WUE else timesteps
        nt, nn = _most(shape, config, (height, width), cols, inputs, most_steps, batch)
        groups = [group * shape.outputs for group in range(shape.groups)]
        outputs = tuple(
            Chunk(start=first + chunk.start, size=chunk.size)
            for first in groups
            for chunk in chunks(shape.outputs, cols)
        )
        stream = config.bank_bytes(GRADIENT_BUFFERS[shape.engine].stream)
        return UpdateSchedule(
            shape=shape,
            outputs=outputs,
            inputs=chunks(shape.inputs, inputs),
            tile_rows=chunks(shape.rows, height),
            tile_columns=chunks(shape.columns, width),
            samples=chunks(batch, nn),
            times=chunks(timesteps, nt),
            slice_inputs=max(1, stream // (shape.positions * min(cols, shape.outputs) * F16_BYTES)),
        )
    return failures[0]


def _most(
    shape: Shape,
    config: H2LearnConfig,
    tile: tuple[int, int],
    cols: int,
    inputs: int,
    timesteps: int,
    batch: int,
) -> tuple[int, int]:
    """Steps and samples of an iteration: all steps that the rows take first, since each is a row of the array."""
    return next(
        (nt, nn)
        for nt, nn in product(range(timesteps, 0, -1), range(batch, 0, -1))
        if not _exceeded(shape, config, tile, cols, inputs, nt, nn)
    )


def _cuts(shape: Shape, config: H2LearnConfig) -> Iterator[tuple[tuple[int, int], int, int]]:
    """Tiles, output and input channels from the largest to the smallest; inputs shrink first."""
    engine = config.weight_update if shape.engine is Queue.WUE else config.backward
    tile = (min(config.tile.h, shape.rows), min(config.tile.w, shape.columns))
    while True:
        cols = min(engine.cols, shape.outputs)
        while cols >= 1:
            inputs = shape.inputs if shape.engine is Queue.WUE else min(shape.inputs, config.backward.rows)
            while inputs >= 1:
                yield tile, cols, inputs
                inputs = inputs * 7 // 8 if inputs > 8 else inputs - 1
            cols //= 2
        if tile == (1, 1):
            return
        tile = (-(-tile[0] // 2), tile[1]) if tile[0] >= tile[1] else (tile[0], -(-tile[1] // 2))


def _exceeded(
    shape: Shape, config: H2LearnConfig, tile: tuple[int, int], cols: int, inputs: int, nt: int, nn: int
) -> list[str]:
    buffers = GRADIENT_BUFFERS[shape.engine]
    steps = 1 if shape.held else nt
    region = [(tile[i] - 1) * shape.stride[i] + shape.kernel[i] for i in (0, 1)]
    source_bits = 1 if shape.engine is Queue.WUE else 16
    sizes: dict[Buffer, int] = {
        buffers.source: -(-steps * nn * region[0] * region[1] * inputs * source_bits // 8),
        buffers.gradient: nt * nn * tile[0] * tile[1] * cols * F16_BYTES,
        buffers.psum: (shape.positions * inputs + 1) * cols * F16_BYTES,
        buffers.stream: shape.positions * cols * F16_BYTES,
    }
    return [
        f"{buffer}: {size} of {config.bank_bytes(buffer)} bytes"
        for buffer, size in sizes.items()
        if size > config.bank_bytes(buffer)
    ]
