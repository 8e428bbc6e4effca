"""What a certification is: all that its verdicts rest on but the samples."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from compiler.certify.cascade import LINEAR, Cascade, Query, Run
from compiler.certify.certificate import certificate_of
from compiler.certify.input_sets import InputSet
from compiler.certify.interval import interval
from compiler.certify.verdicts import Answer, Method, Verdict
from compiler.certify_check.certificate import Certificate
from compiler.certify_check.layers import Layer, layers
from spikec.certify.cases import Case
from spikec.certify.sets import SetSpec
from spikec.certify.subject import Subject
from spikec.commands.talk import Json


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """A network, the inputs that count as near, and methods; plain data that travels to other processes.

    has_certificates: whether each verdict gets one, which takes about as long as the verdict again.
    """

    subject: Subject
    spec: SetSpec
    cascade: Cascade
    has_certificates: bool = False

    def run(self) -> Run:
        """Raises: CompileError for a network that cannot be certified, or has no such sets."""
        self.spec.check(self.subject)
        return Run.of(self.subject.graph, self.cascade, self.subject.arithmetic)

    def check(self, cases: Sequence[Case]) -> None:
        """Raises: CompileError for what is refused before any verdict: a network or samples without such sets, and a
        network without bounds, as the first sample's say.
        """
        self.run()
        for case in cases:
            self.set_of(case)
        if set(self.cascade.methods) & {Method.IBP, *LINEAR}:
            interval(self.subject.graph, [self.set_of(case) for case in cases[:1]])

    def set_of(self, case: Case) -> InputSet:
        """The inputs that count as near one sample. Raises: CompileError for a sample that has no such set."""
        return self.spec.inputs(self.subject, case.x, case.sample)

    def verdicts(self, run: Run, cases: Iterable[Case]) -> Iterator[Verdict]:
        """Of each case, in their order. Raises: CompileError as `Run.verdicts`."""
        return run.verdicts(Query(sample=case.sample, inputs=self.set_of(case), label=case.label) for case in cases)

    def certificate(self, case: Case, verdict: Verdict, kept: dict[str, Layer]) -> Certificate | None:
        """What shows a verdict to a checker; None where there is none, or none is wanted.

        kept: the network's layers, empty until the first certificate that needs them.
        """
        if not self.has_certificates:
            return None
        graph = self.subject.graph
        if verdict.answer is Answer.ROBUST and not kept:
            kept.update(layers(graph))
        return certificate_of(graph, self.set_of(case), case.label, verdict, kept)

    def described(self) -> dict[str, Json]:
        """Everything but the network, as a results file tells it."""
        cascade, encode = self.cascade, self.subject.encode
        mask = (
            None if encode is None else "the network's own" if encode.mask is not None else f"seed {encode.seed or 0}"
        )
        return {
            "set": self.spec.text,
            "mask": mask,
            "arithmetic": str(self.subject.arithmetic),
            "quantised": _quantised(self.subject),
            "tried": [str(method) for method in cascade.methods],
            "seconds_a_sample": cascade.seconds if math.isfinite(cascade.seconds) else None,
            "work_a_sample": cascade.work,
            "seed": cascade.seed,
            "has_certificates": self.has_certificates,
        }


def _quantised(subject: Subject) -> Json:
    """By how much numbers were rounded at most, by what they are; None if the network is as it was given."""
    if subject.changes is None:
        return None
    largest: dict[str, float] = {}
    for change in subject.changes:
        largest[change.what] = max(largest.get(change.what, 0.0), change.largest_change)
    return largest
