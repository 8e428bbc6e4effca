"""What the verdicts of a certification say together."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from compiler.certify.verdicts import Answer, Method
from spikec.certify.records import Record
from spikec.commands.talk import Json


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """Shares of all samples. Exact counts of these samples: nothing here is estimated."""

    records: Sequence[Record]

    def count(self, answer: Answer) -> int:
        """How many samples have that verdict."""
        return sum(record.verdict.answer is answer for record in self.records)

    @property
    def clean_errors(self) -> int:
        """Samples that are told wrongly as they are; their counterexample is themselves."""
        return sum(record.verdict.is_clean_error for record in self.records)

    @property
    def clean_accuracy(self) -> float:
        """The share of samples whose label alone is highest on the clean input."""
        return 1 - self.clean_errors / len(self.records)

    @property
    def certified_accuracy(self) -> float:
        """The share of samples whose label alone is proved highest on all inputs of their set."""
        return self.count(Answer.ROBUST) / len(self.records)

    @property
    def upper_accuracy(self) -> float:
        """The share of samples without a counterexample: no method can certify more."""
        return 1 - self.count(Answer.COUNTEREXAMPLE) / len(self.records)

    @property
    def timed_out(self) -> int:
        """UNKNOWN because of the time limit."""
        return sum(record.verdict.timed_out for record in self.records)

    @property
    def methods(self) -> dict[str, int]:
        """How many verdicts, other than UNKNOWN, each method gave."""
        found = Counter(r.verdict.method for r in self.records if r.verdict.answer is not Answer.UNKNOWN)
        return {str(method): found[method] for method in Method if found[method]}

    @property
    def means(self) -> dict[str, int]:
        """How the exact ones of them were found."""
        exact = (r.verdict.means for r in self.records if r.verdict.answer is not Answer.UNKNOWN)
        found = Counter(str(means) for means in exact if means is not None)
        return dict(sorted(found.items()))

    @property
    def certificates(self) -> int:
        """Verdicts that come with one."""
        return sum(record.certificate is not None for record in self.records)

    @property
    def mean_margin(self) -> float | None:
        """Mean lower bound of the least margin, of the samples that have one."""
        known = [record.verdict.margin for record in self.records if record.verdict.margin is not None]
        return fmean(known) if known else None

    def as_json(self) -> dict[str, Json]:
        """Stable names; accuracies are shares of all samples."""
        return {
            "samples": len(self.records),
            "verdicts": {answer.name: self.count(answer) for answer in Answer},
            "clean_errors": self.clean_errors,
            "timed_out": self.timed_out,
            "clean_accuracy": self.clean_accuracy,
            "certified_accuracy": self.certified_accuracy,
            "upper_accuracy": self.upper_accuracy,
            "methods": self.methods,
            "means": self.means,
            "certificates": self.certificates,
            "mean_margin": self.mean_margin,
        }
