"""A report as one self-contained HTML page."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from importlib import resources

from hwmodel.area import ENGINES
from hwmodel.errors import CompileError, Loc
from hwmodel.program import Phase
from spikec.report.analysis import Analysis, PhaseReport
from spikec.report.charts import Bar, Chart, bar_chart, roof_chart
from spikec.report.tables import (
    NAMES,
    Table,
    area_parts,
    buffer_table,
    busy_table,
    channel_table,
    count,
    energy_parts,
    headline,
    label,
    layer_table,
    parts_table,
    percent,
    phase_table,
    phases_shown,
    quantity,
    roof_table,
    source_table,
    timing_table,
    wait_table,
    whatif_table,
)
from spikec.report.whatif import WhatIf

_MOST_ROWS = 40  # of a bar chart
_ENGINES = {str(engine): label(str(engine)) for engine in ENGINES}
_WAITING = {
    "busy": "busy",
    "blocked": "blocked by another channel",
    "contended": "waits for its memory",
    "done": "done",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Section:
    """A piece of the page; what is in `details` is folded at first."""

    title: str
    lead: str
    charts: Sequence[Chart] = ()
    tables: Sequence[Table] = ()
    details: Sequence[Table] = ()


def render_page(analysis: Analysis, changes: Sequence[WhatIf], densities: str) -> str:
    """The page's text.

    Raises: CompileError where jinja2 is missing.
    """
    try:
        from jinja2 import Environment, StrictUndefined
    except ImportError as fault:
        raise CompileError("jinja2 is missing", Loc("--html"), hint="pip install 'spikec[report]'") from fault
    template = (resources.files("spikec.report") / "page.html.jinja").read_text(encoding="utf-8")
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    return environment.from_string(template).render(
        title=f"{analysis.program.name}, {'training' if analysis.program.training is not None else 'inference'}",
        headline=headline(analysis, densities),
        sections=tuple(_sections(analysis, changes)),
    )


def _sections(analysis: Analysis, changes: Sequence[WhatIf]) -> list[Section]:
    shown = phases_shown(analysis)
    sections = [_time(analysis, shown), _stalls(shown), _energy(analysis), _area(analysis), _roofline(shown)]
    if changes:
        sections.append(_what_if(changes))
    return [*sections, _bytes(shown), _assumptions(analysis)]


def _time(analysis: Analysis, shown: Sequence[PhaseReport]) -> Section:
    main = analysis.main
    bars = [
        Bar(
            name=layer.name,
            parts=layer.critical_cycles,
            text=_layer_text(math.fsum(layer.critical_cycles.values()), layer.bound_by, layer.margin),
        )
        for layer in sorted(main.layers, key=lambda layer: -math.fsum(layer.critical_cycles.values()))[:_MOST_ROWS]
    ]
    caption = (
        f"Critical path of one {main.phase} launch, {count(main.elapsed_cycles)} cycles, by layer and by what ran. "
        "Behind each bar: its cycles, what is busy longest for the layer, and how many times longer than the next."
    )
    chart = bar_chart("Time by layer", caption, bars, NAMES, "cycles")
    return Section(
        title="Time",
        lead=_time_lead(analysis),
        charts=[chart],
        tables=[phase_table(analysis), layer_table(main)],
        details=[layer_table(phase) for phase in shown[1:]] + [busy_table(phase) for phase in shown],
    )


def _layer_text(cycles: float, bound_by: str, margin: float) -> str:
    if not bound_by:
        return count(cycles)
    return f"{count(cycles)}; {bound_by}" + (f" {margin:.2f}x" if math.isfinite(margin) else "")


def _time_lead(analysis: Analysis) -> str:
    common = (
        "The critical path is the chain of instructions and transfers that fills the elapsed time without a gap; what "
        "is not on it runs in its shadow."
    )
    if analysis.program.training is None:
        return f"One sub-batch of {analysis.program.batch} samples. {common}"
    group = next(phase.launches for phase in analysis.phases if phase.phase is Phase.OVERLAP) + 1
    return (
        f"A batch group is one forward launch, {group - 1} overlap launches (the forward pass of the next sub-batch "
        "beside the backward pass of this one), one backward launch and one update: "
        f"{count(analysis.cycles)} cycles for {group} sub-batches of {analysis.program.batch} samples. In an overlap "
        f"mem0 belongs to the forward pass, mem1 to the backward pass, mem2 to the weight gradients. {common}"
    )


def _stalls(shown: Sequence[PhaseReport]) -> Section:
    main = shown[0]
    bars = [
        Bar(
            name=f"{channel.name} ({channel.memory})" if channel.memory else channel.name,
            parts={name: getattr(channel, name) for name in _WAITING},
            text=f"{percent(channel.busy, main.elapsed_cycles)} busy",
        )
        for channel in main.channels
    ]
    caption = (
        f"What each channel of one {main.phase} launch does with its time: engines run instructions, the dma channels "
        "transfers, in order. Blocked: what it needs is not done in another channel. Done: behind its last instruction."
    )
    chart = bar_chart("Stalls by channel", caption, bars, _WAITING, "cycles")
    details = [wait_table(main), *(make(phase) for phase in shown[1:] for make in (channel_table, wait_table))]
    lead = "Busy, blocked, waiting for the memory and done add up to the elapsed time in every channel."
    return Section(title="Stalls", lead=lead, charts=[chart], tables=[channel_table(main)], details=details)


def _energy(analysis: Analysis) -> Section:
    parts = energy_parts(analysis)
    bars = [_part_bar(name, row, analysis.joules_per_sample, "J") for name, row in parts.items()]
    caption = "Energy of one sample by component, J; fill, drain and update included. External memory is not counted."
    return Section(
        title="Energy",
        lead=f"{quantity(analysis.joules_per_sample, 'J')} a sample. All engines leak all the time, busy or not.",
        charts=[bar_chart("Energy by component", caption, bars, _ENGINES, "J")],
        tables=[parts_table("energy of a sample", parts, "J")],
    )


def _area(analysis: Analysis) -> Section:
    parts = area_parts(analysis)
    bars = [_part_bar(name, row, analysis.area.total, "mm2") for name, row in parts.items()]
    caption = "Area of one chip by component, mm2; glb are the global buffers."
    return Section(
        title="Area",
        lead=f"{analysis.area.total:,.1f} mm2, without external memories.",
        charts=[bar_chart("Area by component", caption, bars, _ENGINES, "mm2")],
        tables=[parts_table("area, mm2", parts, "mm2")],
    )


def _part_bar(name: str, row: dict[str, float], whole: float, unit: str) -> Bar:
    total = math.fsum(row.values())
    text = f"{quantity(total, unit) if unit == 'J' else f'{total:,.2f} mm2'}, {percent(total, whole)}"
    return Bar(name=name.replace("_", " "), parts=row, text=text)


def _roofline(shown: Sequence[PhaseReport]) -> Section:
    main = shown[0]
    caption = (
        f"One {main.phase} launch. Lines: min(peak of the array, intensity x bandwidth of one memory). Points: "
        "operations over elapsed time; the per cent are of the roof above the point."
    )
    lead = (
        "Operations are FP16 additions and multiplications that are really done: zeros that are skipped do not count. "
        "Each engine is measured against the one memory that takes it longest; that engines share it does not count."
    )
    return Section(
        title="Roofline",
        lead=lead,
        charts=[roof_chart("Roofline", caption, main.roofs)],
        tables=[roof_table(main)],
        details=[roof_table(phase) for phase in shown[1:]],
    )


def _what_if(changes: Sequence[WhatIf]) -> Section:
    lead = (
        "The same instructions, simulated with one field of the configuration changed. Ratios to the program as it is, "
        "of the time and the energy of a sample and of the area; below 1 is less. What the compiler would do "
        "otherwise, with other buffers or another array, is not in it."
    )
    return Section(title="What one change would buy", lead=lead, tables=[whatif_table(changes)])


def _bytes(shown: Sequence[PhaseReport]) -> Section:
    main = shown[0]
    rows = []
    for memory in sorted({name for layer in main.layers for name in layer.memory_bytes}):
        moved = math.fsum(layer.memory_bytes.get(memory, 0.0) for layer in main.layers)
        busy = math.fsum(channel.busy for channel in main.channels if channel.memory == memory)
        rows.append((memory, quantity(moved, "B"), percent(busy, main.elapsed_cycles)))
    table = Table(title=f"bytes by memory, {main.phase}", columns=("memory", "moved", "busy"), rows=tuple(rows))
    return Section(
        title="Bytes",
        lead=f"Of one {main.phase} launch: through each external memory, and through each buffer on chip.",
        tables=[table, buffer_table(main)],
        details=[buffer_table(phase) for phase in shown[1:]],
    )


def _assumptions(analysis: Analysis) -> Section:
    rows = [
        (f"{part}.{f.name}", str(getattr(getattr(analysis.config, part), f.name)))
        for part in ("memory", "tile", "forward", "backward", "weight_update")
        for f in fields(getattr(analysis.config, part))
        if f.name != "buffers_kb"
    ]
    structure = Table(title="structure", columns=("field", "value"), rows=tuple(rows), texts=frozenset({0, 1}))
    return Section(
        title="Assumptions",
        lead=(
            "All of the timing table is assumed, where chapter 3 is silent. Constants are from the literature, fitted "
            "to a published number, or assumed, as the table says."
        ),
        tables=[timing_table(analysis.config)],
        details=[structure, source_table()],
    )
