"""What one change of the configuration would buy: the same program, simulated again."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import cast

from hwmodel.area import chip_area
from hwmodel.config import (
    DmaChannels,
    EncodingPath,
    H2LearnConfig,
    Halo,
    MembraneWrite,
    Skips,
    Synchronise,
    UpdateMemory,
    config_from_mapping,
)
from hwmodel.errors import CompileError, Loc
from hwmodel.isa import Queue
from hwmodel.program import Program
from hwmodel.timing.sampled_tiles import Density, SampledTiles
from hwmodel.timing.tiles import DenseTiles, TileSource
from runtime.timing.energy import phase_energy
from runtime.timing.simulate import KeptByLayer, simulate
from runtime.timing.step import launches
from spikec.report.analysis import Analysis

Values = Mapping[str, str | int | float]


@dataclass(frozen=True, slots=True)
class Masks:
    """What is known of the zeros of a backward pass: densities by layer number, None for dense.

    The membrane potentials inside the window are those whose spike gradient is wanted, equation 3.1.
    """

    densities: Mapping[int, Density] | None
    seed: int = 0
    _sources: dict[object, TileSource] = field(init=False, default_factory=dict, repr=False, compare=False)

    def tiles(self, config: H2LearnConfig) -> TileSource:
        """The tiles on a configuration; those of equal Backward Engines are drawn once."""
        if self.densities is None:
            return DenseTiles(config)
        key = (config.backward, config.tile)
        return self._sources.setdefault(key, SampledTiles(config, self.densities, self.seed))

    @property
    def kept(self) -> KeptByLayer:
        """The part of the membrane potentials that travels."""
        return KeptByLayer({number: density.outputs for number, density in (self.densities or {}).items()})


@dataclass(frozen=True, slots=True, kw_only=True)
class WhatIf:
    """One change, and its ratios to the program as it is: of time, energy and area, below 1 where it is less."""

    changes: Values
    now: Values
    time_ratio: float
    energy_ratio: float
    area_ratio: float

    @property
    def speedup(self) -> float:
        """How many times faster."""
        return 1 / self.time_ratio

    @property
    def text(self) -> str:
        """The fields with their new values."""
        return ", ".join(f"{path} = {_shown(value)}" for path, value in self.changes.items())


def what_if(
    base: Analysis, masks: Masks, progress: Callable[[int, int], None] = lambda _done, _all: None
) -> list[WhatIf]:
    """Every change under which the instructions stay as they are, the fastest first.

    What the compiler would do otherwise, with other buffers or another array, is not asked here.
    """
    program = base.program
    candidates = list(changes(program, is_sparse=masks.densities is not None))
    found = []
    for done, values in enumerate(candidates):
        progress(done, len(candidates))
        config = changed(program.config, values)
        if config is not None:
            found.append(_compared(base, replace(program, config=config), values, masks))
    return sorted(found, key=lambda row: (row.time_ratio, row.text))


def changes(program: Program, *, is_sparse: bool) -> Iterator[Values]:
    """Fields that the compiler does not look at, and the values that they do not have yet."""
    config = program.config
    yield {"memory.bytes_per_cycle": 2 * config.memory.bytes_per_cycle}
    options: list[tuple[str, tuple[str | int, ...]]] = [
        ("timing.dma_channels", tuple(DmaChannels)),
        ("timing.spike_halo", tuple(Halo)),
        ("forward.program_cycles", (0,)),
    ]
    uses_backward = program.training is not None or any(layer.engine is Queue.BE for layer in program.layers)
    options += [("backward.pipe", (0,)), ("timing.gradient_halo", tuple(Halo))] if uses_backward else []
    if program.training is not None:
        options += [
            ("timing.update_memory", tuple(UpdateMemory)),
            ("timing.encoding", tuple(EncodingPath)),
            ("weight_update.program_cycles", (0,)),
        ]
    if program.training is not None and is_sparse:
        options += [
            ("timing.m_write", tuple(MembraneWrite)),
            ("backward.synchronise", tuple(Synchronise)),
            ("backward.skips", tuple(Skips)),
        ]
    for path, values in options:
        yield from ({path: value} for value in values if value != value_of(config, path))
    if program.training is not None and is_sparse and not config.backward.run_ahead:
        yield {"backward.run_ahead": 1, "backward.pe_psum_bytes": 2 * config.backward.pe_psum_bytes}


def changed(config: H2LearnConfig, values: Values) -> H2LearnConfig | None:
    """The configuration with other values, None where they do not fit the rest."""
    table = config.as_mapping()
    for path, value in values.items():
        part, _, name = path.partition(".")
        table[part] = {**cast(Mapping[str, object], table[part]), name: value}
    try:
        return config_from_mapping(table, Loc(", ".join(values)))
    except CompileError:
        return None


def value_of(config: H2LearnConfig, path: str) -> str | int | float:
    """The value of a field by its path."""
    part, _, name = path.partition(".")
    return cast(str | int | float, getattr(getattr(config, part), name))


def _compared(base: Analysis, program: Program, values: Values, masks: Masks) -> WhatIf:
    counts = launches(program)
    tiles, kept = masks.tiles(program.config), masks.kept
    cycles, joules = [], []
    for phase in program.phases:
        timing = simulate(program, phase, tiles=tiles, kept=kept)
        cycles.append(counts[phase] * timing.elapsed_cycles)
        joules.append(counts[phase] * phase_energy(timing, program.config).total_j)
    return WhatIf(
        changes=values,
        now={path: value_of(base.config, path) for path in values},
        time_ratio=math.fsum(cycles) / base.cycles,
        energy_ratio=base.machines * math.fsum(joules) / base.energy_j,
        area_ratio=chip_area(program.config).total / base.area.total,
    )


def _shown(value: str | int | float) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
