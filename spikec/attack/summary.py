"""What the records of an attack say together."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from compiler.attack.fresh import Share, clopper_pearson
from compiler.attack.methods import Method
from compiler.attack.settings import Status
from spikec.attack.records import Record
from spikec.commands.talk import Json

CONFIDENCE = 0.95
_BY_GRADIENTS = (Method.BIM, Method.FGSM, Method.RGA, Method.SPARSE, Method.GREEDY, Method.RETIME)
MEASURES = ("l0", "l1", "l2", "linf", "rms")


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """Rates over the cases that were attacked, all but the clean errors; sizes over the successes.

    success: the share that succeeded under the draw it was judged by, with the interval of Clopper and Pearson.
    fresh: the mean over cases of the share of fresh draws that the example fools, 0 for a case without success, with
        an interval that holds whatever the shares' distribution is (Hoeffding 1963, theorem 1, eq. 2.1).
    majority: the share of cases whose example fools more than half of the fresh draws, with Clopper-Pearson's.

    None where nothing was attacked, or nothing succeeded.
    """

    records: tuple[Record, ...]
    method: Method

    @property
    def attacked(self) -> list[Record]:
        """All but clean errors."""
        return [record for record in self.records if record.status is not Status.CLEAN_ERROR]

    @property
    def successes(self) -> list[Record]:
        """Those with an example."""
        return [record for record in self.records if record.status is Status.SUCCESS]

    @property
    def statuses(self) -> dict[str, int]:
        """How many cases there are of each."""
        found = Counter(record.status for record in self.records)
        return {str(status): found[status] for status in Status}

    @property
    def success(self) -> Share | None:
        return clopper_pearson(len(self.successes), len(self.attacked), CONFIDENCE) if self.attacked else None

    @property
    def fresh(self) -> Share | None:
        shares = [record.fresh_successes / record.fresh_draws for record in self.attacked]
        return mean_of_bounded(shares, CONFIDENCE) if shares else None

    @property
    def majority(self) -> Share | None:
        fooled = sum(2 * record.fresh_successes > record.fresh_draws for record in self.attacked)
        return clopper_pearson(fooled, len(self.attacked), CONFIDENCE) if self.attacked else None

    def mean(self, measure: str) -> float | None:
        """Of a perturbation's measure."""
        sizes = [record.perturbation.named()[measure] for record in self.successes]
        return fmean(sizes) if sizes else None

    def total(self, count: str) -> int:
        """Of a count, over all cases."""
        return sum(int(getattr(record, count)) for record in self.records)

    @property
    def vanished_at_start(self) -> int | None:
        """Cases whose first gradient is zero (table 5.3); None of a method that takes none of this network."""
        return self.total("vanished_at_start") if self.method in _BY_GRADIENTS else None

    def as_json(self) -> dict[str, Json]:
        """Stable names with their units; rates without unit, sizes as the input."""
        return {
            "samples": len({record.sample for record in self.records}),
            "cases": len(self.records),
            "clean_errors": len(self.records) - len(self.attacked),
            "attacked": len(self.attacked),
            "statuses": self.statuses,
            **_named("success_rate", self.success),
            **_named("success_rate_fresh", self.fresh),
            **_named("success_rate_majority", self.majority),
            "confidence": CONFIDENCE,
            "fresh_draws": max((record.fresh_draws for record in self.records), default=0),
            **{f"mean_{measure}": self.mean(measure) for measure in MEASURES},
            "mean_flip_rate": self.mean("rate"),
            "mean_metric_dissertation": self.mean("dissertation"),
            "mean_metric_text": self.mean("text"),
            "iterations": self.total("iterations"),
            "queries": self.total("queries"),
            "gradients": self.total("gradients"),
            "vanished_iterations": self.total("vanished"),
            "vanished_at_start": self.vanished_at_start,
        }


def _named(name: str, share: Share | None) -> dict[str, Json]:
    if share is None:
        return {name: None, f"{name}_low": None, f"{name}_high": None}
    return {name: share.value, f"{name}_low": share.low, f"{name}_high": share.high}


def mean_of_bounded(values: Sequence[float], confidence: float) -> Share:
    """The mean of independent values in [0, 1], with an interval that holds its expectation.

    {p : n KL(mean || p) <= ln(2 / (1 - confidence))},  KL(q || p) = q ln(q/p) + (1-q) ln((1-q)/(1-p))

    Source: Hoeffding 1963, theorem 1, equation 2.1, for both tails.
    """
    mean, limit = fmean(values), math.log(2 / (1 - confidence)) / len(values)
    return Share(value=mean, low=_edge(mean, 0.0, limit), high=_edge(mean, 1.0, limit), confidence=confidence)


def _edge(mean: float, end: float, limit: float) -> float:
    """Between the mean and an end of [0, 1], the last p whose divergence is within the limit; rounded outwards."""
    if mean == end:
        return end
    inside, outside = mean, end
    for _ in range(60):
        middle = (inside + outside) / 2
        if _divergence(mean, middle) <= limit:
            inside = middle
        else:
            outside = middle
    return outside


def _divergence(mean: float, p: float) -> float:
    rows = ((mean, p), (1 - mean, 1 - p))
    return math.fsum(share * math.log(share / other) if other > 0 else math.inf for share, other in rows if share > 0)
