"""Attacks the cases that are not finished yet, in this process, in several, or on a Dask cluster."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing

import torch

from compiler.attack.settings import Case
from compiler.attack.victim import BLOCK
from runtime.fused.keep_buffers import keep_buffers
from spikec.attack.plan import Plan
from spikec.attack.records import Record
from spikec.attack.results import AttackFile
from spikec.attack.verdicts import one_thread
from spikec.workers import Workers

PIECE = 2 * BLOCK  # cases that a worker gets at a time: what a killed run repeats at most of each worker

Progress = Callable[[int, int], None]
Numbered = tuple[int, Case]


def run_attack(
    plan: Plan, cases: Sequence[Case], workers: Workers, progress: Progress, file: AttackFile | None = None
) -> tuple[Record, ...]:
    """The records of all cases in their order; those of the file are not attacked again, others written as they finish.

    Raises: CompileError for what the plan refuses, if the file is another's or cannot be written, or workers are lost.
    """
    plan.check()
    finished = {} if file is None else file.read()
    pieces = -(-(len(cases) - len(finished)) // PIECE)
    with ExitStack() as stack:
        run = stack.enter_context(workers.ready(attack_piece, pieces))
        end = stack.enter_context(file.appending()) if file is not None else None
        finished = {} if file is None else file.read()
        progress(len(finished), len(cases))
        todo = spread([(number, case) for number, case in enumerate(cases) if number not in finished])
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


def attack_piece(plan: Plan, piece: Sequence[Numbered]) -> tuple[Record, ...]:
    """The records of some cases, in no fixed order, on one thread."""
    keep_buffers()
    torch.set_num_threads(1)
    return tuple(_records(plan, piece))


def spread(cases: Sequence[Numbered]) -> list[Numbered]:
    """Cases so ordered that neighbours stand at different places of their blocks: few places stay empty."""
    seen: Counter[int] = Counter()
    keyed = []
    for number, case in cases:
        place = case.sample % BLOCK
        keyed.append((seen[place], place, number, case))
        seen[place] += 1
    return [(number, case) for _, _, number, case in sorted(keyed, key=lambda item: item[:3])]


def _here(plan: Plan, cases: Sequence[Numbered]) -> Generator[Record, None, None]:
    keep_buffers()  # each pass makes and frees the same arrays, and fresh pages cost a quarter of its time
    with one_thread():
        yield from _records(plan, cases)


def _records(plan: Plan, cases: Sequence[Numbered]) -> Iterator[Record]:
    numbers: Mapping[tuple[int, int | None], int] = {(case.sample, case.target): number for number, case in cases}
    for found in plan.finished(plan.victim(), (case for _, case in cases)):
        case = found.outcome.case
        yield Record.of(numbers[case.sample, case.target], found)
