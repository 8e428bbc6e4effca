"""`spikec report`: where time, energy and area go, as tables, a page and a trace."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table as RichTable

from hwmodel.errors import CompileError, Loc
from runtime.timing.trace import write_trace, written_beside
from spikec.commands.talk import print_json, print_table, progress_bar
from spikec.report.analysis import Analysis, analyse
from spikec.report.as_json import report_json
from spikec.report.page import render_page
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

HTML, TRACE = ".html", ".json"


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
    _check_outputs(request)
    with progress_bar("importing") as bar:
        subject = load_subject(request.source, bar.stage)
        bar.stage("simulating")
        masks = subject.masks
        analysis = analyse(subject.program, masks.tiles(subject.program.config), masks.kept)
        bar.stage("simulating one change after the other")
        changes = what_if(analysis, masks, bar.samples) if request.changes else []
        bar.stage("writing")
        _write(request, analysis, changes, subject.densities)
    if as_json:
        files = {"html": str(request.html or "") or None, "trace": str(request.trace or "") or None}
        print_json({**report_json(analysis, changes, subject.densities), **files})
        return 0
    _show(request, analysis, changes, subject.densities)
    return 0


def _check_outputs(request: ReportRequest) -> None:
    """Refuse what can be told before the model is compiled."""
    for option, path, suffix in (("--html", request.html, HTML), ("--trace", request.trace, TRACE)):
        if path is None:
            continue
        loc = Loc(str(path))
        if path.suffix != suffix:
            raise CompileError(f"the file of {option} must end in {suffix}", loc, hint=f"for example report{suffix}")
        if path.is_dir():
            raise CompileError("is a folder, not a file", loc, hint="name a file inside it")
        if not path.parent.is_dir():
            raise CompileError(f"the folder {path.parent} does not exist", loc, hint="create it first")
        if not os.access(path.parent, os.W_OK):
            raise CompileError(f"cannot write into the folder {path.parent}", loc)


def _write(request: ReportRequest, analysis: Analysis, changes: Sequence[WhatIf], densities: str) -> None:
    page = render_page(analysis, changes, densities) if request.html is not None else ""
    with written_beside(*(path for path in (request.html, request.trace) if path is not None)) as files:
        if request.html is not None:
            files[0].write(page)
        if request.trace is not None:
            write_trace(files[-1], [phase.timing for phase in analysis.phases], analysis.program)


def _show(request: ReportRequest, analysis: Analysis, changes: Sequence[WhatIf], densities: str) -> None:
    shown = phases_shown(analysis)
    print_table(f"{request.source.name} on {analysis.config.name}", headline(analysis, densities))
    tables = [phase_table(analysis), layer_table(shown[0]), channel_table(shown[0])]
    tables += [parts_table("energy of a sample", energy_parts(analysis), "J")]
    tables += [parts_table("area, mm2", area_parts(analysis), "mm2"), roof_table(shown[0])]
    tables += [whatif_table(changes)] if changes else []
    for table in tables:
        _print(table)
    for path in (request.html, request.trace):
        if path is not None:
            print(f"written: {path}", file=sys.stderr)


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
