"""Takes back the changes that an adversarial example of spikes does not need."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace

import numpy as np
from torch import Tensor

from compiler.attack.flips import Asking, Indices, Inquiry, check_spikes, class_of, with_flips
from compiler.attack.perturbation import perturbation
from compiler.attack.searches import Ask, Search, run_prepared
from compiler.attack.settings import Outcome, Settings, Status
from compiler.attack.victim import Victim


def reduce_flips(victim: Victim, outcomes: Iterable[Outcome]) -> Iterator[Outcome]:
    """Each success with fewer flips, in no fixed order; other outcomes as they are.

    What is left is minimal in the sense that no single flip can be taken back. Flips go in the order of the gradient
    at the example, the weakest first, in runs that are halved. One query a try and one at the end, one gradient a
    sample.

    Raises: CompileError for a network that does not take spikes.
    """
    check_spikes(victim, "flips are taken back of spikes")
    prepared = ((outcome.case, _reduction(outcome)) for outcome in outcomes)
    return run_prepared(victim, prepared, Settings())


def needed(inquiry: Inquiry, changes: Indices, example: Callable[[Indices], Tensor]) -> Asking[Indices]:
    """The changes of which no single one can be taken back, or what is left of them when the queries are spent.

    changes: along the first axis, those first that should go first; `example` is the input with some of them.
    All of them together succeed.
    """
    size = max(1, len(changes) // 2)
    at, has_changed = 0, False
    while len(changes) and inquiry.left > 0:
        fewer = np.delete(changes, slice(at, at + size), axis=0)
        _, still = yield from inquiry.judged(example(fewer))
        if still:
            changes, has_changed = fewer, True
        else:
            at += size
        if at < len(changes):
            continue
        if size == 1 and not has_changed:
            break
        size = max(1, min(size, len(changes)) // 2)
        at, has_changed = 0, False
    return changes


def _reduction(before: Outcome) -> Search:
    """Of one outcome."""
    if before.status is not Status.SUCCESS:
        return before
    case, inquiry = before.case, Inquiry(before.case)
    flips = np.flatnonzero(before.adversarial != case.x)
    now = with_flips(inquiry.clean, flips)
    answer = yield Ask(x=now.unsqueeze(0), steps=[0], wanted=class_of(case))
    order = np.argsort(answer.values[0].abs().flatten().numpy()[flips], kind="stable")
    kept = yield from needed(inquiry, flips[order], lambda some: with_flips(inquiry.clean, some))
    adversarial = with_flips(inquiry.clean, kept).numpy()
    return replace(
        before,
        adversarial=adversarial,
        perturbation=perturbation(case.x, adversarial),
        queries=before.queries + inquiry.queries,
        gradients=before.gradients + 1,
    )
