"""One line of a results file: what became of a case, with its example, bit for bit."""

from __future__ import annotations

import json
from dataclasses import dataclass, fields

import numpy as np
import numpy.typing as npt

from compiler.attack.fresh import Fresh
from compiler.attack.perturbation import Perturbation
from compiler.attack.settings import Case, Outcome, Status
from spikec.packed_values import packed, unpacked, whole

Floats = npt.NDArray[np.float32]

_MEASURES = tuple(field.name for field in fields(Perturbation) if field.name != "l0")
_COUNTS = ("iterations", "vanished", "queries", "gradients", "draw")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Record:
    """A finished case.

    number: its place among the cases. example: the last values, None where the case ended before it was attacked.
    fresh_successes, fresh_draws: as `Plan.finished` tells. Others: as of `Outcome`.
    """

    number: int
    sample: int
    label: int
    target: int | None
    status: Status
    perturbation: Perturbation
    iterations: int
    vanished: int
    queries: int
    gradients: int
    draw: int
    vanished_at_start: bool
    fresh_successes: int
    fresh_draws: int
    example: Floats | None

    @classmethod
    def of(cls, number: int, found: Fresh) -> Record:
        """The record of an outcome."""
        outcome = found.outcome
        counts = {name: getattr(outcome, name) for name in _COUNTS}
        return cls(
            number=number,
            sample=outcome.case.sample,
            label=outcome.case.label,
            target=outcome.case.target,
            status=outcome.status,
            perturbation=outcome.perturbation,
            vanished_at_start=outcome.vanished_at_start,
            fresh_successes=found.successes,
            fresh_draws=found.draws,
            example=None if outcome.status is Status.CLEAN_ERROR else outcome.adversarial,
            **counts,
        )

    def as_json(self) -> str:
        """One line of the results file, without its end."""
        plain = {
            "case": self.number,
            "sample": self.sample,
            "label": self.label,
            "target": self.target,
            "status": str(self.status),
            "perturbation": self.perturbation.named(),
            **{name: getattr(self, name) for name in _COUNTS},
            "vanished_at_start": self.vanished_at_start,
            "fresh_successes": self.fresh_successes,
            "fresh_draws": self.fresh_draws,
            "example": None if self.example is None else packed(self.example),
        }
        return json.dumps(plain)

    @classmethod
    def from_json(cls, line: str) -> Record:
        """What such a line says.

        Raises: ValueError, KeyError or TypeError for any other text.
        """
        record = json.loads(line)
        sizes = record["perturbation"]
        measures = {name: _number(sizes[name]) for name in _MEASURES}
        counts = {name: whole(record[name]) for name in _COUNTS}
        successes, draws = whole(record["fresh_successes"]), whole(record["fresh_draws"])
        if successes > draws:
            raise ValueError(f"{successes} of {draws} draws")
        return cls(
            number=whole(record["case"]),
            sample=whole(record["sample"]),
            label=whole(record["label"]),
            target=None if record["target"] is None else whole(record["target"]),
            status=Status(record["status"]),
            perturbation=Perturbation(l0=whole(sizes["l0"]), **measures),
            vanished_at_start=bool(record["vanished_at_start"]),
            fresh_successes=successes,
            fresh_draws=draws,
            example=None if record["example"] is None else unpacked(record["example"]),
            **counts,
        )

    def outcome(self, case: Case) -> Outcome:
        """The outcome for its case."""
        counts = {name: getattr(self, name) for name in _COUNTS}
        return Outcome(
            case=case,
            status=self.status,
            adversarial=case.x if self.example is None else self.example,
            perturbation=self.perturbation,
            vanished_at_start=self.vanished_at_start,
            **counts,
        )


def _number(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not value >= 0:
        raise ValueError(f"{value!r} is no size")
    return float(value)
