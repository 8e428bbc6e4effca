"""Recomputes every verdict of a results file from its examples: nothing of the run that wrote it is trusted."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

import numpy as np

from compiler.attack.budget import Budget
from compiler.attack.fresh import over_fresh_draws
from compiler.attack.perturbation import Perturbation, perturbation
from compiler.attack.retime import RetimeBudget, retiming
from compiler.attack.settings import Case, Outcome, Settings, Status
from compiler.attack.victim import Victim
from compiler.ir import DType, Encoding
from frontends.datasets import Samples
from hwmodel.errors import CompileError, Loc
from spikec.attack.cases import chosen_cases
from spikec.attack.plan import network_digest
from spikec.attack.records import Record
from spikec.attack.results import Stored
from spikec.attack.verdicts import fools, one_thread, right_at_first

Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Doubt:
    """What of a record is not confirmed."""

    case: int
    sample: int
    what: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Replay:
    """records: those of the file, in its cases' order; missing: cases that the run has not finished."""

    records: tuple[Record, ...]
    missing: int
    doubts: tuple[Doubt, ...]

    @property
    def successes(self) -> int:
        """Recorded ones."""
        return sum(record.status is Status.SUCCESS for record in self.records)

    @property
    def confirmed(self) -> int:
        """Recorded successes without any doubt."""
        doubted = {doubt.case for doubt in self.doubts}
        return sum(record.status is Status.SUCCESS and record.number not in doubted for record in self.records)


def replay(stored: Stored, victim: Victim, samples: Samples, progress: Progress, *, model: str) -> Replay:
    """Judge every record again; model is what the network is called.

    Of each: its sizes; that the clean sample was told right, or wrong of a clean error; whether the example fools the
    network under the draw it was judged by, stays inside the bounds, and how many fresh draws it fools.

    Raises: CompileError if network or samples are not those that were attacked, or the file is damaged.
    """
    loc = Loc(str(stored.file.path))
    if network_digest(victim.graph) != stored.model_sha256:
        raise CompileError(
            f"the network {model} is not the one that was attacked: its hash differs",
            loc,
            hint="give the attacked one as MODEL, such as its .spk file",
        )
    chosen = chosen_cases(victim, samples, stored.choice, stored.settings)
    if chosen.digest() != stored.data_sha256:
        raise CompileError(
            f"the samples of {samples.name} are not those that were attacked: their hash differs",
            loc,
            hint="give the attacked ones by --data",
        )
    found = stored.file.read()
    records = tuple(found[number] for number in sorted(found))
    cases = [_case(record, chosen.cases, loc) for record in records]
    doubts = _doubts(stored, victim, records, cases, progress)
    return Replay(records=records, missing=stored.cases - len(records), doubts=tuple(doubts))


def _case(record: Record, cases: Sequence[Case], loc: Loc) -> Case:
    """Raises: CompileError for a record that is not of the case of its number, or whose example has another form."""
    place = f"case {record.number}"
    case = cases[record.number] if record.number < len(cases) else None
    if case is None or (record.sample, record.label, record.target) != (case.sample, case.label, case.target):
        raise CompileError(f"{place} is of another sample, label or target than was attacked", loc, hint="attack again")
    if record.example is not None and record.example.shape != case.x.shape:
        raise CompileError(f"{place} has an example of shape {record.example.shape}, its sample is {case.x.shape}", loc)
    return case


def _doubts(
    stored: Stored, victim: Victim, records: Sequence[Record], cases: Sequence[Case], progress: Progress
) -> list[Doubt]:
    outcomes = [record.outcome(case) for record, case in zip(records, cases, strict=True)]
    if not outcomes:
        return []
    clean = right_at_first(victim, cases, stored.settings)
    fooled = fools(victim, outcomes, stored.settings)
    doubts = []
    for at, (record, outcome) in enumerate(zip(records, outcomes, strict=True)):
        faults = [
            *_verdict_faults(outcome, is_right=clean[at], is_fooled=fooled[at]),
            *_size_faults(outcome, victim, stored),
            *_fresh_faults(record, outcome, victim, stored),
        ]
        doubts += [Doubt(case=record.number, sample=record.sample, what=what) for what in faults]
        progress(at + 1, len(records))
    return doubts


def _verdict_faults(outcome: Outcome, *, is_right: bool, is_fooled: bool) -> list[str]:
    is_error = outcome.status is Status.CLEAN_ERROR
    if is_right == is_error:
        return [f"the clean sample is told {'right' if is_right else 'wrong'}, recorded as {outcome.status}"]
    if outcome.status is Status.SUCCESS and not is_fooled:
        return ["the example does not fool the network"]
    if outcome.status is Status.FAILURE and is_fooled:
        return ["the last values fool the network, recorded as a failure"]
    return []


def _size_faults(outcome: Outcome, victim: Victim, stored: Stored) -> list[str]:
    if (
        victim.graph.types[victim.graph.input.name].dtype is DType.SPIKE
        and not np.isin(outcome.adversarial, (0, 1)).all()
    ):
        return ["the example is no spikes"]
    size = perturbation(outcome.case.x, outcome.adversarial)
    own, written = size.named(), outcome.perturbation.named()
    faults = [f"{name} is {own[name]!r}, recorded as {written[name]!r}" for name in own if own[name] != written[name]]
    faults += _bound_faults(outcome.status, size, stored.settings)
    return faults if stored.retiming is None else [*faults, *_retiming_faults(outcome, stored.retiming)]


def _bound_faults(status: Status, size: Perturbation, settings: Settings) -> list[str]:
    """What is recorded as out of bound has to be, by epsilon or the budget; a success has to keep both."""
    budget, epsilon = settings.budget, settings.epsilon
    is_far, is_outside = size.dissertation > epsilon, budget is not None and beyond(budget, size)
    if status is Status.OUT_OF_BOUND:
        return [] if is_far or is_outside else ["the perturbation is inside all bounds, recorded as out of bound"]
    faults = []
    if status is Status.SUCCESS and is_far:
        faults.append(f"the mean square perturbation is {size.dissertation:g}, the bound {epsilon:g}")
    if budget is not None and is_outside:
        faults.append(f"the perturbation lies outside the {budget.norm} budget {budget.bound:g}")
    return faults


def _retiming_faults(outcome: Outcome, limits: RetimeBudget) -> list[str]:
    try:
        found = retiming(outcome.case.x, outcome.adversarial)
    except ValueError as fault:
        return [f"spikes were not only moved: {fault}"]
    allowed, moves = asdict(limits), asdict(found)
    return [
        f"{name} is {moves[name]}, the limit of moved spikes {most}"
        for name, most in allowed.items()
        if most is not None and moves[name] > most
    ]


def beyond(budget: Budget, size: Perturbation) -> bool:
    """Whether a perturbation is larger than a budget allows."""
    return size.named()[str(budget.norm)] > budget.bound


def _fresh_faults(record: Record, outcome: Outcome, victim: Victim, stored: Stored) -> list[str]:
    draws = stored.fresh if victim.encoding is Encoding.BERNOULLI else 1
    if outcome.status is not Status.SUCCESS:
        hits = 0
    elif victim.encoding is not Encoding.BERNOULLI:
        hits = 1
    else:
        with one_thread():
            (found,) = over_fresh_draws(victim, [outcome], draws=draws, seed=stored.settings.seed)
        hits = found.successes
    if (hits, draws) == (record.fresh_successes, record.fresh_draws):
        return []
    return [f"{hits} of {draws} fresh draws are fooled, recorded as {record.fresh_successes} of {record.fresh_draws}"]
