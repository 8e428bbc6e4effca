"""Few flips: one spike after the other, the best of those that the gradient proposes; and fewer flips of an example."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import combinations

import numpy as np
import torch
from torch import Tensor

from compiler.attack.flips import Asking, Indices, Inquiry, check_spikes, gains, most_flips, with_flips
from compiler.attack.perturbation import perturbation
from compiler.attack.randomness import Purpose, uniform_draws
from compiler.attack.reduce import needed
from compiler.attack.searches import Search, run_prepared, run_searches
from compiler.attack.settings import Case, Outcome, Settings, Status
from compiler.attack.sparse import by_need, grown
from compiler.attack.victim import BLOCK, Victim

CANDIDATES = 32  # single flips that are tried in each round
QUERIES = 1000  # that a refinement asks of one sample at most
PARTS = 6  # iterations in which a refinement's own generation makes as many flips as the example has
ROUNDS = 20  # of its iterations


def attack(
    victim: Victim, cases: Iterable[Case], settings: Settings, *, candidates: int = CANDIDATES
) -> Iterator[Outcome]:
    """Flip the best single spike until the attack succeeds, then take back what is not needed.

    Each round tries the `candidates` elements whose flips promise most by the gradient of the margin, and keeps the
    flip after which the margin is largest; of equals the one that promised more, at random where none promises
    anything. `settings.iterations` bounds the flips, as its budget and epsilon do; there are no restarts. The margin
    is the lead of the target, or of the best class other than the label.

    A round costs two gradients and `candidates` queries.

    Raises: CompileError for a network that does not take spikes, or a case that does not fit it.
    """
    check_spikes(victim, "single spikes are flipped")
    return run_searches(victim, cases, lambda case: _search(case, settings, candidates), settings)


def refine(
    victim: Victim,
    outcomes: Iterable[Outcome],
    settings: Settings,
    *,
    queries: int = QUERIES,
    candidates: int = CANDIDATES,
) -> Iterator[Outcome]:
    """Each success with fewer flips where they are found, in no fixed order; other outcomes as they are.

    Meant for what `reduce_flips` leaves. First examples are generated and reduced anew as `sparse.attack` does, but in
    equal steps of a sixth of the present number of flips, as long as that leaves fewer; then the greedy search looks
    for an example with fewer flips, from the clean input; then two flips are replaced by one, those that the margin at
    the example needs least by those that promise most, as long as that succeeds. An example never has more flips than
    before. At most `queries` queries a sample and one at the end.

    Raises: CompileError for a network that does not take spikes.
    """
    check_spikes(victim, "flips are replaced by fewer")
    prepared = ((outcome.case, _refinement(outcome, settings, queries, candidates)) for outcome in outcomes)
    return run_prepared(victim, prepared, settings)


def _search(case: Case, settings: Settings, candidates: int) -> Search:
    """From the clean input."""
    inquiry = Inquiry(case)
    scores = yield from inquiry.started()
    if scores is None:
        return inquiry.outcome(Status.CLEAN_ERROR, inquiry.clean)
    most = min(settings.updates, most_flips(settings, case.x.size))
    flips, status = yield from _climbed(inquiry, settings, scores, most, candidates)
    if status is Status.SUCCESS:
        flips = yield from needed(inquiry, flips, lambda some: with_flips(inquiry.clean, some))
    return inquiry.outcome(status, with_flips(inquiry.clean, flips))


def _refinement(before: Outcome, settings: Settings, queries: int, candidates: int) -> Search:
    """Of one outcome."""
    if before.status is not Status.SUCCESS:
        return before
    case, inquiry = before.case, Inquiry(before.case, queries)
    flips = np.flatnonzero(before.adversarial != case.x)
    if len(flips) > 1 and inquiry.left > 0:
        scores = yield from inquiry.scores(inquiry.clean.unsqueeze(0))
        flips = yield from _regrown(inquiry, settings, scores, flips)
        fewer, status = yield from _climbed(inquiry, settings, scores, len(flips) - 1, candidates)
        if status is Status.SUCCESS:
            flips = yield from needed(inquiry, fewer, lambda some: with_flips(inquiry.clean, some))
    while len(flips) > 2 and inquiry.left > 0:
        found = yield from _swapped(inquiry, flips, candidates)
        if found is None:
            break
        flips = yield from needed(inquiry, found, lambda some: with_flips(inquiry.clean, some))
    adversarial = with_flips(inquiry.clean, flips).numpy()
    return replace(
        before,
        adversarial=adversarial,
        perturbation=perturbation(case.x, adversarial),
        queries=before.queries + inquiry.queries,
        gradients=before.gradients + inquiry.gradients,
    )


def _regrown(inquiry: Inquiry, settings: Settings, scores: Tensor, flips: Indices) -> Asking[Indices]:
    """Fewer flips by generating and reducing again, with steps that fit the number of flips, as long as that helps."""
    while inquiry.left > ROUNDS:
        now, status = yield from grown(inquiry, settings, scores, [-(-len(flips) // PARTS)] * ROUNDS)
        if status is not Status.SUCCESS or inquiry.left <= 0:
            break
        found = yield from by_need(inquiry, now, np.flatnonzero(now.numpy() != inquiry.case.x))
        found = yield from needed(inquiry, found, lambda some: with_flips(inquiry.clean, some))
        if len(found) >= len(flips):
            break
        flips = found
    return flips


def _climbed(
    inquiry: Inquiry, settings: Settings, scores: Tensor, most: int, candidates: int
) -> Asking[tuple[Indices, Status]]:
    """Flips of the clean input, at most so many; scores are the clean input's."""
    flips: Indices = np.empty(0, np.int64)
    while len(flips) < most:
        now = with_flips(inquiry.clean, flips)
        ascent = yield from inquiry.ascent(now, scores)
        if not settings.flipping and not bool((ascent != 0).any()):
            return flips, Status.VANISHED
        # One query is left to confirm what is found.
        count = min(candidates, inquiry.left - 1)
        order = _promising(inquiry, settings, now, ascent, flips)[: max(0, int(count))]
        if not len(order):
            break
        tried = [np.append(flips, flip) for flip in order]
        every = yield from inquiry.scores(torch.stack([with_flips(inquiry.clean, some) for some in tried]))
        inquiry.iterations += 1
        found = yield from _confirmed(inquiry, tried, every)
        if found is not None:
            return found, Status.SUCCESS
        best = int(inquiry.margins(every).argmax())
        flips, scores = tried[best], every[best : best + 1]
    return flips, Status.FAILURE


def _promising(inquiry: Inquiry, settings: Settings, now: Tensor, ascent: Tensor, flips: Indices) -> Indices:
    """Elements that are not flipped, those first whose flips promise most; drawn where promises are equal."""
    step = [len(flips)]
    draws = uniform_draws(settings.seed, Purpose.FLIP, [inquiry.case.sample], step, inquiry.case.x.shape)
    order: Indices = np.lexsort((draws.flatten().numpy(), -gains(now, ascent)))
    return order[~np.isin(order, flips)]


def _confirmed(inquiry: Inquiry, tried: list[Indices], scores: Tensor) -> Asking[Indices | None]:
    """The first set of flips that succeeds by itself too, at the sample's own place in a block."""
    for some, hit in zip(tried, inquiry.hits(scores), strict=True):
        if hit and inquiry.left > 0:
            _, again = yield from inquiry.judged(with_flips(inquiry.clean, some))
            if again:
                return some
    return None


def _swapped(inquiry: Inquiry, flips: Indices, candidates: int) -> Asking[Indices | None]:
    """A set with one flip less: without two, those first that the gradient at the example needs least, and with one."""
    now = with_flips(inquiry.clean, flips)
    scores = yield from inquiry.scores(now.unsqueeze(0))
    promised = gains(now, (yield from inquiry.ascent(now, scores)))
    order = np.argsort(-promised, kind="stable")
    others = order[~np.isin(order, flips)][:candidates]
    pairs = sorted(combinations(flips, 2), key=lambda pair: -float(promised[list(pair)].sum()))
    for pair in pairs:
        kept = flips[~np.isin(flips, pair)]
        for start in range(0, len(others), BLOCK):
            count = int(min(BLOCK, inquiry.left - 1))
            tried = [np.append(kept, other) for other in others[start : start + max(0, count)]]
            if not tried:
                return None
            every = yield from inquiry.scores(torch.stack([with_flips(inquiry.clean, some) for some in tried]))
            found = yield from _confirmed(inquiry, tried, every)
            if found is not None:
                return found
    return None
