"""The weights of a layer in the order in which `input_masked` reads them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from compiler.fused.emit import Buffer, Expr, T, argument, f32, kernel, put, select, tirx
from compiler.fused.spikes.forward_events import transposed
from compiler.fused.spikes.masked_plan import Size, Taps
from compiler.fused.spikes.words import held


def masked_weights_kernel(taps: Taps, parallel: bool) -> tirx.PrimFunc:
    """packed[group, block, turn, c, register, lane]: the weights of one c together, as the registers take them.

    Registers are ordered as `Taps.registers` tells; a block is `Taps.block` output channels, absent ones get 0.
    Arguments: sizes; weight (O, KH, KW, C / groups) and packed as one line each.
    """
    return kernel("masked_weights", partial(_write, taps, parallel))


def _write(taps: Taps, parallel: bool) -> None:
    sizes = argument("sizes", [len(Size)], "int64")
    weight, packed = argument("weight", [T.int64()]), argument("packed", [T.int64()])
    size = tuple(held(sizes[at]) for at in range(len(Size)))
    blocks = held((size[Size.OUT_CHANNELS] + taps.block - 1) // taps.block)
    tasks = held(size[Size.GROUPS] * blocks * taps.turns)
    with T.parallel(tasks) if parallel else T.serial(tasks) as task:
        _Block(taps, size, weight, packed, held(task // (blocks * taps.turns)), held(task)).write(
            held(task // taps.turns % blocks * taps.block), held(task % taps.turns)
        )


@dataclass(frozen=True, slots=True)
class _Block:
    """One block of output channels and one turn."""

    taps: Taps
    size: tuple[Expr, ...]
    weight: Buffer
    packed: Buffer
    group: Expr
    task: Expr

    @property
    def _pitch(self) -> int:
        """Values from one input channel to the next."""
        return self.taps.registers * self.taps.lanes

    def write(self, block: Expr, first_row: Expr) -> None:
        taps, size, lanes = self.taps, self.size, self.taps.lanes
        channels = size[Size.CHANNELS]
        target = held(self.task * channels * self._pitch)
        with T.serial(taps.rows_at_once) as row, T.serial(taps.columns) as column, T.serial(taps.vectors) as vector:
            ky = held((first_row + row) * size[Size.STRIDE_Y] + size[Size.PHASE_Y])
            kx = held(column * size[Size.STRIDE_X] + size[Size.PHASE_X])
            first = held(block + vector * lanes)
            sources = [self._source(held(first + lane), ky, kx) for lane in range(lanes)]
            there = held(size[Size.OUT_CHANNELS] - first)
            here = held(target + ((row * taps.columns + column) * taps.vectors + vector) * lanes)
            with T.serial(channels // lanes) as part:
                self._square(sources, held(part * lanes), here, there)
            with T.serial(channels % lanes) as rest:
                channel = held(channels // lanes * lanes + rest)
                for lane, source in enumerate(sources):
                    value = select(there > lane, self.weight[source + channel], f32(0.0))
                    put(self.packed, value, here + channel * self._pitch + lane)

    def _source(self, output: Expr, ky: Expr, kx: Expr) -> Expr:
        """Where an output channel's weights begin; of an absent one, the last's."""
        size = self.size
        outputs = size[Size.OUT_CHANNELS]
        row = (self.group * outputs + T.min(output, outputs - 1)) * size[Size.KERNEL_Y] + ky
        return held((row * size[Size.KERNEL_X] + kx) * size[Size.CHANNELS])

    def _square(self, sources: Sequence[Expr], channel: Expr, target: Expr, there: Expr) -> None:
        """As many input channels as a vector has lanes, turned over in registers."""
        lanes = self.taps.lanes
        zeros = T.broadcast(f32(0.0), lanes)
        rows = [
            select(there > lane, self.weight[T.ramp(source + channel, 1, lanes)], zeros)
            for lane, source in enumerate(sources)
        ]
        for at, vector in enumerate(transposed(rows)):
            put(self.packed, vector, T.ramp(target + (channel + at) * self._pitch, 1, lanes))
