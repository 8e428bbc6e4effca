"""Certifies the samples that are not finished yet, in this process, in several, or on a Dask cluster."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import ExitStack, closing

import torch

from compiler.attack.victim import BLOCK
from compiler.certify_check.layers import Layer
from spikec.attack.verdicts import one_thread
from spikec.certify.cases import Case
from spikec.certify.plan import Plan
from spikec.certify.records import Record
from spikec.certify.results import CertifyFile
from spikec.workers import Workers

PIECE = BLOCK // 2  # samples that a worker gets at a time: what a killed run repeats at most of each worker

Progress = Callable[[int, int], None]
Numbered = tuple[int, Case]


def run_certify(
    plan: Plan, cases: Sequence[Case], workers: Workers, progress: Progress, file: CertifyFile | None = None
) -> tuple[Record, ...]:
    """The records of all cases in their order; those of the file are not certified again, others written as they
    finish.

    Raises: CompileError for what the plan refuses, if the file is another's or cannot be written, or workers are lost.
    """
    plan.check(cases)
    finished = {} if file is None else file.read()
    pieces = -(-(len(cases) - len(finished)) // PIECE)
    with ExitStack() as stack:
        run = stack.enter_context(workers.ready(certify_piece, pieces))
        end = stack.enter_context(file.appending()) if file is not None else None
        finished = {} if file is None else file.read()
        progress(len(finished), len(cases))
        todo = [(number, case) for number, case in enumerate(cases) if number not in finished]
        if workers.stay_here(pieces):
            records: Iterator[Record] = stack.enter_context(closing(_here(plan, todo)))
        else:
            split = [tuple(todo[at : at + PIECE]) for at in range(0, len(todo), PIECE)]
            records = (record for piece in stack.enter_context(closing(run(plan, split))) for record in piece)
        for record in records:
            if end is not None:
                end.add(record)
            finished[record.number] = record
            progress(len(finished), len(cases))
        ordered = tuple(finished[number] for number in range(len(cases)))
        if file is not None:
            file.finish(ordered)
    return ordered


def certify_piece(plan: Plan, piece: Sequence[Numbered]) -> tuple[Record, ...]:
    """The records of some cases, on one thread."""
    torch.set_num_threads(1)
    return tuple(_records(plan, piece))


def _here(plan: Plan, cases: Sequence[Numbered]) -> Generator[Record, None, None]:
    with one_thread():
        yield from _records(plan, cases)


def _records(plan: Plan, cases: Sequence[Numbered]) -> Iterator[Record]:
    if not cases:
        return
    verdicts = plan.verdicts(plan.run(), (case for _, case in cases))
    kept: dict[str, Layer] = {}
    for (number, case), verdict in zip(cases, verdicts, strict=True):
        yield Record.of(number, case, verdict, plan.certificate(case, verdict, kept))
