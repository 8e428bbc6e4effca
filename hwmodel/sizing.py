"""Buffers that a structure needs: what rows, columns, tile, sub-batch and steps ask of the global buffers."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from hwmodel.config import KIB, BackwardBuffers, ForwardBuffers, H2LearnConfig, WeightUpdateBuffers
from hwmodel.errors import CompileError, Loc
from hwmodel.isa import Buffer

F16_BYTES = 2
RIM = 2  # rows and columns of the source beyond a tile's outputs: 3 x 3, stride 1
POSITIONS = 9  # of a 3 x 3 kernel
KERNELS = (3, 5, 7)  # assumed: sides of the kernels whose weights the Forward Engine loads in whole blocks
UPDATE_CHANNELS = 256  # assumed: input channels whose weight gradients stay on chip, those of section 3.3.2's layer
STREAM_BYTES = 32 * KIB  # assumed: a bank of weight gradients, weights or momentum on their way through the units
NEURON_BYTES = 2 * 9 * F16_BYTES  # table of two neuron stages for one channel

PATHS = {
    Buffer.S_IN: "forward.buffers_kb.s_in",
    Buffer.W: "forward.buffers_kb.w",
    Buffer.PSUM: "forward.buffers_kb.psum",
    Buffer.S_OUT: "forward.buffers_kb.s_out",
    Buffer.MASK: "forward.buffers_kb.mask",
    Buffer.NEURON: "forward.buffers_kb.neuron",
    Buffer.STATE: "forward.buffers_kb.state",
    Buffer.BE_IN: "backward.buffers_kb.gm_in",
    Buffer.BE_W: "backward.buffers_kb.w",
    Buffer.BE_PSUM: "backward.buffers_kb.psum",
    Buffer.BE_OUT: "backward.buffers_kb.s_out",
    Buffer.BE_MASK: "backward.buffers_kb.mask",
    Buffer.BE_M: "backward.buffers_kb.m",
    Buffer.BE_NEURON: "backward.buffers_kb.neuron",
    Buffer.BE_STATE: "backward.buffers_kb.state",
    Buffer.BE_GRAD: "backward.buffers_kb.grad",
    Buffer.WU_GM: "weight_update.buffers_kb.gm",
    Buffer.WU_IN: "weight_update.buffers_kb.s_in",
    Buffer.WU_PSUM: "weight_update.buffers_kb.gw_psum",
    Buffer.WU_GRAD: "weight_update.buffers_kb.grad",
    Buffer.WU_WEIGHT: "weight_update.buffers_kb.weight",
    Buffer.WU_MOMENTUM: "weight_update.buffers_kb.momentum",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """What a grid iteration holds at once.

    A layer whose tile is pooled by 2 x 2 between two neurons keeps a quarter more of each sum, and two sets of spikes
    and masks; `winners` are the masks of a max pooling.
    """

    samples: int
    timesteps: int
    channels: int  # input channels of the Weight Update Engine
    kernels: tuple[int, ...]
    sums: float  # membrane potentials of all neuron stages, of those in front of the pooling
    spikes: int  # neuron stages whose spikes stand in the buffer
    masks: float  # gradient masks and winners, of the first stage
    stream_bytes: int

    @property
    def maps(self) -> int:
        """Feature maps of a channel."""
        return self.samples * self.timesteps


def sized(config: H2LearnConfig, timesteps: int) -> H2LearnConfig:
    """The configuration with the buffers that its structure needs for a sub-batch of so many steps.

    Both banks hold every tile of a grid iteration, pooled layers and max pooling included, for 3 x 3 kernels of stride
    1; sizes go up to whole KiB, those of spike sources to half, neuron tables to a power of two. At the preset's
    structure the result is the preset.
    Source: section 3.2.4 for what is kept on chip; sizes are not printed.
    """
    load = Load(
        samples=config.sub_batch,
        timesteps=timesteps,
        channels=UPDATE_CHANNELS,
        kernels=KERNELS,
        sums=5 / 4,
        spikes=2,
        masks=9 / 4,
        stream_bytes=STREAM_BYTES,
    )
    kb = {buffer: _rounded_kb(buffer, size) for buffer, size in bank_bytes_needed(config, load).items()}
    backward = replace(
        config.backward,
        buffers_kb=_backward_buffers(kb),
        pe_tile_bytes=_pe_tile_bytes(config),
        pe_psum_bytes=_pe_psum_bytes(config),
    )
    return replace(
        config,
        forward=replace(config.forward, buffers_kb=_forward_buffers(kb)),
        backward=backward,
        weight_update=replace(config.weight_update, buffers_kb=_update_buffers(kb)),
    )


def check_room(config: H2LearnConfig, loc: Loc) -> None:
    """Make sure that every buffer holds one tile of one sample at one step, so that no tile is cut to fit.

    Raises: CompileError with the path of each field that is too small.
    """
    load = Load(
        samples=1, timesteps=1, channels=1, kernels=(3,), sums=1, spikes=1, masks=1, stream_bytes=F16_BYTES
    )  # fmt: skip
    faults = [
        f"{PATHS[buffer]} gives a bank of {config.bank_bytes(buffer)} bytes, one tile needs {needed}"
        for buffer, needed in bank_bytes_needed(config, load).items()
        if config.bank_bytes(buffer) < needed
    ]
    backward = config.backward
    pe_sizes = (
        ("pe_tile_bytes", backward.pe_tile_bytes, _pe_tile_bytes(config)),
        ("pe_psum_bytes", backward.pe_psum_bytes, _pe_psum_bytes(config)),
    )
    faults += [
        f"backward.{name} is {given}, one tile needs {least}" for name, given, least in pe_sizes if given < least
    ]
    if faults:
        raise CompileError("; ".join(faults), loc, hint="a smaller tile, fewer rows or columns, or larger buffers")


def bank_bytes_needed(config: H2LearnConfig, load: Load) -> dict[Buffer, int]:
    """Bytes of one bank of each buffer."""
    return {
        buffer: math.ceil(size)
        for sizes in (_forward_bytes(config, load), _backward_bytes(config, load), _update_bytes(config, load))
        for buffer, size in sizes.items()
    }


def _forward_bytes(config: H2LearnConfig, load: Load) -> dict[Buffer, float]:
    forward, outputs = config.forward, config.tile.h * config.tile.w * config.forward.cols
    weights = max(forward.rows * forward.taps_per_pe, *(_block_weights(config, side) for side in load.kernels))
    return {
        Buffer.S_IN: forward.rows * load.maps * _region(config) / 8,
        Buffer.W: weights * forward.cols * F16_BYTES,
        Buffer.PSUM: outputs * load.maps * load.sums * F16_BYTES,
        Buffer.S_OUT: outputs * load.maps * load.spikes / 8,
        Buffer.MASK: outputs * load.maps * load.masks / 8,
        Buffer.NEURON: NEURON_BYTES * forward.cols,
        Buffer.STATE: outputs * load.samples * load.sums * F16_BYTES,
    }


def _block_weights(config: H2LearnConfig, side: int) -> int:
    """Weights of a column's block of rows: a channel may lie over several PEs, also of two blocks."""
    pieces = -(-(side**2) // config.forward.taps_per_pe)
    return -(-(config.forward.rows + pieces - 1) // pieces) * side**2


def _backward_bytes(config: H2LearnConfig, load: Load) -> dict[Buffer, float]:
    """Gradients arrive with a mask each, and leave with one."""
    backward, outputs = config.backward, config.tile.h * config.tile.w * config.backward.cols
    return {
        Buffer.BE_IN: backward.rows * load.maps * _region(config) * (F16_BYTES + 1 / 8),
        Buffer.BE_W: backward.rows * POSITIONS * backward.cols * F16_BYTES,
        Buffer.BE_PSUM: outputs * load.maps * load.sums * F16_BYTES,
        Buffer.BE_OUT: outputs * load.maps * load.spikes / 8,
        Buffer.BE_MASK: outputs * load.maps * (load.masks + 1) / 8,
        Buffer.BE_M: outputs * load.maps * load.sums * F16_BYTES,
        Buffer.BE_NEURON: NEURON_BYTES * backward.cols,
        Buffer.BE_STATE: outputs * load.samples * load.sums * F16_BYTES,
        Buffer.BE_GRAD: max(load.stream_bytes, POSITIONS * backward.cols * F16_BYTES),
    }


def _update_bytes(config: H2LearnConfig, load: Load) -> dict[Buffer, float]:
    """One sample at a time, with the steps that the rows take; a bias gradient for each column."""
    update = config.weight_update
    steps = min(load.timesteps, update.rows)
    return {
        Buffer.WU_GM: steps * config.tile.h * config.tile.w * update.cols * F16_BYTES,
        Buffer.WU_IN: steps * load.channels * _region(config) / 8,
        Buffer.WU_PSUM: (POSITIONS * load.channels + 1) * update.cols * F16_BYTES,
        Buffer.WU_GRAD: max(load.stream_bytes, POSITIONS * update.cols * F16_BYTES),
        Buffer.WU_WEIGHT: load.stream_bytes,
        Buffer.WU_MOMENTUM: load.stream_bytes,
    }


def _region(config: H2LearnConfig) -> int:
    """Positions of the source of a tile."""
    return (config.tile.h + RIM) * (config.tile.w + RIM)


def _pe_tile_bytes(config: H2LearnConfig) -> int:
    """Two banks of the gradients of one channel."""
    return 2 * _region(config) * F16_BYTES


def _pe_psum_bytes(config: H2LearnConfig) -> int:
    """A PE's share of the outputs of a tile, and of those that it may run ahead."""
    share = -(-config.tile.h * config.tile.w // config.backward.pe_group)
    return (config.backward.run_ahead + 1) * share * F16_BYTES


def _rounded_kb(buffer: Buffer, bank_bytes: int) -> float:
    kb = 2 * bank_bytes / KIB
    match buffer:
        case Buffer.NEURON | Buffer.BE_NEURON:
            return float(1 << (math.ceil(kb) - 1).bit_length())
        case Buffer.S_IN | Buffer.WU_IN:
            return math.ceil(2 * kb) / 2
    return float(math.ceil(kb))


def _forward_buffers(kb: dict[Buffer, float]) -> ForwardBuffers:
    return ForwardBuffers(
        s_in=kb[Buffer.S_IN],
        w=kb[Buffer.W],
        psum=kb[Buffer.PSUM],
        s_out=kb[Buffer.S_OUT],
        mask=kb[Buffer.MASK],
        neuron=kb[Buffer.NEURON],
        state=kb[Buffer.STATE],
    )


def _backward_buffers(kb: dict[Buffer, float]) -> BackwardBuffers:
    return BackwardBuffers(
        gm_in=kb[Buffer.BE_IN],
        w=kb[Buffer.BE_W],
        psum=kb[Buffer.BE_PSUM],
        s_out=kb[Buffer.BE_OUT],
        mask=kb[Buffer.BE_MASK],
        m=kb[Buffer.BE_M],
        neuron=kb[Buffer.BE_NEURON],
        state=kb[Buffer.BE_STATE],
        grad=kb[Buffer.BE_GRAD],
    )


def _update_buffers(kb: dict[Buffer, float]) -> WeightUpdateBuffers:
    return WeightUpdateBuffers(
        gm=kb[Buffer.WU_GM],
        s_in=kb[Buffer.WU_IN],
        gw_psum=kb[Buffer.WU_PSUM],
        grad=kb[Buffer.WU_GRAD],
        weight=kb[Buffer.WU_WEIGHT],
        momentum=kb[Buffer.WU_MOMENTUM],
    )
