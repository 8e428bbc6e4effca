"""Area of the chip: the structure that a configuration states, times the areas of its components."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

from hwmodel.components import AreaTable, area_table
from hwmodel.config import KIB, H2LearnConfig, Skips
from hwmodel.isa import Buffer, Queue
from hwmodel.work import F16_BYTES

UM2_PER_MM2 = 1e6
MIB = KIB * KIB
F16_BITS = 8 * F16_BYTES
CONV_TAPS = 9  # weights of one column that a PE selects from
BACKWARD_OPERATIONS = 3  # of a Backward Engine PE each cycle: multiply, add to the partial sum, add in the Acc tree
ENGINES = (Queue.FE, Queue.BE, Queue.WUE)

BUFFERS = {
    Queue.FE: (Buffer.S_IN, Buffer.W, Buffer.PSUM, Buffer.S_OUT, Buffer.MASK, Buffer.NEURON, Buffer.STATE),
    Queue.BE: tuple(buffer for buffer in Buffer if buffer.startswith("be_")),
    Queue.WUE: tuple(buffer for buffer in Buffer if buffer.startswith("wu_")),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class ByComponent:
    """One quantity of an engine by component; the subclass says which."""

    adders: float = 0.0
    multipliers: float = 0.0
    luts: float = 0.0  # storage and read multiplexers of the sub-LUTs
    registers: float = 0.0  # of weights or gradients where there are no LUTs
    pe_buffers: float = 0.0
    finders: float = 0.0
    soma: float = 0.0  # Soma, Grad, the SGD unit
    glb: float = 0.0

    @property
    def total(self) -> float:
        """All components."""
        return math.fsum(getattr(self, f.name) for f in fields(self))

    @property
    def pe_array(self) -> float:
        """PEs with their Acc units, without Soma and GLB."""
        return self.total - self.soma - self.glb


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineArea(ByComponent):
    """Area of an engine. Units: mm2."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ChipArea:
    """Area of the chip. Units: mm2."""

    forward: EngineArea
    backward: EngineArea
    weight_update: EngineArea

    def engine(self, queue: Queue) -> EngineArea:
        """The engine behind a queue."""
        return {Queue.FE: self.forward, Queue.BE: self.backward, Queue.WUE: self.weight_update}[queue]

    @property
    def total(self) -> float:
        """The whole chip, without its external memories."""
        return self.forward.total + self.backward.total + self.weight_update.total


def chip_area(config: H2LearnConfig, table: AreaTable | None = None) -> ChipArea:
    """Area of a configuration, by engine and component.

    Source: table 3.6 for the total, section 3.3.2 for the structure of the engines.
    """
    return ChipArea(
        forward=engine_area(config, Queue.FE, table),
        backward=engine_area(config, Queue.BE, table),
        weight_update=engine_area(config, Queue.WUE, table),
    )


def engine_area(config: H2LearnConfig, engine: Queue, table: AreaTable | None = None) -> EngineArea:
    """Area of one engine; `pe_array` of it is what figure 3.11 compares with and without LUTs.

    Sub-LUTs: bytes * register + sub-LUTs * lanes * 16 * (entries - 1) * mux_bit, a read port for each lane.
    """
    table = table or area_table()
    glb = glb_bytes(config, engine) / MIB * table.glb.value
    adders = adder_count(config, engine) * table.fp16_add.value / UM2_PER_MM2
    soma = _soma_um2(config, engine, table) / UM2_PER_MM2
    if engine is not Queue.BE:
        storage = lut_bytes(config, engine) * table.register.value
        if not has_luts(config, engine):
            return EngineArea(adders=adders, registers=storage / UM2_PER_MM2, soma=soma, glb=glb)
        part = config.forward if engine is Queue.FE else config.weight_update
        ports = part.rows * part.cols * part.sub_luts * part.lanes
        read = ports * F16_BITS * (part.lut_entries - 1) * table.mux_bit.value
        return EngineArea(adders=adders, luts=(storage + read) / UM2_PER_MM2, soma=soma, glb=glb)
    backward, pes = config.backward, multiplier_count(config)
    buffers = pes * (backward.pe_tile_bytes + backward.pe_psum_bytes) * table.pe_buffer.value
    id_buffers = backward.cols * backward.id_buffers
    finders = id_buffers * table.output_finder.value + pes * table.input_finder.value
    # a PE that works for several columns selects among the weights of all of them
    finders += pes * F16_BITS * CONV_TAPS * (backward.shared_columns - 1) * table.mux_bit.value
    return EngineArea(
        adders=adders,
        multipliers=pes * table.fp16_mul.value / UM2_PER_MM2,
        pe_buffers=buffers / UM2_PER_MM2,
        finders=finders * (config.backward.skips is not Skips.NONE) / UM2_PER_MM2,
        soma=soma,
        glb=glb,
    )


def has_luts(config: H2LearnConfig, engine: Queue) -> bool:
    """Whether an engine looks up sums of several taps; with one tap a sub-LUT it only holds its weight.

    Raises: ValueError for an engine that has no place for LUTs.
    """
    match engine:
        case Queue.FE:
            return config.forward.lut_entries > 2
        case Queue.WUE:
            return config.weight_update.lut_entries > 2
    raise ValueError(f"{engine} has no LUTs")


def lut_bytes(config: H2LearnConfig, engine: Queue) -> int:
    """Bytes of an engine's sub-LUTs, or of the registers that stand in their place: the entry 0 is not stored then."""
    part = config.forward if engine is Queue.FE else config.weight_update
    entries = part.lut_entries if has_luts(config, engine) else 1
    return part.rows * part.cols * part.sub_luts * entries * F16_BYTES


def adder_count(config: H2LearnConfig, engine: Queue) -> int:
    """FP16 adders of the PEs and Acc units: one a sub-LUT and lane, or two a PE of the Backward Engine."""
    if engine is Queue.BE:
        return 2 * multiplier_count(config)
    part = config.forward if engine is Queue.FE else config.weight_update
    return part.rows * part.cols * part.sub_luts * part.lanes


def multiplier_count(config: H2LearnConfig) -> int:
    """PEs of the Backward Engine."""
    return config.backward.rows * config.backward.cols * config.backward.pe_group


def glb_bytes(config: H2LearnConfig, engine: Queue) -> int:
    """Bytes of an engine's global buffers, both banks."""
    return sum(2 * config.bank_bytes(buffer) for buffer in BUFFERS[engine])


def buffer_engine(buffer: Buffer) -> Queue:
    """The engine that a buffer belongs to."""
    return next(engine for engine, buffers in BUFFERS.items() if buffer in buffers)


def peak_tflops(config: H2LearnConfig) -> float:
    """Operations that all PE arrays can start in a second; a PE of the Backward Engine counts three, table 3.6.

    Units: 1e12 FP16 operations a second.
    """
    adders = adder_count(config, Queue.FE) + adder_count(config, Queue.WUE)
    return (adders + BACKWARD_OPERATIONS * multiplier_count(config)) * config.clock_ghz / 1000


def _soma_um2(config: H2LearnConfig, engine: Queue, table: AreaTable) -> float:
    """Assumed: a Soma for each result that an array can finish in a cycle, an SGD lane for each weight of a memory."""
    add, mul = table.fp16_add.value, table.fp16_mul.value
    match engine:
        case Queue.FE:
            return config.forward.cols * config.forward.lanes * (2 * add + mul)
        case Queue.BE:
            return config.backward.cols * config.backward.pe_group * (2 * add + mul)
    return config.memory.bytes_per_cycle / F16_BYTES * 3 * (add + mul)
