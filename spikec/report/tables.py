"""The tables of a report, as text that the terminal and the page share."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields

from hwmodel.area import ENGINES, ByComponent, EngineArea
from hwmodel.components import Component, area_table, energy_table
from hwmodel.config import H2LearnConfig
from hwmodel.energy import PJ_PER_J, EngineEnergy
from hwmodel.program import Phase
from spikec.report.analysis import Analysis, LayerReport, PhaseReport, summed
from spikec.report.whatif import WhatIf

NAMES = {
    "fe": "Forward Engine (fe)",
    "be": "Backward Engine (be)",
    "be.encoding": "encoding layer (be.encoding)",
    "wue": "Weight Update Engine (wue)",
    "host": "host",
    "mem0": "mem0",
    "mem1": "mem1",
    "mem2": "mem2",
    "mem_update": "mem_update",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """Rows of text; columns of numbers stand to the right."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    texts: frozenset[int] = frozenset({0})  # columns that hold words


def headline(analysis: Analysis, densities: str) -> list[tuple[str, str]]:
    """The numbers that a reader wants first."""
    program, main = analysis.program, analysis.main
    resource, cycles = max(main.critical_cycles.items(), key=lambda item: item[1], default=("", 0.0))
    rows = [
        ("throughput", f"{analysis.samples_per_s:,.1f} samples/s"),
        ("time of a sample", quantity(1 / analysis.samples_per_s, "s")),
        ("on-chip energy of a sample", quantity(analysis.joules_per_sample, "J")),
        ("mean on-chip power", quantity(analysis.energy_j / analysis.seconds, "W")),
        ("area of a chip", f"{analysis.area.total:,.1f} mm2"),
        (f"critical path, {main.phase}", f"{resource}, {percent(cycles, main.elapsed_cycles)}"),
        ("time steps, sub-batch", f"{program.timesteps}, {program.batch}"),
        ("configuration, clock", f"{analysis.config.name}, {analysis.config.clock_ghz:g} GHz"),
    ]
    if program.training is not None:
        group = f"{program.training.batch_group} on {analysis.machines} machine{'s' * (analysis.machines > 1)}"
        rows += [("sub-batches an update", group), ("densities", densities)]
    return rows


def phase_table(analysis: Analysis) -> Table:
    """The launches between two updates."""
    rows = []
    for phase in analysis.phases:
        total = phase.elapsed_cycles * phase.launches
        resource = max(phase.critical_cycles.items(), key=lambda item: item[1], default=("", 0.0))
        rows.append(
            (
                str(phase.phase),
                f"{phase.launches}",
                count(phase.elapsed_cycles),
                percent(total, analysis.cycles),
                f"{resource[0]}, {percent(resource[1], phase.elapsed_cycles)}",
                quantity(phase.energy.total_j, "J"),
            )
        )
    columns = ("phase", "launches", "cycles of one", "share", "longest on critical path", "energy of one")
    return Table(title="launches", columns=columns, rows=tuple(rows), texts=frozenset({0, 4}))


def layer_table(phase: PhaseReport) -> Table:
    """What each layer costs in a phase."""
    rows = []
    for layer in phase.layers:
        critical = math.fsum(layer.critical_cycles.values())
        on_path = max(layer.critical_cycles, key=lambda name: layer.critical_cycles[name], default="")
        rows.append(
            (
                layer.name,
                count(critical),
                percent(critical, phase.elapsed_cycles),
                on_path,
                binding(layer),
                quantity(math.fsum(layer.memory_bytes.values()), "B"),
                quantity(math.fsum(layer.dynamic_j.values()), "J"),
            )
        )
    columns = ("layer", "cycles", "share", "most on", "busiest, over next", "off-chip", "dynamic")
    return Table(
        title=f"layers on the critical path, {phase.phase}",
        columns=columns,
        rows=tuple(rows),
        texts=frozenset({0, 3, 4}),
    )


def wait_table(phase: PhaseReport, most: int = 3) -> Table:
    """The longest waits of each layer's instructions: which channel for whom."""
    rows = []
    for layer in phase.layers:
        longest = sorted(layer.stall_cycles.items(), key=lambda item: -item[1])[:most]
        waits = [f"{stall.channel} for {stall.cause}, {count(cycles)}" for stall, cycles in longest]
        rows.append((layer.name, *waits, *[""] * (most - len(waits))))
    columns = ("layer", "longest wait, cycles", *["next"] * (most - 1))
    texts = frozenset(range(most + 1))
    return Table(title=f"waits by layer, {phase.phase}", columns=columns, rows=tuple(rows), texts=texts)


def busy_table(phase: PhaseReport) -> Table:
    """Cycles that each engine and memory is busy for each layer, and the layer's span."""
    resources = sorted({name for layer in phase.layers for name in layer.busy_cycles}, key=order)
    rows = [
        (layer.name, count(layer.elapsed_cycles), *(count(layer.busy_cycles.get(name, 0.0)) for name in resources))
        for layer in phase.layers
    ]
    totals = summed(layer.busy_cycles for layer in phase.layers)
    rows.append(("all", count(phase.elapsed_cycles), *(count(totals[name]) for name in resources)))
    columns = ("layer", "first to last", *resources)
    return Table(title=f"busy cycles, {phase.phase}", columns=columns, rows=tuple(rows))


def channel_table(phase: PhaseReport) -> Table:
    """What each channel does with the phase's time, and whom it waits for longest."""
    rows = []
    for channel in phase.channels:
        causes = {s.cause: n for s, n in phase.stall_cycles.items() if s.channel == channel.name and not s.contended}
        cause = max(causes, key=lambda name: causes[name], default="")
        parts = (channel.busy, channel.blocked, channel.contended, channel.done)
        name = f"{channel.name} ({channel.memory})" if channel.memory else channel.name
        longest = f"{cause}, {percent(causes[cause], phase.elapsed_cycles)}" if cause else ""
        rows.append((name, *(percent(part, phase.elapsed_cycles) for part in parts), longest))
    columns = ("channel", "busy", "blocked", "memory taken", "done", "blocked longest by")
    return Table(title=f"channels, {phase.phase}", columns=columns, rows=tuple(rows), texts=frozenset({0, 5}))


def buffer_table(phase: PhaseReport) -> Table:
    """Bytes through each buffer: from or to memory, and between buffer and engine."""
    moved = summed(layer.buffer_bytes for layer in phase.layers)
    used = summed(layer.on_chip_bytes for layer in phase.layers)
    names = sorted({*moved, *used}, key=lambda name: -(moved.get(name, 0.0) + used.get(name, 0.0)))
    rows = [(name, quantity(moved.get(name, 0.0), "B"), quantity(used.get(name, 0.0), "B")) for name in names]
    columns = ("buffer", "from and to memory", "between buffer and engine")
    return Table(title=f"bytes by buffer, {phase.phase}", columns=columns, rows=tuple(rows))


def energy_parts(analysis: Analysis) -> dict[str, dict[str, float]]:
    """Energy of a sample by component and engine, J."""
    parts: dict[str, dict[str, float]] = {}
    for phase in analysis.phases:
        factor = phase.launches * analysis.machines / analysis.samples
        for engine in ENGINES:
            spent, leaked = phase.energy.dynamic.get(engine), phase.energy.leakage.get(engine)
            values = {} if spent is None else {f.name: getattr(spent, f.name) / PJ_PER_J for f in fields(EngineEnergy)}
            values["leakage"] = leaked.total if leaked is not None else 0.0
            for name, joules in values.items():
                row = parts.setdefault(name, {})
                row[str(engine)] = row.get(str(engine), 0.0) + joules * factor
    return _nonzero(parts)


def area_parts(analysis: Analysis) -> dict[str, dict[str, float]]:
    """Area of a chip by component and engine, mm2."""
    engines: dict[str, ByComponent] = {str(engine): analysis.area.engine(engine) for engine in ENGINES}
    return _nonzero(
        {f.name: {name: getattr(part, f.name) for name, part in engines.items()} for f in fields(EngineArea)}
    )


def parts_table(title: str, parts: Mapping[str, Mapping[str, float]], unit: str) -> Table:
    """Components by engine, the largest first."""
    total = math.fsum(value for row in parts.values() for value in row.values())
    engines = [str(engine) for engine in ENGINES]
    rows = []
    for name, row in parts.items():
        whole = math.fsum(row.values())
        by_engine = (shown(row.get(engine, 0.0), unit) for engine in engines)
        rows.append((name.replace("_", " "), *by_engine, shown(whole, unit), percent(whole, total)))
    columns = ("component", *engines, "all", "share")
    return Table(title=title, columns=columns, rows=tuple(rows))


def roof_table(phase: PhaseReport) -> Table:
    """Attained and possible operations."""
    rows = [
        (
            str(roof.engine),
            f"{roof.attained_ops_per_s / 1e12:.3f}",
            f"{roof.roof_ops_per_s / 1e12:.3f}",
            f"{roof.peak_ops_per_s / 1e12:.3f}",
            percent(roof.attained_ops_per_s, roof.roof_ops_per_s),
            f"{roof.intensity_ops_per_byte:,.1f}" if roof.memory else "",
            roof.memory,
        )
        for roof in phase.roofs
    ]
    columns = ("engine", "attained, Tops/s", "roof", "peak", "of roof", "ops per byte", "of")
    return Table(title=f"roofline, {phase.phase}", columns=columns, rows=tuple(rows), texts=frozenset({0, 6}))


def whatif_table(rows: Sequence[WhatIf]) -> Table:
    """One change each, the fastest first."""
    found = tuple(
        (
            row.text,
            ", ".join(str(value) for value in row.now.values()),
            f"{row.time_ratio:.4f}",
            f"{row.speedup:.4f}x",
            f"{row.energy_ratio:.4f}",
            f"{row.area_ratio:.4f}",
        )
        for row in rows
    )
    columns = ("change", "now", "time", "speedup", "energy", "area")
    return Table(title="what if: ratios to the program as it is", columns=columns, rows=found, texts=frozenset({0, 1}))


def timing_table(config: H2LearnConfig) -> Table:
    """What print leaves open about time, as configured."""
    rows = tuple((f.name, str(getattr(config.timing, f.name))) for f in fields(config.timing))
    return Table(title="timing", columns=("field", "value"), rows=rows, texts=frozenset({0, 1}))


def source_table() -> Table:
    """Every constant of area and energy, and where it comes from."""
    rows = tuple(
        (f"{kind} {f.name}", f"{part.value:g}", part.unit, str(part.kind), part.source)
        for kind, table in (("area", area_table()), ("energy", energy_table()))
        for f in fields(table)
        if isinstance(part := getattr(table, f.name), Component)
    )
    columns = ("constant", "value", "unit", "kind", "source")
    return Table(title="constants", columns=columns, rows=rows, texts=frozenset({0, 2, 3, 4}))


def phases_shown(analysis: Analysis) -> list[PhaseReport]:
    """Those that are launched, the steady state first."""
    return sorted((p for p in analysis.phases if p.launches), key=lambda p: (p is not analysis.main, _PLACE[p.phase]))


_PLACE = {phase: place for place, phase in enumerate(Phase)}


def binding(layer: LayerReport) -> str:
    """The busiest engine or memory of a layer, and how far ahead it is."""
    if not layer.bound_by:
        return ""
    return f"{layer.bound_by}, {layer.margin:.2f}x" if math.isfinite(layer.margin) else layer.bound_by


def label(resource: str) -> str:
    """A resource in words."""
    return NAMES.get(resource, resource)


def order(resource: str) -> tuple[int, str]:
    """Engines before memories."""
    known = list(NAMES)
    return (known.index(resource) if resource in known else len(known), resource)


def count(value: float) -> str:
    """A number of cycles."""
    return f"{value:,.0f}"


def percent(part: float, whole: float) -> str:
    """A share."""
    return f"{100 * part / whole:.1f} %" if whole else "0.0 %"


def shown(value: float, unit: str) -> str:
    """A number of a table; areas keep their unit in the title."""
    return f"{value:,.2f}" if unit == "mm2" else quantity(value, unit)


def quantity(value: float, unit: str) -> str:
    """A number with a prefix of thousands."""
    if value == 0:
        return f"0 {unit}"
    power = max(min(math.floor(math.log10(abs(value)) / 3), 4), -4)
    return f"{value / 1000**power:,.4g} {_PREFIXES[power]}{unit}"


_PREFIXES = {-4: "p", -3: "n", -2: "u", -1: "m", 0: "", 1: "k", 2: "M", 3: "G", 4: "T"}


def _nonzero(parts: Mapping[str, Mapping[str, float]]) -> dict[str, dict[str, float]]:
    """Components that there are, the largest first."""
    sums = {name: math.fsum(row.values()) for name, row in parts.items()}
    return {name: dict(parts[name]) for name in sorted(sums, key=lambda name: -sums[name]) if sums[name]}
