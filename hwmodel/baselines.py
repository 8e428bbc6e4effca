"""Designs that H2Learn is compared with: other partitions of its LUTs, other skips, a SpinalFlow-like engine."""

from __future__ import annotations

from dataclasses import dataclass, replace

from hwmodel.area import MIB, UM2_PER_MM2
from hwmodel.components import AreaTable, EnergyTable, SpinalFlowTable, area_table, energy_table, spinalflow_table
from hwmodel.config import KIB, H2LearnConfig, Skips
from hwmodel.energy import bank_cost
from hwmodel.isa import Queue

FORWARD_PARTITIONS = (1, 2, 3, 5, 9)  # sub-LUTs a PE, figure 3.10
UPDATE_PARTITIONS = (1, 2, 4, 8)


def without_luts(config: H2LearnConfig, engine: Queue) -> H2LearnConfig:
    """The baseline of section 3.3.1: an adder for each tap and lane, a register for each tap's weight or gradient."""
    return with_partition(config, engine, _taps(config, engine))


def with_partition(config: H2LearnConfig, engine: Queue, sub_luts: int) -> H2LearnConfig:
    """A PE's window over so many sub-LUTs of 2**ceil(taps / sub_luts) entries; one tap a sub-LUT has no programming.

    Raises: ValueError for an engine without LUTs, or more sub-LUTs than taps.
    """
    taps = _taps(config, engine)
    if not 1 <= sub_luts <= taps:
        raise ValueError(f"{sub_luts} sub-LUTs, a PE of {engine} has {taps} taps")
    entries = 1 << -(-taps // sub_luts)
    part = config.forward if engine is Queue.FE else config.weight_update
    cycles = 0 if sub_luts == taps else part.program_cycles
    if engine is Queue.FE:
        forward = replace(config.forward, sub_luts=sub_luts, lut_entries=entries, program_cycles=cycles)
        return replace(config, forward=forward)
    update = replace(config.weight_update, sub_luts=sub_luts, lut_entries=entries, program_cycles=cycles)
    return replace(config, weight_update=update)


def with_skips(config: H2LearnConfig, skips: Skips) -> H2LearnConfig:
    """The Backward Engine with the zeros that it skips; with none it has no finders, section 3.3.1."""
    return replace(config, backward=replace(config.backward, skips=skips))


def _taps(config: H2LearnConfig, engine: Queue) -> int:
    match engine:
        case Queue.FE:
            return config.forward.taps_per_pe
        case Queue.WUE:
            return config.weight_update.window
    raise ValueError(f"{engine} has no LUTs")


@dataclass(frozen=True, slots=True, kw_only=True)
class ConvFacts:
    """A convolution: what its cost on another design depends on."""

    batch: int
    c_in: int
    c_out: int
    out_h: int
    out_w: int
    kernel_h: int
    kernel_w: int

    @property
    def macs(self) -> int:
        """Pairs of input and output at one step."""
        outputs = self.batch * self.out_h * self.out_w * self.c_out
        return outputs * self.c_in * self.kernel_h * self.kernel_w


@dataclass(frozen=True, slots=True, kw_only=True)
class SpinalFlow:
    """A Forward Engine whose PEs are output channels and whose spikes are broadcast one a cycle.

    Units: clock in GHz.
    Source: Narayanan et al., ISCA 2020; the rows of its table say what of it was checked.
    """

    pes: int
    clock_ghz: float
    weight_bytes: int
    filter_buffer_bytes: int
    filter_banks: int

    @classmethod
    def of(cls, table: SpinalFlowTable | None = None) -> SpinalFlow:
        """The design of a table of components."""
        table = table or spinalflow_table()
        return cls(
            pes=int(table.pes.value),
            clock_ghz=table.clock.value,
            weight_bytes=int(table.weight_bytes.value),
            filter_buffer_bytes=int(table.filter_buffer.value * KIB),
            filter_banks=int(table.filter_banks.value),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class SpinalFlowLayer:
    """A layer on such an engine: `cycles` of its clock, area and energy of its adders and weights alone."""

    cycles: float
    adds: float
    weight_bytes_read: float
    on_chip_weight_bytes: int
    fits: bool
    seconds: float
    area_mm2: float
    energy_pj: float


def spinalflow_layer(
    layer: ConvFacts,
    design: SpinalFlow,
    spike_rate: float,
    timesteps: int,
    area: AreaTable | None = None,
    energy: EnergyTable | None = None,
) -> SpinalFlowLayer:
    """Closed form: each spike of a receptive field takes a cycle for each group of output channels.

    cycles = batch * out_h * out_w * ceil(Cout / PEs) * k^2 * Cin * rate * T; a cycle reads a weight for each PE.
    The weights of a group stay on chip, k^2 * Cin * PEs of them; area and energy are of the tables that H2Learn has.

    Raises: ValueError for a spike rate outside [0, 1].
    """
    if not 0 <= spike_rate <= 1:
        raise ValueError(f"the spike rate is {spike_rate}, not inside [0, 1]")
    area, energy = area or area_table(), energy or energy_table()
    taps = layer.kernel_h * layer.kernel_w * layer.c_in
    spikes = layer.batch * layer.out_h * layer.out_w * taps * spike_rate * timesteps
    cycles = spikes * -(-layer.c_out // design.pes)
    on_chip = taps * design.pes * design.weight_bytes
    read = cycles * design.pes * design.weight_bytes
    adds = spikes * layer.c_out
    return SpinalFlowLayer(
        cycles=cycles,
        adds=adds,
        weight_bytes_read=read,
        on_chip_weight_bytes=on_chip,
        fits=on_chip <= design.filter_buffer_bytes,
        seconds=cycles / (design.clock_ghz * 1e9),
        area_mm2=design.pes * area.fp16_add.value / UM2_PER_MM2 + on_chip / MIB * area.glb.value,
        energy_pj=adds * energy.fp16_add.value + read * bank_cost(on_chip / design.filter_banks, energy).read,
    )
