"""Few flips by many: flips that double in number until the attack succeeds, then only those that are needed."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
import torch
from torch import Tensor

from compiler.attack.flips import Asking, Indices, Inquiry, check_spikes, gains, with_flips
from compiler.attack.randomness import Purpose, uniform_draws
from compiler.attack.reduce import needed
from compiler.attack.searches import Search, run_searches
from compiler.attack.settings import Case, Outcome, Settings, Status
from compiler.attack.victim import Victim


def attack(victim: Victim, cases: Iterable[Case], settings: Settings) -> Iterator[Outcome]:
    """Generate an example, then reduce it.

    Iteration i flips the 2^i elements of the present input whose flips promise most by the gradients of the margin, of
    those that promise anything; earlier flips may so be undone. What counts is the sum of the gradients of all
    iterations so far, each over its largest element. Where the gradient vanishes, each element flips with the
    probability gamma (equation 5.8). Of the first example that succeeds the flips are taken back of which none can be
    spared by itself. Nothing is drawn but for vanished gradients, and there are no restarts. Whether the example lies
    inside budget and epsilon is judged after that; one that needs too many flips keeps those of the budget's
    number that its margin needs most, and so do the last flips where nothing succeeds; what is left is judged anew.

    Raises: CompileError for a network that does not take spikes, or a case that does not fit it.
    Source: the two phases are those of the sparse dynamic attack (Lun et al., CVPR 2025, arXiv 2503.03272); the growth,
    the summed gradients of the margin in place of a loss, and the reduction by halved runs are this library's own.
    """
    check_spikes(victim, "spikes are flipped")
    return run_searches(victim, cases, lambda case: _search(case, settings), settings)


def _search(case: Case, settings: Settings) -> Search:
    inquiry = Inquiry(case)
    scores = yield from inquiry.started()
    if scores is None:
        return inquiry.outcome(Status.CLEAN_ERROR, inquiry.clean)
    now, status = yield from grown(inquiry, settings, scores, (2**step for step in range(settings.updates)))
    flips = np.flatnonzero(now.numpy() != case.x)
    budget = None if settings.budget is None else settings.budget.flips
    if status is Status.SUCCESS or (budget is not None and len(flips) > budget):
        flips = yield from by_need(inquiry, now, flips)
    if status is Status.SUCCESS:
        flips = yield from needed(inquiry, flips, lambda some: with_flips(inquiry.clean, some))
    if budget is not None and len(flips) > budget:
        flips, status = yield from _cut(inquiry, flips[len(flips) - budget :], status)
    if len(flips) / case.x.size > settings.epsilon:
        status = Status.OUT_OF_BOUND
    return inquiry.outcome(status, with_flips(inquiry.clean, flips))


def _cut(inquiry: Inquiry, flips: Indices, status: Status) -> Asking[tuple[Indices, Status]]:
    """Flips that a budget has left of more, judged anew: some succeed where all of them together do not."""

    def example(some: Indices) -> Tensor:
        return with_flips(inquiry.clean, some)

    _, is_hit = yield from inquiry.judged(example(flips))
    if is_hit:
        return (yield from needed(inquiry, flips, example)), Status.SUCCESS
    return flips, Status.FAILURE if status is Status.SUCCESS else status


def grown(inquiry: Inquiry, settings: Settings, scores: Tensor, counts: Iterable[int]) -> Asking[tuple[Tensor, Status]]:
    """The first input that succeeds, or the last one, with so many flips in each iteration, as `attack` says.

    scores: the clean input's.
    """
    now, heading = inquiry.clean, torch.zeros_like(inquiry.clean)
    for step, count in enumerate(counts):
        ascent = yield from inquiry.ascent(now, scores)
        largest = ascent.abs().max()
        if largest > 0:
            heading += ascent / largest
            promised = gains(now, heading)
            order = np.argsort(-promised, kind="stable")[:count]
            flips = order[promised[order] > 0]
        elif settings.flipping:
            draws = uniform_draws(settings.seed, Purpose.FLIP, [inquiry.case.sample], [step], inquiry.case.x.shape)
            flips = np.flatnonzero(draws.numpy() < settings.gamma)
        else:
            return now, Status.VANISHED
        now = with_flips(now, flips)
        inquiry.iterations += 1
        scores, is_hit = yield from inquiry.judged(now)
        if is_hit:
            return now, Status.SUCCESS
    return now, Status.FAILURE


def by_need(inquiry: Inquiry, now: Tensor, flips: Indices) -> Asking[Indices]:
    """Flips of an input, those first that its margin needs least by the gradient."""
    scores = yield from inquiry.scores(now.unsqueeze(0))
    back = gains(now, (yield from inquiry.ascent(now, scores)))[flips]
    return flips[np.argsort(-back, kind="stable")]
