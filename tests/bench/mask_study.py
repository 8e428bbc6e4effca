"""What recorded masks cost on Backward Engines that differ, counted exactly, and which of their properties costs it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from compiler.h2learn.order_channels import ChannelDensity, Order
from hwmodel.config import H2LearnConfig
from hwmodel.isa import GradConvTile
from hwmodel.timing.masked_tiles import WindowSums, array_cycles, output_groups, window_sums
from hwmodel.timing.tiles import DenseTiles

Bits = npt.NDArray[np.bool_]
KERNEL, PADDING = 3, 1  # of every convolution that the study knows
PLAIN = "as recorded"
STRUCTURES = ("positions", "channels", "images")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class MaskedLayer:
    """One convolution's input gradient; an instruction has all steps of `together` samples.

    Shapes: inputs (T, N, H, W, its outputs), outputs (T, N, H, W, its inputs).
    """

    name: str
    together: int
    inputs: Bits
    outputs: Bits

    def samples(self, first: int, last: int) -> MaskedLayer:
        """Some of the samples."""
        return replace(self, inputs=self.inputs[:, first:last], outputs=self.outputs[:, first:last])

    def densities(self) -> ChannelDensity:
        """Channel by channel."""
        axes = (0, 1, 2, 3)
        return ChannelDensity(inputs=self.inputs.mean(axis=axes), outputs=self.outputs.mean(axis=axes))

    def ordered(self, rows: Order | None, columns: Order | None) -> MaskedLayer:
        """With its channels at other places."""
        inputs = self.inputs if rows is None else self.inputs[..., list(rows)]
        outputs = self.outputs if columns is None else self.outputs[..., list(columns)]
        return replace(self, inputs=inputs, outputs=outputs)


@dataclass(slots=True, kw_only=True)
class Cost:
    """Sums over the instructions of a layer. Units: cycles, multiply-adds; `pe_cycles` of all PEs."""

    cycles: float = 0.0
    dense_cycles: float = 0.0
    macs: float = 0.0
    dense_macs: float = 0.0
    pe_cycles: float = 0.0
    available: float = 0.0  # cycles times PEs

    def add(self, other: Cost) -> None:
        """Sum up."""
        for name in self.__slots__:
            setattr(self, name, getattr(self, name) + getattr(other, name))

    @property
    def speedup(self) -> float:
        """Dense cycles of the published machine over cycles."""
        return self.dense_cycles / self.cycles

    @property
    def ideal(self) -> float:
        """Dense multiply-adds over valid ones."""
        return self.dense_macs / self.macs

    @property
    def least_one(self) -> float:
        """The speedup of PEs that are always busy, with a cycle for each output without valid inputs."""
        return self.dense_macs / self.pe_cycles

    @property
    def utilisation(self) -> float:
        """Busy part of the PEs' cycles."""
        return self.pe_cycles / self.available


def layer_costs(
    layer: MaskedLayer, published: H2LearnConfig, engines: Mapping[str, H2LearnConfig], *, free_empty: bool = False
) -> dict[str, Cost]:
    """Costs of all sub-batches on several engines, which deal output IDs alike.

    free_empty: an output whose window has no valid input takes no cycle.
    """
    costs = {name: Cost() for name in engines}
    samples = layer.inputs.shape[1]
    for first in range(0, samples, layer.together):
        part = layer.samples(first, min(first + layer.together, samples))
        for tile, inputs, outputs in tiles(part, published):
            sums = window_sums(inputs, tile, published)
            if free_empty:
                is_empty = window_sums(~inputs, tile, published).cycles == KERNEL**2  # all taps are zeros
                sums = replace(sums, cycles=sums.cycles - is_empty)
            _add_tile(tile, sums, outputs, published, engines, costs)
    return costs


def tiles(layer: MaskedLayer, config: H2LearnConfig) -> Iterator[tuple[GradConvTile, Bits, Bits]]:
    """Each tile with all channels, as one instruction of as many rows and columns, and its masks."""
    steps, samples, height, width, channels = layer.inputs.shape
    rim = ((0, 0), (0, 0), (PADDING, PADDING), (PADDING, PADDING), (0, 0))
    padded = np.pad(layer.inputs, rim)
    for y in range(0, height, config.tile.h):
        for x in range(0, width, config.tile.w):
            wanted = layer.outputs[:, :, y : y + config.tile.h, x : x + config.tile.w]
            h, w = wanted.shape[2:4]
            source = padded[:, :, y : y + h + KERNEL - 1, x : x + w + KERNEL - 1]
            tile = gradient_tile(h=h, w=w, nt=steps, nn=samples, rows=channels, cols=wanted.shape[-1])
            yield tile, source.reshape(-1, *source.shape[2:]), wanted.reshape(-1, *wanted.shape[2:])


def gradient_tile(*, h: int, w: int, nt: int, nn: int, rows: int, cols: int) -> GradConvTile:
    """An instruction for a 3 x 3 convolution; `top` and `left` reach the rim that stands in the mask."""
    return GradConvTile(
        layer=0,
        src_bank=0,
        w_bank=0,
        dst_bank=0,
        accumulate=False,
        kernel_h=KERNEL,
        kernel_w=KERNEL,
        stride_h=1,
        stride_w=1,
        h=h,
        w=w,
        top=KERNEL - 1,
        left=KERNEL - 1,
        nt=nt,
        nn=nn,
        rows=rows,
        cols=cols,
        out_sparsity=True,
        mask_part=1,
    )


def _add_tile(
    tile: GradConvTile,
    sums: WindowSums,
    outputs: Bits,
    published: H2LearnConfig,
    engines: Mapping[str, H2LearnConfig],
    costs: Mapping[str, Cost],
) -> None:
    dealing, images = next(iter(engines.values())), tile.nt * tile.nn
    rows, cols, pes = published.backward.rows, published.backward.cols, published.backward.pe_group
    dense = DenseTiles(published)
    for column in range(0, tile.cols, cols):
        block = replace(tile, cols=min(cols, tile.cols - column))
        groups = output_groups(outputs[..., column : column + cols], block, dealing)
        by_pe = np.matmul(sums.cycles, groups.groups)
        macs, busy = (float((effort * groups.found).sum()) for effort in (sums.valid, sums.busy))
        for cost in costs.values():
            cost.macs, cost.pe_cycles = cost.macs + macs, cost.pe_cycles + busy
        for row in range(0, tile.rows, rows):
            full = dense.counts(replace(block, rows=min(rows, tile.rows - row)), 0)
            for name, engine in engines.items():
                cycles = array_cycles(by_pe[:, row : row + rows], images, engine)
                available = cycles * rows * cols * pes
                costs[name].add(
                    Cost(cycles=cycles, dense_cycles=full.cycles, dense_macs=full.macs, available=available)
                )


# -- what costs it ------------------------------------------------------------------------------------------------


def shuffled(mask: Bits, what: str, block: int, rng: np.random.Generator) -> Bits:
    """A mask of the same density with one of its structures taken away.

    positions: within each channel of an image. channels: within a block at each position. images: over samples and
    steps for each channel and position.
    """
    steps, samples, height, width, channels = mask.shape
    match what:
        case "positions":
            return rng.permuted(mask.reshape(steps * samples, -1, channels), axis=1).reshape(mask.shape)
        case "channels":
            blocks = mask.reshape(steps, samples, height, width, channels // block, block)
            return rng.permuted(blocks, axis=5).reshape(mask.shape)
    return rng.permuted(mask.reshape(steps * samples, -1), axis=0).reshape(mask.shape)


def ablation(layer: MaskedLayer, config: H2LearnConfig, seed: int) -> dict[str, float]:
    """Speedups of the published engine for masks without a structure, of inputs, of outputs, of both; without all."""
    rng = np.random.default_rng(seed)
    backward = config.backward

    def speedup(masks: MaskedLayer, *, free_empty: bool = False) -> float:
        return layer_costs(masks, config, {"": config}, free_empty=free_empty)[""].speedup

    found = {PLAIN: speedup(layer), "empty windows free": speedup(layer, free_empty=True)}
    every = layer
    for what in STRUCTURES:
        inputs = _by_sub_batch(layer.inputs, what, backward.rows, config, rng)
        outputs = _by_sub_batch(layer.outputs, what, backward.cols, config, rng)
        found[f"{what}, inputs"] = speedup(replace(layer, inputs=inputs))
        found[f"{what}, outputs"] = speedup(replace(layer, outputs=outputs))
        found[f"{what}, both"] = speedup(replace(layer, inputs=inputs, outputs=outputs))
        every = replace(
            every,
            inputs=_by_sub_batch(every.inputs, what, backward.rows, config, rng),
            outputs=_by_sub_batch(every.outputs, what, backward.cols, config, rng),
        )
    return found | {"all, both": speedup(every)}


def _by_sub_batch(mask: Bits, what: str, block: int, config: H2LearnConfig, rng: np.random.Generator) -> Bits:
    """Images are exchanged within a sub-batch, whose tiles one instruction holds."""
    size = config.sub_batch
    parts = [shuffled(mask[:, n : n + size], what, block, rng) for n in range(0, mask.shape[1], size)]
    return np.concatenate(parts, axis=1)
