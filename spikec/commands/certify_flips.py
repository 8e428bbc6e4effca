"""`spikec certify --least-flips`: how many flips each sample stands, by bounds, exactly, and under attack."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from compiler.certify.exact import Effort
from frontends.datasets import Split, load
from hwmodel.errors import CompileError, Loc
from spikec.attack.results import Source
from spikec.certify.cases import Choice, chosen_cases
from spikec.certify.flips import FlipFile, FlipRecord, FlipStudy, flip_header, run_flips, summary_of
from spikec.certify.results import Quantisation
from spikec.certify.subject import Subject
from spikec.commands.certify import check_place, loaded
from spikec.commands.talk import print_json, print_table, progress_bar
from spikec.workers import Workers


@dataclass(frozen=True, slots=True, kw_only=True)
class FlipsRequest:
    """The command's arguments."""

    source: Source
    choice: Choice
    quantisation: Quantisation
    effort: Effort
    seed: int
    output: Path | None
    workers: Workers


def run_flips_command(request: FlipsRequest, *, as_json: bool) -> int:
    """Study what is not finished, keep the file, report; the exit code.

    Raises: CompileError for bad input, before anything is written.
    """
    start = time.perf_counter()
    if not request.effort.seconds > 0:
        raise CompileError(f"is {request.effort.seconds:g}, must be positive", Loc("--seconds"))
    if request.output is not None:
        check_place(request.output)
    samples = load(request.source.data, split=Split.TEST)
    bits = request.quantisation
    study = FlipStudy(
        subject=Subject.of(loaded(request.source), bits.fraction_bits, bits.decay_bits),
        effort=request.effort,
        seed=request.seed,
    )
    cases = chosen_cases(study.subject, samples, request.choice)
    file = None
    if request.output is not None:
        header = flip_header(study, request.source, request.quantisation, request.choice, cases)
        file = FlipFile(path=request.output, header=header)
    try:
        with progress_bar("samples") as bar:
            records = run_flips(study, cases, request.workers, bar.samples, file)
    except KeyboardInterrupt:
        if file is not None:
            print(f"interrupted; the same command goes on from {file.path}", file=sys.stderr)
        raise
    seconds = time.perf_counter() - start
    if as_json:
        print_json(
            {"model": request.source.model, "data": request.source.data, **summary_of(records), "seconds": seconds}
        )
    else:
        print_table(f"{request.source.model} on {request.source.data}: least flips", [*_rows(records, seconds)])
    return 0


def _rows(records: Sequence[FlipRecord], seconds: float) -> Iterator[tuple[str, str]]:
    found = summary_of(records)
    yield "samples", f"{len(records):,}"
    yield "clean errors", f"{found['clean_errors']}"
    yield "least number of flips known", f"{found['exact']}"
    for name, title in (
        ("mean_certified", "of these, flips that bounds prove harmless, mean"),
        ("mean_least", "least flips that change the decision, mean"),
        ("mean_attack", "flips of the attack's example, mean"),
    ):
        value = found[name]
        yield title, "none" if value is None else f"{value:.2f}"
    yield "each: harmless < least <= attack", ", ".join(_told(record) for record in records)
    yield "seconds", f"{seconds:.1f}"


def _told(record: FlipRecord) -> str:
    if record.certified is None:
        return "error"
    found = "?" if record.flips is None else f"{record.flips}"
    least = found if record.is_exact else f"{record.lower}-{found}"
    return f"{record.certified}<{least}<={'?' if record.attack is None else record.attack}"
