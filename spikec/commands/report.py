"""`spikec report`: where time, energy and area go, as tables, a page and a trace."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table as RichTable

from spikec.commands.talk import print_json, print_table, progress_bar
from spikec.report.analysis import Analysis, analyse
from spikec.report.as_json import report_json
from spikec.report.files import check_outputs, write_files
from spikec.report.source import Source, load_subject
from spikec.report.tables import (
    Table,
    area_parts,
    channel_table,
    energy_parts,
    headline,
    layer_table,
    parts_table,
    phase_table,
    phases_shown,
    roof_table,
    whatif_table,
)
from spikec.report.whatif import WhatIf, what_if


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportRequest:
    """The command's arguments."""

    source: Source
    html: Path | None
    trace: Path | None
    changes: bool  # simulate what one change would buy


def run_report(request: ReportRequest, *, as_json: bool) -> int:
    """Simulate, add up, print and write; the exit code.

    Raises: CompileError for a program or model that cannot be loaded, options that do not fit it, and files that cannot
    be written, of which none is left then.
    """
    check_outputs(request.html, request.trace)
    with progress_bar("importing") as bar:
        subject = load_subject(request.source, bar.stage)
        bar.stage("simulating")
        masks = subject.masks
        analysis = analyse(subject.program, masks.tiles(subject.program.config), masks.kept)
        bar.stage("simulating one change after the other")
        changes = what_if(analysis, masks, bar.samples) if request.changes else []
        bar.stage("writing")
        write_files(analysis, changes, subject.densities, html=request.html, trace=request.trace)
    if as_json:
        files = {"html": str(request.html or "") or None, "trace": str(request.trace or "") or None}
        print_json({**report_json(analysis, changes, subject.densities), **files})
        return 0
    _show(request, analysis, changes, subject.densities)
    return 0


def _show(request: ReportRequest, analysis: Analysis, changes: Sequence[WhatIf], densities: str) -> None:
    shown = phases_shown(analysis)
    print_table(f"{request.source.name} on {analysis.config.name}", headline(analysis, densities))
    tables = [phase_table(analysis), layer_table(shown[0]), channel_table(shown[0])]
    tables += [parts_table("energy of a sample", energy_parts(analysis), "J")]
    tables += [parts_table("area, mm2", area_parts(analysis), "mm2"), roof_table(shown[0])]
    tables += [whatif_table(changes)] if changes else []
    for table in tables:
        _print(table)


def _print(table: Table) -> None:
    """Without frames, so that 80 columns are enough."""
    found = RichTable(
        title=table.title, title_justify="left", box=SIMPLE_HEAD, show_edge=False, pad_edge=False, collapse_padding=True
    )
    for place, column in enumerate(table.columns):
        justify: Literal["left", "right"] = "left" if place in table.texts else "right"
        found.add_column(column, justify=justify, overflow="fold")
    for row in table.rows:
        found.add_row(*row)
    console = Console(markup=False, highlight=False, emoji=False)
    console.print()
    console.print(found)
