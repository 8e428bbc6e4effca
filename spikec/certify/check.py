"""Checks every verdict of a results file: nothing of the run that wrote it is trusted.

Answers are checked; which method gave them, with what margin, is only told.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum

import numpy as np

from compiler.certify.cascade import Run
from compiler.certify.certificate import described
from compiler.certify.verdicts import Answer
from compiler.certify_check.certificate import Claim
from compiler.certify_check.check import Checker
from compiler.ir import Graph
from frontends.datasets import Samples
from hwmodel.errors import CompileError, Loc
from spikec.attack.plan import network_digest
from spikec.attack.verdicts import one_thread
from spikec.certify.cases import Case, chosen_cases, digest_of_cases
from spikec.certify.plan import Plan
from spikec.certify.records import Record
from spikec.certify.results import Stored
from spikec.certify.sets import set_named
from spikec.certify.subject import Subject

Progress = Callable[[int, int], None]

_CLAIMS = {Answer.ROBUST: (Claim.BOUNDS, Claim.SOLVED), Answer.COUNTEREXAMPLE: (Claim.COUNTEREXAMPLE,)}


class Finding(StrEnum):
    """How a verdict was confirmed, or that it was not."""

    PROVED = "proved"  # its certificate's claims follow, as the checker's own bounds say
    RE_SOLVED = "re-solved"  # another exact method decided alike
    REPLAYED = "replayed"  # its counterexample is a member, on which the label is not alone at the top
    REPEATED = "repeated"  # it has no certificate; certified again, by the same methods, it came out the same
    CLAIMS_NOTHING = "claims nothing"  # UNKNOWN
    UNDECIDED = "undecided"  # not solved again within the limit
    REFUTED = "refuted"


GOOD = (Finding.PROVED, Finding.RE_SOLVED, Finding.REPLAYED, Finding.REPEATED, Finding.CLAIMS_NOTHING)


@dataclass(frozen=True, slots=True, kw_only=True)
class Judgement:
    """What became of one verdict."""

    sample: int
    finding: Finding
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckedFile:
    """records: those of the file, in its samples' order; missing: samples that the run has not finished."""

    records: tuple[Record, ...]
    judgements: tuple[Judgement, ...]
    missing: int

    @property
    def findings(self) -> dict[str, int]:
        """How many verdicts there are of each."""
        found = Counter(judgement.finding for judgement in self.judgements)
        return {str(finding): found[finding] for finding in Finding}

    @property
    def doubts(self) -> tuple[Judgement, ...]:
        """Verdicts that are not confirmed."""
        return tuple(judgement for judgement in self.judgements if judgement.finding not in GOOD)


def check_file(
    stored: Stored, graph: Graph, samples: Samples, progress: Progress, *, model: str, seconds: float
) -> CheckedFile:
    """Check every record; model is what the network is called, seconds the limit for solving one again.

    Raises: CompileError if network or samples are not those that were certified, or the file is damaged.
    """
    loc = Loc(str(stored.file.path))
    if network_digest(graph) != stored.model_sha256:
        raise CompileError(
            f"the network {model} is not the one that was certified: its hash differs",
            loc,
            hint="give the certified one as MODEL, such as its .spk file",
        )
    bits = stored.quantisation
    subject = Subject.of(graph, bits.fraction_bits, bits.decay_bits)
    cases = chosen_cases(subject, samples, stored.choice)
    if digest_of_cases(cases) != stored.data_sha256:
        raise CompileError(
            f"the samples of {samples.name} are not those that were certified: their hash differs",
            loc,
            hint="give the certified ones by --data",
        )
    plan = Plan(subject=subject, spec=set_named(stored.spec), cascade=stored.cascade)
    found = stored.file.read()
    records = tuple(found[number] for number in sorted(found))
    pairs = [(record, _case(record, cases, loc)) for record in records]
    judgements: list[Judgement] = []
    with one_thread():
        run, checker = plan.run(), Checker.of(subject.graph)
        for record, case in pairs:
            judgements.append(_judged(plan, run, checker, record, case, seconds))
            progress(len(judgements), len(pairs))
    return CheckedFile(records=records, judgements=tuple(judgements), missing=len(cases) - len(records))


def _case(record: Record, cases: Sequence[Case], loc: Loc) -> Case:
    """Raises: CompileError for a record that is not of the case of its number."""
    case = cases[record.number] if record.number < len(cases) else None
    if case is None or (record.sample, record.label) != (case.sample, case.label):
        raise CompileError(
            f"case {record.number} is of another sample or label than was certified", loc, hint="certify again"
        )
    return case


def _judged(plan: Plan, run: Run, checker: Checker, record: Record, case: Case, seconds: float) -> Judgement:
    def judgement(finding: Finding, reason: str) -> Judgement:
        return Judgement(sample=record.sample, finding=finding, reason=reason)

    answer = record.verdict.answer
    if answer is Answer.UNKNOWN:
        return judgement(Finding.CLAIMS_NOTHING, "UNKNOWN")
    if record.certificate is None:
        return judgement(*_repeated(plan, run, record, case))
    content = record.certificate.content
    for name, want in (
        ("label", case.label),
        ("inputs", described(plan.set_of(case))),
        ("arithmetic", str(plan.subject.arithmetic)),
    ):
        if content.get(name) != want:
            return judgement(Finding.REFUTED, f"the certificate is about another {name} than the run")
    if record.certificate.claim not in _CLAIMS[answer]:
        return judgement(Finding.REFUTED, f"the certificate claims {record.certificate.claim}, the verdict {answer}")
    fault = _fault(plan, run, record, case)
    if fault:
        return judgement(Finding.REFUTED, fault)
    checked = checker.check(record.certificate, seconds=seconds)
    return judgement(Finding(str(checked.status)), checked.reason)


def _repeated(plan: Plan, run: Run, record: Record, case: Case) -> tuple[Finding, str]:
    """Of a verdict without a certificate."""
    if record.verdict.counterexample is not None:
        fault = _fault(plan, run, record, case)
        return (Finding.REFUTED, fault) if fault else (Finding.REPLAYED, "the label is not alone highest on it")
    (again,) = plan.verdicts(run, [case])
    if again.answer is record.verdict.answer:
        return Finding.REPEATED, f"certified again by {again.method}, without a certificate"
    return Finding.UNDECIDED, f"certified again it is {again.answer.name}"


def _fault(plan: Plan, run: Run, record: Record, case: Case) -> str:
    """What is wrong with a record's counterexample; "" where nothing is, or there is none."""
    example, inputs = record.verdict.counterexample, plan.set_of(case)
    if example is None:
        return ""
    if not inputs.contains(example):
        return "the counterexample is not in the set"
    if run.replay.is_right(example, case.label):
        return "the label is alone highest on the counterexample"
    if record.verdict.is_clean_error != np.array_equal(example, inputs.clean):
        return "a clean error is the clean input, and no other counterexample is"
    return ""
