"""How many flips each sample stands: the study, its results file, and the run that goes on from it."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing
from dataclasses import asdict, dataclass
from statistics import fmean
from typing import ClassVar

import torch

from compiler.certify.exact import Effort
from compiler.certify.flip_range import flip_range
from hwmodel.errors import CompileError, Loc
from spikec import __version__
from spikec.attack.plan import network_digest
from spikec.attack.results import Source
from spikec.certify.cases import Case, Choice, digest_of_cases
from spikec.certify.results import Quantisation
from spikec.certify.subject import Subject
from spikec.commands.talk import Json
from spikec.packed_values import whole
from spikec.record_file import Header, RecordFile, digest_of
from spikec.workers import Workers

Progress = Callable[[int, int], None]
Numbered = tuple[int, Case]


@dataclass(frozen=True, slots=True, kw_only=True)
class FlipRecord:
    """One sample, see `FlipRange`; flips is None where no input was found that changes the decision."""

    case: int
    sample: int
    label: int
    certified: int | None
    lower: int
    flips: int | None
    attack: int | None
    seconds: float

    @property
    def is_exact(self) -> bool:
        """Whether the least number of flips is known."""
        return self.flips == self.lower

    @classmethod
    def from_json(cls, line: str) -> FlipRecord:
        """What a line of a results file says. Raises: ValueError, KeyError or TypeError for any other text."""
        found = json.loads(line)
        seconds = found["seconds"]
        if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not seconds >= 0:
            raise ValueError(f"{seconds!r} is no time")
        return cls(
            case=whole(found["case"]),
            sample=whole(found["sample"]),
            label=whole(found["label"]),
            certified=_maybe(found["certified"]),
            lower=whole(found["lower"]),
            flips=_maybe(found["flips"]),
            attack=_maybe(found["attack"]),
            seconds=float(seconds),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class FlipStudy:
    """A quantised network and the effort for each sample; plain data that travels to other processes."""

    subject: Subject
    effort: Effort
    seed: int

    def __post_init__(self) -> None:
        """Raises: CompileError for a network whose flips are not counted exactly."""
        graph = self.subject.graph
        if not self.subject.takes_spikes:
            raise CompileError("flips are of spikes, the network takes real values", Loc(graph.name))
        if self.subject.changes is None:
            raise CompileError(
                "least numbers of flips are exact in integers alone", Loc("--least-flips"), hint="add --quantise 6"
            )

    def record(self, number: int, case: Case) -> FlipRecord:
        """The record of a case."""
        clean = self.subject.seen(case.x, case.sample)
        found = flip_range(
            self.subject.graph, clean, case.label, sample=case.sample, seed=self.seed, effort=self.effort
        )
        return FlipRecord(
            case=number,
            sample=case.sample,
            label=case.label,
            certified=found.certified,
            lower=found.least.lower,
            flips=found.least.flips,
            attack=found.attack,
            seconds=found.least.seconds,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class FlipFile(RecordFile[FlipRecord]):
    """The file of one study."""

    kind: ClassVar[str] = "flip study"
    record: ClassVar[str] = "record of a sample"
    unnamed: ClassVar[str] = "the header"

    def parsed(self, line: str) -> FlipRecord:
        return FlipRecord.from_json(line)

    def written(self, record: FlipRecord) -> str:
        return json.dumps(asdict(record))

    def number(self, record: FlipRecord) -> int:
        return record.case


def flip_header(
    study: FlipStudy, source: Source, quantisation: Quantisation, choice: Choice, cases: Sequence[Case]
) -> Header:
    """All that the results rest on."""
    shown: dict[str, object] = {
        "version": __version__,
        **asdict(source),
        "certified_sha256": network_digest(study.subject.graph),
        "data_sha256": digest_of_cases(cases),
        **asdict(quantisation),
        **asdict(choice),
        **asdict(study.effort),
        "seed": study.seed,
    }
    return {FlipFile.kind: digest_of(shown), **shown}


def run_flips(
    study: FlipStudy, cases: Sequence[Case], workers: Workers, progress: Progress, file: FlipFile | None = None
) -> tuple[FlipRecord, ...]:
    """The records of all cases in their order; those of the file are not made again.

    Raises: CompileError for what `flip_range` refuses, if the file is another's or cannot be written, or workers are
        lost.
    """
    with ExitStack() as stack:
        end = stack.enter_context(file.appending()) if file is not None else None
        finished = {} if file is None else file.read()
        todo = [(number, case) for number, case in enumerate(cases) if number not in finished]
        run = stack.enter_context(workers.ready(flips_of, len(todo)))
        progress(len(finished), len(cases))
        for record in stack.enter_context(closing(run(study, todo))):
            if end is not None:
                end.add(record)
            finished[record.case] = record
            progress(len(finished), len(cases))
        ordered = tuple(finished[number] for number in range(len(cases)))
        if file is not None:
            file.finish(ordered)
    return ordered


def flips_of(study: FlipStudy, numbered: Numbered) -> FlipRecord:
    """The record of one case, on one thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return study.record(*numbered)
    finally:
        torch.set_num_threads(threads)


def summary_of(records: Sequence[FlipRecord]) -> dict[str, Json]:
    """Stable names; means are over the samples that are told rightly and whose least number of flips is known."""
    right = [record for record in records if record.certified is not None]
    exact = [record for record in right if record.is_exact]
    attacked = [record for record in exact if record.attack is not None]
    return {
        "samples": len(records),
        "clean_errors": len(records) - len(right),
        "exact": len(exact),
        "mean_certified": fmean(record.certified or 0 for record in exact) if exact else None,
        "mean_least": fmean(record.lower for record in exact) if exact else None,
        "mean_attack": fmean(record.attack or 0 for record in attacked) if attacked else None,
        "attack_over_least": (
            sum(record.attack or 0 for record in attacked) / sum(record.lower for record in attacked)
            if attacked
            else None
        ),
        "records": [asdict(record) for record in records],
    }


def _maybe(value: object) -> int | None:
    return None if value is None else whole(value)
