"""`spikec attack --replay`: every verdict of a results file, computed again from its examples."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from compiler.attack.victim import Victim
from frontends.datasets import Split, load
from spikec.attack.replay import Replay, replay
from spikec.attack.results import Stored, stored_in
from spikec.commands.talk import Json, print_json, print_table, progress_bar
from spikec.models import load_model

DOUBTS_SHOWN = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplayRequest:
    """The file; model and data in the place of those that it names, "" for its own."""

    file: Path
    model: str
    data: str


def run_replay(request: ReplayRequest, *, as_json: bool) -> int:
    """Judge again, report; 1 if anything recorded is not confirmed, else 0.

    Raises: CompileError for a file, network or data set that is not the attack's.
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
        bar.stage("cases")
        found = replay(stored, Victim(graph), samples, bar.samples, model=request.model or source.model)
    seconds = time.perf_counter() - start
    if as_json:
        print_json(_as_json(found, stored, seconds))
    else:
        print_table(f"replay of {request.file}", list(_rows(found, seconds)))
    return 1 if found.doubts else 0


def _as_json(found: Replay, stored: Stored, seconds: float) -> dict[str, Json]:
    return {
        "results": str(stored.file.path),
        "model": stored.source.model,
        "model_sha256": stored.model_sha256,
        "data": stored.source.data,
        "cases": stored.cases,
        "cases_missing": found.missing,
        "successes": found.successes,
        "confirmed": found.confirmed,
        "doubts": [{"case": doubt.case, "sample": doubt.sample, "what": doubt.what} for doubt in found.doubts],
        "seconds": seconds,
    }


def _rows(found: Replay, seconds: float) -> Iterator[tuple[str, str]]:
    yield "cases replayed", f"{len(found.records):,}"
    if found.missing:
        yield "cases that the run has not finished", f"{found.missing:,}"
    yield "successes recorded", f"{found.successes:,}"
    yield "confirmed", f"{found.confirmed:,}"
    yield "records in doubt", f"{len({doubt.case for doubt in found.doubts}):,}"
    for doubt in found.doubts[:DOUBTS_SHOWN]:
        yield f"case {doubt.case}, sample {doubt.sample}", doubt.what
    if len(found.doubts) > DOUBTS_SHOWN:
        yield "more doubts", f"{len(found.doubts) - DOUBTS_SHOWN:,}; --json lists all"
    yield "seconds", f"{seconds:.1f}"
