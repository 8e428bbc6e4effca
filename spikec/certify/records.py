"""One line of a results file: the verdict of a sample, with what it can be checked by."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass

from compiler.certify.verdicts import Answer, Arithmetic, Means, Method, Verdict
from compiler.certify_check.certificate import Certificate
from spikec.certify.cases import Case
from spikec.packed_values import packed, unpacked, whole


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Record:
    """A sample's verdict; number is its place among the cases, certificate what `compiler.certify_check` reads."""

    number: int
    sample: int
    label: int
    verdict: Verdict
    certificate: Certificate | None

    @classmethod
    def of(cls, number: int, case: Case, verdict: Verdict, certificate: Certificate | None) -> Record:
        """The record of a case."""
        return cls(number=number, sample=case.sample, label=case.label, verdict=verdict, certificate=certificate)

    def as_json(self) -> str:
        """One line of the results file, without its end."""
        verdict = self.verdict
        plain = {
            "case": self.number,
            "sample": self.sample,
            "label": self.label,
            "verdict": verdict.answer.name,
            "method": str(verdict.method) if verdict.method is not None else None,
            "margin": verdict.margin,
            "means": str(verdict.means) if verdict.means is not None else None,
            "clean_error": verdict.is_clean_error,
            "timed_out": verdict.timed_out,
            "counterexample": None if verdict.counterexample is None else packed(verdict.counterexample),
            "certificate": None if self.certificate is None else self.certificate.content,
        }
        return json.dumps(plain)

    @classmethod
    def from_json(cls, line: str, arithmetic: Arithmetic) -> Record:
        """What such a line says, of a run in that arithmetic.

        Raises: ValueError, KeyError or TypeError for any other text.
        """
        record = json.loads(line)
        answer, example = Answer[record["verdict"]], record["counterexample"]
        method = None if record["method"] is None else Method(record["method"])
        if (example is not None) != (answer is Answer.COUNTEREXAMPLE):
            raise ValueError(f"{answer.name} with {'a' if example is not None else 'no'} counterexample")
        if bool(record["clean_error"]) != (method is Method.CLEAN):
            raise ValueError("a clean error by another method")
        verdict = Verdict(
            answer=answer,
            method=method,
            arithmetic=arithmetic,
            margin=None if record["margin"] is None else _finite(record["margin"]),
            counterexample=None if example is None else unpacked(example),
            means=None if record["means"] is None else Means(record["means"]),
            timed_out=bool(record["timed_out"]),
        )
        certificate = record["certificate"]
        if not (certificate is None or isinstance(certificate, dict)):
            raise TypeError("a certificate is an object")
        return cls(
            number=whole(record["case"]),
            sample=whole(record["sample"]),
            label=whole(record["label"]),
            verdict=verdict,
            certificate=None if certificate is None else Certificate(certificate),
        )


def _finite(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError(f"{value!r} is no margin")
    return float(value)
