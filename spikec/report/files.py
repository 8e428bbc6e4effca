"""The files of a report: a page and a trace, both or neither."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path

from hwmodel.errors import CompileError, Loc
from runtime.timing.trace import write_trace, written_beside
from spikec.report.analysis import Analysis
from spikec.report.page import render_page
from spikec.report.whatif import WhatIf

HTML, TRACE = ".html", ".json"


def check_outputs(html: Path | None, trace: Path | None) -> None:
    """Refuse what can be told before anything is computed.

    Raises: CompileError for a wrong suffix, a folder in the place of the file, and a folder that is not there.
    """
    for option, path, suffix in (("--html", html, HTML), ("--trace", trace, TRACE)):
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


def write_files(
    analysis: Analysis, changes: Sequence[WhatIf], densities: str, *, html: Path | None, trace: Path | None
) -> None:
    """Write what is asked for, and say so on stderr.

    Raises: CompileError for files that cannot be written, of which none is left then.
    """
    page = render_page(analysis, changes, densities) if html is not None else ""
    with written_beside(*(path for path in (html, trace) if path is not None)) as files:
        if html is not None:
            files[0].write(page)
        if trace is not None:
            write_trace(files[-1], [phase.timing for phase in analysis.phases], analysis.program)
    for path in (html, trace):
        if path is not None:
            print(f"written: {path}", file=sys.stderr)
