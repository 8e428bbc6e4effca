"""Random search: change the input at random, keep what lowers the margin."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from compiler.attack.budget import Budget, Norm
from compiler.attack.flips import Indices, most_flips, with_flips
from compiler.attack.network import Network
from compiler.attack.probe import QUERIES, Probe, takes_spikes
from compiler.attack.searches import Search, run_searches
from compiler.attack.settings import Case, Outcome, Settings, Status
from compiler.attack.victim import BLOCK
from compiler.attack.windows import positions, window
from compiler.ir import CompileError, Encoding, Loc

# From 0.8 the share that changes at once is halved when so much of the queries is used up.
_SHARE = 0.8
_HALVINGS = (0.001, 0.005, 0.02, 0.1, 0.2, 0.4, 0.6, 0.8)
_SHRINK = 0.8  # of the flips, after a success


def attack(
    victim: Network, cases: Iterable[Case], settings: Settings, *, queries: int | None = None
) -> Iterator[Outcome]:
    """Search by scores alone, in no fixed order of the cases.

    Intensities are moved to the ends of a linf budget: at first in stripes of one column, each channel with a random
    sign, then in squares, kept when the margin falls. Their area shrinks from 0.8 of the image. A case ends with its
    first success.

    Spikes: a set of flips, of the budget's number or the share gamma of all elements, has a part of it, shrinking
    from 0.8, replaced by others, kept when the margin falls. After a success the search goes on with 0.8 of its
    flips; the outcome is the success with the fewest.

    Sixteen candidates are asked about at once and the best is looked at; where codes are drawn, the present input is
    one of them, so that luck does not stay. queries: of a case, with that of the clean sample, without the one that
    confirms a success; 64 for each iteration unless given.

    Source: after the square attack (Andriushchenko et al., ECCV 2020) and Sparse-RS (Croce et al., AAAI 2022).
    Raises: CompileError without a linf budget for intensities; with one below a flip for spikes; for a case that
    does not fit the network.
    """
    limit = QUERIES * settings.iterations if queries is None else queries
    if takes_spikes(victim):
        return run_searches(victim, cases, lambda case: _spikes(case, settings, limit), settings)
    budget = settings.budget
    if budget is None or budget.norm is not Norm.LINF:
        given = "none is given" if budget is None else f"the budget given is {budget.norm}"
        hint = "give a bound of each intensity's change, as linf 0.1"
        raise CompileError(
            f"method random moves intensities within a linf budget, and {given}", Loc("attack"), hint=hint
        )
    redraws = victim.encoding is Encoding.BERNOULLI
    return run_searches(victim, cases, lambda case: _image(case, settings, budget, limit, redraws=redraws), settings)


def share(used: float) -> float:
    """What part of the input changes at once, when so much of the queries is used up."""
    return _SHARE * 0.5 ** sum(used >= point for point in _HALVINGS)


def _image(case: Case, settings: Settings, budget: Budget, limit: int, *, redraws: bool) -> Search:
    probe = Probe(case, settings)
    if (found := (yield from probe.clean_error())) is not None:
        return found
    now, margin, draw = probe.clean, probe.clean_margin, 0
    rounds = 0
    while (room := min(BLOCK, limit - probe.queries)) > redraws:
        part = share(probe.queries / limit)
        moved = [_stripes(probe, budget) if rounds == 0 else _square(probe, budget, now, part) for _ in range(room)]
        if redraws:
            moved[0] = now
        rounds += 1
        replies = yield from probe.asked(torch.stack(moved))
        margin = float(replies.margins[0]) if redraws else margin
        best = replies.best
        if replies.successes[best]:
            return probe.outcome(Status.SUCCESS, moved[best], rounds, replies.draws[best])
        if float(replies.margins[best]) < margin:
            now, margin, draw = moved[best], float(replies.margins[best]), replies.draws[best]
    return probe.outcome(Status.FAILURE, now, rounds, draw)


def _stripes(probe: Probe, budget: Budget) -> Tensor:
    """Each channel and column at an end of the budget."""
    shape = probe.clean.shape
    signs = probe.rng.integers(0, 2, (*shape[: -len(positions(shape))], shape[-1])) * 2 - 1
    change = torch.from_numpy(signs).float() * budget.bound
    if len(positions(shape)) == 2:
        change = change.unsqueeze(-2)
    return probe.inside((probe.clean + change).clamp(0, 1))


def _square(probe: Probe, budget: Budget, now: Tensor, part: float) -> Tensor:
    """One square at an end of the budget, each channel with its own sign."""
    shape = probe.clean.shape
    extents = positions(shape)
    side = min(max(1, round((part * float(np.prod(extents))) ** (1 / len(extents)))), *extents)
    corner = [int(probe.rng.integers(0, size - side + 1)) for size in extents]
    signs = probe.rng.integers(0, 2, (*shape[: -len(extents)], *(1,) * len(extents))) * 2 - 1
    moved = (probe.clean + torch.from_numpy(signs).float() * budget.bound).clamp(0, 1)
    return probe.inside(torch.where(window(extents, corner, side), moved, now))


def _spikes(case: Case, settings: Settings, limit: int) -> Search:
    probe = Probe(case, settings)
    if (found := (yield from probe.clean_error())) is not None:
        return found
    elements = case.x.size
    is_told = settings.budget is not None and settings.budget.flips is not None
    size = elements if is_told else max(1, round(settings.gamma * elements))
    size = min(size, most_flips(settings, elements))
    now, margin, rounds = np.empty(0, np.int64), float("inf"), 0
    best: Outcome | None = None
    candidates = [_chosen(probe, np.arange(elements), size) for _ in range(BLOCK)]
    while size and (room := min(BLOCK, limit - probe.queries)) > 0:
        rounds += 1
        candidates = candidates[:room]
        replies = yield from probe.asked(torch.stack([with_flips(probe.clean, flips) for flips in candidates]))
        at = replies.best
        if replies.successes[at]:
            x = with_flips(probe.clean, candidates[at])
            best = probe.outcome(Status.SUCCESS, x, rounds, 0)
            size = int(size * _SHRINK) if size > 1 else 0
            margin, source = float("inf"), candidates[at]
            candidates = [_chosen(probe, source, size) for _ in range(BLOCK)]
            continue
        if float(replies.margins[at]) < margin:
            now, margin = candidates[at], float(replies.margins[at])
        count = max(1, round(share(probe.queries / limit) * size))
        candidates = [_replaced(probe, now, count) for _ in range(BLOCK)]
    if best is None:
        return probe.outcome(Status.FAILURE, with_flips(probe.clean, now), rounds, 0)
    return replace(best, iterations=rounds, queries=probe.queries)


def _chosen(probe: Probe, places: Indices, size: int) -> Indices:
    chosen: Indices = probe.rng.permutation(places)[:size]
    return chosen


def _replaced(probe: Probe, flips: Indices, count: int) -> Indices:
    """So many of the flips given up for others that are none of them."""
    others = np.setdiff1d(np.arange(probe.case.x.size), flips)
    fresh = _chosen(probe, others, count)
    kept = _chosen(probe, flips, len(flips) - len(fresh))
    return np.concatenate([kept, fresh])
