"""`spikec certify --check`: every verdict of a results file, checked from its certificate."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from frontends.datasets import Split, load
from spikec.certify.check import CheckedFile, check_file
from spikec.certify.results import Stored, stored_in
from spikec.commands.talk import Json, print_json, print_table, progress_bar
from spikec.models import load_model

DOUBTS_SHOWN = 5
SOLVE_SECONDS = 60.0  # for solving one verdict again


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckRequest:
    """The file; model and data in the place of those that it names, "" for its own."""

    file: Path
    model: str
    data: str


def run_check(request: CheckRequest, *, as_json: bool) -> int:
    """Check, report; 1 if any verdict is not confirmed, else 0.

    Raises: CompileError for a file, network or data set that is not the certification's.
    """
    start = time.perf_counter()
    stored = stored_in(request.file)
    source = stored.source
    samples = load(request.data or source.data, split=Split.TEST)
    with progress_bar("importing") as bar:
        if request.model:
            graph = load_model(request.model, seed=source.model_seed, progress=bar.training).graph
        else:
            graph = load_model(
                source.model,
                timesteps=source.timesteps,
                seed=source.model_seed,
                input_shape=source.input_shape,
                progress=bar.training,
            ).graph
        bar.stage("samples")
        model = request.model or source.model
        found = check_file(stored, graph, samples, bar.samples, model=model, seconds=SOLVE_SECONDS)
    seconds = time.perf_counter() - start
    if as_json:
        print_json(_as_json(found, stored, seconds))
    else:
        print_table(f"check of {request.file}", list(_rows(found, seconds)))
    return 1 if found.doubts else 0


def _as_json(found: CheckedFile, stored: Stored, seconds: float) -> dict[str, Json]:
    return {
        "results": str(stored.file.path),
        "model": stored.source.model,
        "model_sha256": stored.model_sha256,
        "data": stored.source.data,
        "set": stored.spec,
        "samples": len(found.records),
        "samples_missing": found.missing,
        "findings": found.findings,
        "doubts": [
            {"sample": doubt.sample, "finding": str(doubt.finding), "reason": doubt.reason} for doubt in found.doubts
        ],
        "seconds": seconds,
    }


def _rows(found: CheckedFile, seconds: float) -> Iterator[tuple[str, str]]:
    yield "verdicts checked", f"{len(found.records):,}"
    if found.missing:
        yield "samples that the run has not finished", f"{found.missing:,}"
    for finding, count in found.findings.items():
        if count:
            yield finding, f"{count:,}"
    for doubt in found.doubts[:DOUBTS_SHOWN]:
        yield f"sample {doubt.sample}, {doubt.finding}", doubt.reason
    if len(found.doubts) > DOUBTS_SHOWN:
        yield "more doubts", f"{len(found.doubts) - DOUBTS_SHOWN:,}; --json lists all"
    yield "seconds", f"{seconds:.1f}"
