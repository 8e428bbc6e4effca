"""Trial and error: change one thing, look at the scores, keep what helps most."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

from compiler.attack.flips import check_spikes, most_flips, with_flips
from compiler.attack.network import Network
from compiler.attack.probe import Probe, takes_spikes
from compiler.attack.searches import Search, run_searches
from compiler.attack.settings import Case, Outcome, Settings, Status
from compiler.attack.victim import Victim
from compiler.attack.windows import positions, tiles
from compiler.ir import CompileError

CANDIDATES = 64  # spikes tried before one is flipped
SIDE = 2  # of a block, in pixels
UNIT = 0.2  # what a block changes by unless the settings have a step


def spikes_attack(victim: Victim, cases: Iterable[Case], settings: Settings) -> Iterator[Outcome]:
    """In each iteration, flip the spike that lowers the margin most, of 64 random ones; none if none lowers it.

    Queries: one of the clean sample, 64 an iteration (as many as there are elements, of smaller inputs), one that
    confirms a success. It ends with the first success, or when the budget or epsilon lets no further spike flip.

    Source: after Bagheri et al., SPAWC 2018, who look at all spikes (table 5.1: Iter * N * C_FP).
    Raises: CompileError for a network that does not take spikes, a budget below one flip, a case that does not fit.
    """
    check_spikes(victim, "method trial-spikes flips spikes")
    return run_searches(victim, cases, lambda case: _spikes(case, settings), settings)


def pixels_attack(victim: Network, cases: Iterable[Case], settings: Settings) -> Iterator[Outcome]:
    """In each iteration, raise or lower the block of 2 x 2 pixels by one unit that leaves the lowest margin.

    All channels of a block change alike, values stay in [0, 1]; of features without positions a block is two of
    them. The unit is the settings' step, 0.2 unless given. Bernoulli codes are drawn anew for each query.

    Queries: one of the clean sample, two for each block and iteration but those that change nothing, one that
    confirms a success. It ends with the first success, or beyond epsilon.

    Source: after Marchisio et al., arXiv 1902.01147 (table 5.1: Iter * N * 2 C_FP).
    Raises: CompileError for a network that takes spikes, and for a case that does not fit it.
    """
    node = victim.graph.input
    if takes_spikes(victim):
        message = f"{node.name}: method trial-pixels changes intensities, and the network takes spikes"
        raise CompileError(message, node.loc, hint="trial-spikes flips spikes")
    return run_searches(victim, cases, lambda case: _pixels(case, settings), settings)


def _spikes(case: Case, settings: Settings) -> Search:
    probe = Probe(case, settings)
    if (found := (yield from probe.clean_error())) is not None:
        return found
    most = most_flips(settings, case.x.size)
    now, margin = probe.clean, probe.clean_margin
    for iteration in range(1, settings.iterations + 1):
        if int((now != probe.clean).sum()) == most:
            return probe.outcome(Status.FAILURE, now, iteration - 1, 0)
        places = probe.rng.permutation(now.numel())[:CANDIDATES]
        candidates = torch.stack([with_flips(now, places[n : n + 1]) for n in range(len(places))])
        replies = yield from probe.asked(candidates)
        best = replies.best
        if float(replies.margins[best]) >= margin:
            continue
        now, margin = candidates[best], float(replies.margins[best])
        if replies.successes[best]:
            return probe.outcome(Status.SUCCESS, now, iteration, 0)
    return probe.outcome(Status.FAILURE, now, settings.iterations, 0)


def _pixels(case: Case, settings: Settings) -> Search:
    probe = Probe(case, settings)
    if (found := (yield from probe.clean_error())) is not None:
        return found
    blocks = tiles(positions(case.x.shape), SIDE)
    now, draw = probe.clean, 0
    for iteration in range(1, settings.iterations + 1):
        candidates = _moved(probe, now, blocks)
        if not candidates:
            return probe.outcome(Status.FAILURE, now, iteration - 1, draw)
        order = probe.rng.permutation(len(candidates))
        shuffled = torch.stack([candidates[int(at)] for at in order])
        replies = yield from probe.asked(shuffled)
        best = replies.best
        now, draw = shuffled[best], replies.draws[best]
        status = Status.SUCCESS if replies.successes[best] else Status.FAILURE
        outcome = probe.outcome(status, now, iteration, draw)
        if status is Status.SUCCESS or outcome.status is Status.OUT_OF_BOUND:
            return outcome
    return probe.outcome(Status.FAILURE, now, settings.iterations, draw)


def _moved(probe: Probe, now: Tensor, blocks: list[Tensor]) -> list[Tensor]:
    """The image with one block raised or lowered, for each block, where that changes anything."""
    unit = UNIT if probe.settings.step is None else probe.settings.step
    moved = (probe.inside((now + sign * unit * block).clamp(0, 1)) for block in blocks for sign in (1.0, -1.0))
    return [x for x in moved if not torch.equal(x, now)]
