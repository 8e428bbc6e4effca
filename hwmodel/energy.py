"""Energy on chip: counted work times the energies of its operations, and leakage over time."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields

from hwmodel.area import ENGINES, ByComponent, chip_area, has_luts
from hwmodel.components import AreaTable, EnergyTable, energy_table
from hwmodel.config import KIB, H2LearnConfig, Skips
from hwmodel.isa import Buffer, Queue
from hwmodel.work import Work

PJ_PER_J = 1e12
SOMA_MULTIPLIES, SOMA_ADDS = 1, 2  # decay; input and comparison, equation 2.1
BANK_CLASSES = (8, 64, 256, 512)  # KiB


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineEnergy:
    """Dynamic energy by component. Units: pJ."""

    adders: float = 0.0
    multipliers: float = 0.0
    look_ups: float = 0.0
    lut_writes: float = 0.0
    pe_buffers: float = 0.0
    finder: float = 0.0
    soma: float = 0.0
    glb_reads: float = 0.0
    glb_writes: float = 0.0

    def __add__(self, other: EngineEnergy) -> EngineEnergy:
        return EngineEnergy(**{f.name: getattr(self, f.name) + getattr(other, f.name) for f in fields(self)})

    def times(self, factor: float) -> EngineEnergy:
        """The same energy, so many times."""
        return EngineEnergy(**{f.name: getattr(self, f.name) * factor for f in fields(self)})

    @property
    def total(self) -> float:
        """All components."""
        return math.fsum(getattr(self, f.name) for f in fields(self))

    @property
    def glb(self) -> float:
        """Reads and writes of the global buffers."""
        return self.glb_reads + self.glb_writes

    @property
    def pe_array(self) -> float:
        """PEs with their Acc units, without Soma and GLB."""
        return self.total - self.soma - self.glb


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineLeakage(ByComponent):
    """Static power of an engine, or its energy over a time. Units: W, or J."""

    def times(self, factor: float) -> EngineLeakage:
        """The same leakage, so many times: the energy over `factor` seconds."""
        return EngineLeakage(**{f.name: getattr(self, f.name) * factor for f in fields(self)})


@dataclass(frozen=True, slots=True, kw_only=True)
class Energy:
    """Energy of a run by engine and component.

    Units: `dynamic` in pJ; `leakage` and what is derived in J.
    """

    dynamic: Mapping[Queue, EngineEnergy]
    leakage: Mapping[Queue, EngineLeakage]

    def __add__(self, other: Energy) -> Energy:
        dynamic = {e: self.dynamic.get(e, NO_ENERGY) + other.dynamic.get(e, NO_ENERGY) for e in ENGINES}
        leakage = {
            e: EngineLeakage(
                **{
                    f.name: getattr(self.leakage.get(e, NO_LEAKAGE), f.name)
                    + getattr(other.leakage.get(e, NO_LEAKAGE), f.name)
                    for f in fields(EngineLeakage)
                }
            )
            for e in ENGINES
        }
        return Energy(dynamic=dynamic, leakage=leakage)

    @property
    def dynamic_j(self) -> float:
        """Of all operations."""
        return math.fsum(part.total for part in self.dynamic.values()) / PJ_PER_J

    @property
    def leakage_j(self) -> float:
        """Of all engines, busy or not."""
        return math.fsum(part.total for part in self.leakage.values())

    @property
    def total_j(self) -> float:
        """Dynamic energy and leakage."""
        return self.dynamic_j + self.leakage_j

    def by_engine(self) -> dict[Queue, float]:
        """Dynamic energy and leakage of each engine, J."""
        return {
            e: self.dynamic.get(e, NO_ENERGY).total / PJ_PER_J + self.leakage.get(e, NO_LEAKAGE).total for e in ENGINES
        }

    def by_component(self) -> dict[str, float]:
        """Dynamic energy of each component over all engines, and `leakage`, J."""
        parts = {
            f.name: math.fsum(getattr(part, f.name) for part in self.dynamic.values()) / PJ_PER_J
            for f in fields(EngineEnergy)
        }
        return {**parts, "leakage": self.leakage_j}


NO_ENERGY, NO_LEAKAGE = EngineEnergy(), EngineLeakage()


def work_energy(work: Work, config: H2LearnConfig, queue: Queue, table: EnergyTable | None = None) -> EngineEnergy:
    """Dynamic energy of counted work; `queue` is the engine whose PEs do it.

    A look-up costs entries * lut_read_per_entry; without LUTs the weight stands at the adder and costs no read, and a
    Backward Engine that skips nothing has no finder. A Soma step is a multiplication and two additions.
    """
    table = table or energy_table()
    finder = config.backward.skips is not Skips.NONE
    step = SOMA_MULTIPLIES * table.fp16_mul.value + SOMA_ADDS * table.fp16_add.value
    return EngineEnergy(
        adders=work.adds * table.fp16_add.value,
        multipliers=work.multiplies * table.fp16_mul.value,
        look_ups=work.look_ups * look_up_pj(config, queue, table) if work.look_ups else 0.0,
        lut_writes=work.lut_writes * table.lut_write.value,
        pe_buffers=work.macs * table.pe_buffer_per_mac.value,
        finder=work.outputs_found * table.finder_per_id.value * finder,
        soma=work.soma_steps * step,
        glb_reads=math.fsum(n * glb_pj_per_byte(b, config, table).read for b, n in work.read.items()),
        glb_writes=math.fsum(n * glb_pj_per_byte(b, config, table).write for b, n in work.written.items()),
    )


def look_up_pj(config: H2LearnConfig, engine: Queue, table: EnergyTable | None = None) -> float:
    """Energy of one look-up of an engine, 0 where it has no LUTs. Units: pJ."""
    table = table or energy_table()
    entries = config.forward.lut_entries if engine is Queue.FE else config.weight_update.lut_entries
    return entries * table.lut_read_per_entry.value if has_luts(config, engine) else 0.0


def transfer_energy(
    moved_bytes: float, buffer: Buffer, config: H2LearnConfig, *, store: bool = False, table: EnergyTable | None = None
) -> EngineEnergy:
    """What DMA spends on chip: a load writes the buffer, a store reads it; the external memory is not counted."""
    cost = glb_pj_per_byte(buffer, config, table)
    if store:
        return EngineEnergy(glb_reads=moved_bytes * cost.read)
    return EngineEnergy(glb_writes=moved_bytes * cost.write)


@dataclass(frozen=True, slots=True, kw_only=True)
class AccessCost:
    """Energy of a byte of a buffer. Units: pJ."""

    read: float
    write: float


def glb_pj_per_byte(buffer: Buffer, config: H2LearnConfig, table: EnergyTable | None = None) -> AccessCost:
    """Energy of a byte of a buffer."""
    return bank_cost(slice_bytes(buffer, config), table or energy_table())


def bank_cost(size_bytes: float, table: EnergyTable) -> AccessCost:
    """Energy of a byte of a memory, linear in the logarithm of its size between the sizes of the table.

    Smaller banks cost what 8 KiB does (narrow words), larger ones are built of 512 KiB.
    """
    reads = (table.glb_read_8k, table.glb_read_64k, table.glb_read_256k, table.glb_read_512k)
    writes = (table.glb_write_8k, table.glb_write_64k, table.glb_write_256k, table.glb_write_512k)
    return AccessCost(
        read=_interpolated(size_bytes, tuple(row.value for row in reads)),
        write=_interpolated(size_bytes, tuple(row.value for row in writes)),
    )


def slice_bytes(buffer: Buffer, config: H2LearnConfig) -> float:
    """Bytes of the memory that one access opens: a bank, of partial sums a column's part of it.

    Assumed: every column adds to its own output channel each cycle, up to 2 KB a cycle, which no single port gives.
    """
    columns = {
        Buffer.PSUM: config.forward.cols,
        Buffer.BE_PSUM: config.backward.cols,
        Buffer.WU_PSUM: config.weight_update.cols,
    }
    return config.bank_bytes(buffer) / columns.get(buffer, 1)


def leakage_w(
    config: H2LearnConfig, area: AreaTable | None = None, table: EnergyTable | None = None
) -> dict[Queue, EngineLeakage]:
    """Static power of each engine, in proportion to the area of its components.

    Source: fitted; both energies of table 3.7 less their dynamic part leave about 2.4 W.
    """
    density = (table or energy_table()).leakage.value
    chip = chip_area(config, area)
    return {
        engine: EngineLeakage(**{f.name: getattr(chip.engine(engine), f.name) * density for f in fields(EngineLeakage)})
        for engine in ENGINES
    }


def run_energy(
    dynamic: Mapping[Queue, EngineEnergy], cycles: float, config: H2LearnConfig, table: EnergyTable | None = None
) -> Energy:
    """Energy of a run of so many cycles: all engines leak all the time."""
    seconds = cycles / (config.clock_ghz * 1e9)
    leakage = {engine: power.times(seconds) for engine, power in leakage_w(config, table=table).items()}
    return Energy(dynamic=dict(dynamic), leakage=leakage)


def _interpolated(size: float, costs: tuple[float, ...]) -> float:
    x = math.log2(min(max(size / KIB, BANK_CLASSES[0]), BANK_CLASSES[-1]))
    points = [math.log2(kib) for kib in BANK_CLASSES]
    for left, right, low, high in zip(points, points[1:], costs, costs[1:], strict=False):
        if x <= right:
            return low + (high - low) * (x - left) / (right - left)
    return costs[-1]
