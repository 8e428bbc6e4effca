"""Cycles in closed form: how long engines and memories are busy, layer by layer.

These are sums of independent parts; stalls, arbitration and overlap between layers are not in them.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

from hwmodel.isa import Instruction, Queue, Transfer
from hwmodel.program import Phase, Program
from hwmodel.timing.instructions import instruction_work, transfer_bytes
from hwmodel.timing.tiles import DenseTiles


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
    config, dense = program.config, DenseTiles(program.config)
    streams = program.phases[Phase.RUN if program.training is None else Phase.FORWARD]
    by_layer: dict[int, list[tuple[Queue, Instruction]]] = defaultdict(list)
    for queue, stream in streams.items():
        for instruction in stream:
            by_layer[instruction.layer].append((queue, instruction))
    for number, layer in enumerate(program.layers):
        own = by_layer[number]
        compute = sum(round(instruction_work(i, config, q, dense).cycles) for q, i in own if q in (Queue.FE, Queue.BE))
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


def memory_bytes(program: Program, instructions: Iterable[Instruction]) -> int:
    """Bytes that loads and stores move, compressed membrane potentials in full."""
    moved = sum(
        transfer_bytes(instruction, program.tensors[instruction.tensor], program.config)
        for instruction in instructions
        if isinstance(instruction, Transfer)
    )
    return math.ceil(moved)
