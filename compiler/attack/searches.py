"""Attacks that go their own way with each sample: one generator a sample, which asks, and whose asks run together."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from compiler.attack.goal import succeeds
from compiler.attack.inputs import Attackable, Batch, attackable
from compiler.attack.iterate import checked
from compiler.attack.lanes import Lanes
from compiler.attack.network import Network
from compiler.attack.settings import Case, Outcome, Settings, Status


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """What a search wants to know about inputs of its own.

    x: inputs in the form of a case, along a new first axis; at most `BLOCK`.
    steps: of each, the step whose Bernoulli code it gets; networks that draw none look at none.
    wanted: the class whose loss is to be differentiated, where the gradient is asked for and not the scores.
    Shapes: x (K, C, ...) or (K, T, C, ...).
    """

    x: Tensor
    steps: Sequence[int]
    wanted: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What the network says: class scores, or the gradient of the loss by what the network got.

    seen: what it got, a code where the input is encoded by draws.
    Shapes: seen (K, T, C, ...), or (K, C, ...) where the network takes no sequence; values (K, classes) or as seen.
    """

    seen: Tensor
    values: Tensor


Search = Generator[Ask, Answer, Outcome]


@dataclass(slots=True)
class _Slot:
    """One sample's search and what it waits for."""

    case: Case
    search: Search
    ask: Ask


def run_searches(
    victim: Network, cases: Iterable[Case], search: Callable[[Case], Search], settings: Settings
) -> Iterator[Outcome]:
    """The outcome of each case's search, in no fixed order; which run beside it changes nothing about one.

    Asks about one input run together, each at the place of its sample; those about several run by themselves. A
    success is asked for once more at the sample's own place, and counts only if it is one there too.

    Raises: CompileError for a case that does not fit the network.
    """
    return run_prepared(victim, ((case, search(case)) for case in cases), settings)


def run_prepared(victim: Network, prepared: Iterable[tuple[Case, Search]], settings: Settings) -> Iterator[Outcome]:
    """As `run_searches`, for searches that know more than their case; one may end without a question.

    Raises: CompileError for a case that does not fit the network.
    """
    kind = attackable(victim, settings)
    queue = Lanes(((checked(case, victim), search) for case, search in prepared), lambda item: item[0].sample)
    slots: dict[int, _Slot] = {}
    while True:
        finished = {}
        for place, (case, search) in queue.fill(set(slots)):
            try:
                slots[place] = _Slot(case, search, next(search))
            except StopIteration as end:
                finished[place] = end.value
        if not slots and not finished:
            return
        answers = _answers(victim, kind, slots)
        for place, answer in answers.items():
            slot = slots[place]
            try:
                slot.ask = slot.search.send(answer)
            except StopIteration as end:
                finished[place] = end.value
                del slots[place]
        yield from _confirmed(victim, kind, finished)


def _answers(victim: Network, kind: Attackable, slots: dict[int, _Slot]) -> dict[int, Answer]:
    """To every slot's ask."""
    answers: dict[int, Answer] = {}
    for is_gradient in (False, True):
        asking = {place: slot for place, slot in slots.items() if (slot.ask.wanted is not None) == is_gradient}
        alone = {place: slot for place, slot in asking.items() if len(slot.ask.x) > 1}
        together = {place: slot for place, slot in asking.items() if place not in alone}
        if together:
            answers |= _asked(victim, kind, together, list(together))
        for place, slot in alone.items():
            answers |= _asked(victim, kind, {place: slot}, list(range(len(slot.ask.x))))
    return answers


def _asked(victim: Network, kind: Attackable, slots: dict[int, _Slot], places: list[int]) -> dict[int, Answer]:
    """All of one kind; the inputs go to the places, in the order of the slots."""
    axis = int(victim.has_time)
    rows = [(slot, x, step) for slot in slots.values() for x, step in zip(slot.ask.x, slot.ask.steps, strict=True)]
    seen = kind.seen(_batch(kind, rows))
    if next(iter(slots.values())).ask.wanted is None:
        values = victim.scores(seen, places)
    else:
        wanted = torch.tensor([slot.ask.wanted for slot, _, _ in rows])
        values = victim.gradient(seen, wanted, places).movedim(axis, 0)
    seen = seen.movedim(axis, 0)
    answers, at = {}, 0
    for place, slot in slots.items():
        own = slice(at, at + len(slot.ask.x))
        answers[place] = Answer(seen=seen[own], values=values[own])
        at = own.stop
    return answers


def _batch(kind: Attackable, rows: Sequence[tuple[_Slot, Tensor, int]]) -> Batch:
    now = torch.stack([x for _, x, _ in rows], kind.axis)
    samples, steps = [slot.case.sample for slot, _, _ in rows], [step for _, _, step in rows]
    return Batch(samples=samples, steps=steps, clean=now, now=now)


def _confirmed(victim: Network, kind: Attackable, outcomes: dict[int, Outcome]) -> Iterator[Outcome]:
    """Outcomes, of which no success is left that the sample's own place does not repeat."""
    successes = {place: outcome for place, outcome in outcomes.items() if outcome.status is Status.SUCCESS}
    repeated = judged(victim, kind, list(successes.values()), list(successes)) if successes else []
    verdicts = dict(zip(successes, repeated, strict=True))
    for place, outcome in outcomes.items():
        if place in verdicts:
            status = Status.SUCCESS if verdicts[place] else Status.FAILURE
            yield replace(outcome, status=status, queries=outcome.queries + 1)
        else:
            yield outcome


def judged(victim: Network, kind: Attackable, outcomes: Sequence[Outcome], places: Sequence[int]) -> list[bool]:
    """Whether each outcome's example is what its attacker wants, under the code of its own draw."""
    now = torch.stack([torch.from_numpy(outcome.adversarial) for outcome in outcomes], kind.axis)
    samples, steps = [outcome.case.sample for outcome in outcomes], [outcome.draw for outcome in outcomes]
    scores = victim.scores(kind.seen(Batch(samples=samples, steps=steps, clean=now, now=now)), places)
    cases = [outcome.case for outcome in outcomes]
    wanted = torch.tensor([case.label if case.target is None else case.target for case in cases])
    hits = {flag: succeeds(scores, wanted, targeted=flag) for flag in (False, True)}
    return [bool(hits[case.target is not None][at]) for at, case in enumerate(cases)]
