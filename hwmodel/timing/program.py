"""Cycles in closed form: how long engines and memories are busy, layer by layer.

These are sums of independent parts; stalls, arbitration and overlap between layers are not in them.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

from hwmodel.config import H2LearnConfig
from hwmodel.isa import ConvTile, FcTile, Instruction, Load, LutMode, LutProgram, Queue, Store
from hwmodel.program import Format, Layer, Phase, Program


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerTiming:
    """One layer of one sub-batch.

    latency_cycles = max(compute_cycles, memory_cycles): loads and stores run beside the engine (ping-pong).
    """

    name: str
    engine: Queue
    compute_cycles: int
    memory_bytes: int
    memory_cycles: int
    latency_cycles: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ProgramTiming:
    """A sub-batch, its layers one after the other."""

    layers: tuple[LayerTiming, ...]
    latency_cycles: int
    cycles_per_sample: float
    latency_us: float


def program_timing(program: Program) -> ProgramTiming:
    """Time of one sub-batch, from the instructions of each layer; of a training program, of its forward pass.

    Units: cycles of config.clock_ghz; memory at config.memory.bytes_per_cycle.
    """
    rows = []
    streams = program.phases[Phase.RUN if program.training is None else Phase.FORWARD]
    by_layer: dict[int, list[tuple[Queue, Instruction]]] = defaultdict(list)
    for queue, stream in streams.items():
        for instruction in stream:
            by_layer[instruction.layer].append((queue, instruction))
    for number, layer in enumerate(program.layers):
        own = by_layer[number]
        compute = sum(instruction_cycles(i, program.config, q) for q, i in own if q in (Queue.FE, Queue.BE))
        moved = memory_bytes(program, (i for _, i in own))
        memory = math.ceil(moved / program.config.memory.bytes_per_cycle)
        rows.append(
            LayerTiming(
                name=layer.name,
                engine=layer.engine,
                compute_cycles=compute,
                memory_bytes=moved,
                memory_cycles=memory,
                latency_cycles=max(compute, memory),
            )
        )
    latency = sum(row.latency_cycles for row in rows)
    return ProgramTiming(
        layers=tuple(rows),
        latency_cycles=latency,
        cycles_per_sample=latency / program.batch,
        latency_us=latency / program.config.clock_ghz / 1000,
    )


def instruction_cycles(instruction: Instruction, config: H2LearnConfig, queue: Queue) -> int:
    """Cycles that an engine is busy with one instruction; 0 for what runs beside the PE array.

    Forward Engine, convolution: ceil(nn / lanes) * nt * tile; an edge tile costs a full one.
    Forward Engine, linear: ceil(nn / lanes) * nt for each 192 inputs; its weights stream in at memory speed.
    Backward Engine, dense: nt * nn * (ceil(outputs / pe_group) * taps + pipe); a tile that was cut to fit a
    PE's buffer costs its own outputs. Linear: ceil(nt * nn / pe_group), one tap.
    LUT programming: program_cycles for a convolution. The Soma works in the shadow of the PE array.
    """
    match instruction:
        case LutProgram(mode=LutMode.CONV):
            return config.forward.program_cycles
        case ConvTile() if queue is Queue.FE:
            lanes = -(-instruction.nn // config.forward.lanes)
            return lanes * instruction.nt * config.tile.h * config.tile.w
        case FcTile() if queue is Queue.FE:
            return -(-instruction.nn // config.forward.lanes) * instruction.nt * instruction.groups
        case ConvTile():
            outputs = -(-instruction.h * instruction.w // config.backward.pe_group)
            taps = instruction.tap_rows * instruction.kernel_w
            return instruction.nt * instruction.nn * (outputs * taps + config.backward.pipe)
        case FcTile():
            return -(-instruction.nt * instruction.nn // config.backward.pe_group)
    return 0


def memory_bytes(program: Program, instructions: Iterable[Instruction]) -> int:
    """Bytes that loads and stores move; rows of bits count exactly, halo that is not in memory is free."""
    bits = 0
    for instruction in instructions:
        if not isinstance(instruction, Load | Store):
            continue
        tensor = program.tensors[instruction.tensor]
        height = width = 1
        if not instruction.flat:
            height = min(instruction.y0 + instruction.h, tensor.shape[2]) - max(instruction.y0, 0)
            width = min(instruction.x0 + instruction.w, tensor.shape[3]) - max(instruction.x0, 0)
        elements = instruction.nt * instruction.nn * max(height, 0) * max(width, 0) * instruction.nc
        bits += elements * (1 if tensor.format is Format.S1 else 16)
    return -(-bits // 8)


def forward_conv_cycles(layer: Layer, config: H2LearnConfig, timesteps: int, batch: int, chunks: int = 1) -> int:
    """Closed form of a convolution on the Forward Engine; `chunks` is how often time is cut.

    ceil(Cin * ceil(k^2 / 9) / 64) * ceil(Cout / 16) * tiles * (ceil(N / 4) * T * 64 + 10 * chunks), per group.
    """
    forward = config.forward
    pieces = -(-layer.kernel[0] * layer.kernel[1] // forward.taps_per_pe)
    rows = -(-(layer.c_in // layer.groups) * pieces // forward.rows)
    columns = -(-(layer.c_out // layer.groups) // forward.cols) * layer.groups
    tiles = -(-layer.out_h // config.tile.h) * -(-layer.out_w // config.tile.w)
    per_tile = -(-batch // forward.lanes) * timesteps * config.tile.h * config.tile.w
    return rows * columns * tiles * (per_tile + forward.program_cycles * chunks)


def forward_linear_cycles(layer: Layer, config: H2LearnConfig, timesteps: int, batch: int) -> int:
    """Closed form of a linear layer on the Forward Engine.

    ceil(Cout / 16) * ceil(Cin / 192) * ceil(N / 4) * T.
    """
    forward = config.forward
    groups = -(-layer.c_in // (forward.rows * forward.sub_luts))
    return -(-layer.c_out // forward.cols) * groups * -(-batch // forward.lanes) * timesteps


def encoding_conv_cycles(layer: Layer, config: H2LearnConfig, timesteps: int, batch: int) -> int:
    """Closed form of a dense convolution on the Backward Engine whose tiles are not cut.

    ceil(Cin / 16) * ceil(Cout / 64) * T * N * sum over tiles of (ceil(outputs / 4) * k^2 + pipe), per group.
    """
    backward, tile = config.backward, config.tile
    rows = -(-(layer.c_in // layer.groups) // backward.rows)
    columns = -(-(layer.c_out // layer.groups) // backward.cols) * layer.groups
    per_image = sum(
        -(-min(tile.h, layer.out_h - y) * min(tile.w, layer.out_w - x) // backward.pe_group)
        * layer.kernel[0]
        * layer.kernel[1]
        + backward.pipe
        for y in range(0, layer.out_h, tile.h)
        for x in range(0, layer.out_w, tile.w)
    )
    return rows * columns * timesteps * batch * per_image
