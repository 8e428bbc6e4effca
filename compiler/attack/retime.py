"""Moves spikes in time: what each channel and position receives over all steps stays as it was."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from compiler.attack.flips import Asking, Indices, Inquiry, check_spikes, most_flips
from compiler.attack.randomness import Purpose, uniform_draws
from compiler.attack.reduce import needed
from compiler.attack.searches import Search, run_searches
from compiler.attack.settings import Case, Floats, Outcome, Settings, Status
from compiler.attack.victim import BLOCK, Victim
from hwmodel.errors import CompileError, Loc

MOMENTUM = 0.9  # of the gradients of earlier iterations


@dataclass(frozen=True, slots=True, kw_only=True)
class RetimeBudget:
    """What an attacker may move; None for any number.

    moved: spikes (B_0). shift: time steps by which each is moved (B_inf). total: time steps of all together (B_1).
    Raises: CompileError for a limit below 1.
    Source: Yu et al., ICLR 2026, arXiv 2602.03284.
    """

    moved: int | None = None
    shift: int | None = None
    total: int | None = None

    def __post_init__(self) -> None:
        for name in ("moved", "shift", "total"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise CompileError(f"the retiming budget's {name} is {value}, must be at least 1", Loc("attack"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Retiming:
    """How spikes were moved: their number, the largest move and the sum of all, both in time steps."""

    moved: int
    shift: int
    total: int


def retiming(before: Floats, after: Floats) -> Retiming:
    """The moves between two inputs, the fewest that there can be.

    At each channel and position the spikes that both have stay, and the i-th of those that only `before` has becomes
    the i-th of those that only `after` has: no other way has fewer moves or a smaller sum, and none that moves as
    few has a smaller largest move.

    Shapes: both (T, C, ...).
    Raises: ValueError if a position has another number of spikes in one than in the other.
    """
    left, right = ((a * (1 - b)).reshape(len(a), -1) for a, b in ((before, after), (after, before)))
    if not np.array_equal(left.sum(0), right.sum(0)):
        raise ValueError("a position has another number of spikes")
    # Of the transposed arrays the places are in the order of positions, and of times within each.
    shifts = np.abs(np.nonzero(left.T)[1] - np.nonzero(right.T)[1])
    return Retiming(moved=len(shifts), shift=int(shifts.max(initial=0)), total=int(shifts.sum()))


def attack(
    victim: Victim, cases: Iterable[Case], settings: Settings, *, budget: RetimeBudget | None = None
) -> Iterator[Outcome]:
    """Move spikes in time until the attack succeeds, then move back those that need not be elsewhere.

    Moving a spike from t to t' promises g[t'] - g[t], with g the sum of the margin's gradients in all iterations so
    far, each over its largest element, those i iterations ago times 0.9^i. Iteration i moves the 2^i spikes that
    promise most, each to its best step, or, of a limited total, those that promise most for each time step. Where
    nothing more may be moved, a quarter of the moves goes back first, those that promise least. Where the gradient
    vanishes, moves of the share gamma of the spikes are drawn.

    If all that fails, moves are looked for one after the other, again from the clean input: a block of those that
    promise most by the gradient at the present input is tried, and the move after which the margin is largest is kept.
    `settings.iterations` bounds the iterations, and then these rounds. A spike moves once, to a step at which the clean
    input has none there, so that any part of the moves is a retiming too.

    All limits are hard for whatever is handed over, the limits of the settings too, where a move counts as two flips.
    There are no restarts.

    Raises: CompileError for a network that does not take spikes, or a case that does not fit it.
    Source: the limits are those of Yu et al., ICLR 2026, arXiv 2602.03284; the search is this library's own.
    """
    check_spikes(victim, "spikes are moved in time")
    limits = RetimeBudget() if budget is None else budget
    return run_searches(victim, cases, lambda case: _search(case, settings, limits), settings)


@dataclass(frozen=True, slots=True)
class _Train:
    """The clean spikes as (T, positions), and what may be done with them. Moves are rows of position, from, to."""

    clean: npt.NDArray[np.float32]
    budget: RetimeBudget
    most: int  # moves

    def moved(self, moves: Indices) -> npt.NDArray[np.float32]:
        """The spikes after some moves."""
        now = self.clean.copy()
        now[moves[:, 1], moves[:, 0]] = 0
        now[moves[:, 2], moves[:, 0]] = 1
        return now

    def proposed(self, moves: Indices, direction: npt.NDArray[np.float32]) -> Indices:
        """The best move of each spike that stands where it was, those that promise most first, if they promise any."""
        steps = np.arange(len(self.clean))
        now = self.moved(moves)
        times, positions = np.nonzero((self.clean == 1) & (now == 1))
        promised = direction.T[positions] - direction[times, positions][:, None]
        distance = np.abs(steps - times[:, None])
        if self.budget.total is not None:
            promised = promised / np.maximum(distance, 1)
        shift = len(steps) if self.budget.shift is None else self.budget.shift
        allowed = ((self.clean + now).T[positions] == 0) & (distance <= shift)
        promised = np.where(allowed, promised, -np.inf)
        best = promised.argmax(1)
        value = promised[np.arange(len(times)), best]
        order = np.argsort(-value, kind="stable")
        order = order[value[order] > 0]
        found: Indices = np.stack([positions, times, best], 1)[order]
        return found

    def extended(self, moves: Indices, proposed: Indices, count: int) -> Indices:
        """The moves with the first of the proposed ones that fit, at most so many."""
        taken = {(position, to) for position, _, to in moves.tolist()}
        total = int(np.abs(moves[:, 2] - moves[:, 1]).sum())
        added: list[list[int]] = []
        for position, start, to in proposed.tolist():
            if len(added) == count or len(moves) + len(added) == self.most:
                break
            longer = total + abs(to - start)
            if (position, to) in taken or (self.budget.total is not None and longer > self.budget.total):
                continue
            taken.add((position, to))
            total = longer
            added.append([position, start, to])
        return np.concatenate([moves, np.array(added, np.int64).reshape(-1, 3)])


def _search(case: Case, settings: Settings, budget: RetimeBudget) -> Search:
    inquiry = Inquiry(case)
    scores = yield from inquiry.started()
    if scores is None:
        return inquiry.outcome(Status.CLEAN_ERROR, inquiry.clean)
    spikes = int(case.x.sum())
    most = min(spikes if budget.moved is None else budget.moved, most_flips(settings, case.x.size) // 2)
    train = _Train(case.x.reshape(len(case.x), -1), budget, most)
    moves, status = yield from _generated(inquiry, settings, train, scores)
    if status is Status.FAILURE:
        moves, status = yield from _climbed(inquiry, settings, train, scores)
    if status is Status.SUCCESS:
        now = _example(inquiry, train, moves)
        ascent = yield from inquiry.ascent(now, (yield from inquiry.scores(now.unsqueeze(0))))
        order = np.argsort(_promise(moves, _flat(ascent)), kind="stable")
        moves = yield from needed(inquiry, moves[order], lambda some: _example(inquiry, train, some))
    return inquiry.outcome(status, _example(inquiry, train, moves))


def _generated(inquiry: Inquiry, settings: Settings, train: _Train, scores: Tensor) -> Asking[tuple[Indices, Status]]:
    """The first moves that succeed, or the last ones; scores are the clean input's."""
    moves: Indices = np.empty((0, 3), np.int64)
    heading = np.zeros_like(train.clean)
    for step in range(settings.updates):
        gradient = _flat((yield from inquiry.ascent(_example(inquiry, train, moves), scores)))
        if gradient.any():
            heading = MOMENTUM * heading + gradient / np.abs(gradient).max()
            direction, count = heading, 2**step
        elif settings.flipping:
            direction = _drawn(inquiry.case, settings, step)
            count = max(1, int(settings.gamma * train.clean.sum()))
        else:
            return moves, Status.VANISHED
        after = train.extended(moves, train.proposed(moves, direction), count)
        if len(after) == len(moves):
            kept = moves[np.argsort(-_promise(moves, direction), kind="stable")[: len(moves) * 3 // 4]]
            after = train.extended(kept, train.proposed(kept, direction), count)
        if np.array_equal(train.moved(after), train.moved(moves)):
            return moves, Status.FAILURE
        moves = after
        inquiry.iterations += 1
        scores, is_hit = yield from inquiry.judged(_example(inquiry, train, moves))
        if is_hit:
            return moves, Status.SUCCESS
    return moves, Status.FAILURE


def _climbed(inquiry: Inquiry, settings: Settings, train: _Train, scores: Tensor) -> Asking[tuple[Indices, Status]]:
    """The first moves that succeed, or the last ones, found one by one; scores are the clean input's."""
    moves: Indices = np.empty((0, 3), np.int64)
    for _ in range(settings.updates):
        direction = _flat((yield from inquiry.ascent(_example(inquiry, train, moves), scores)))
        proposed = train.proposed(moves, direction)
        every = (train.extended(moves, one[None], 1) for one in proposed)
        tried = list(islice((some for some in every if len(some) > len(moves)), BLOCK))
        if not tried:
            break
        inquiry.iterations += 1
        answers = yield from inquiry.scores(torch.stack([_example(inquiry, train, some) for some in tried]))
        for some, hit in zip(tried, inquiry.hits(answers), strict=True):
            if hit and (yield from inquiry.judged(_example(inquiry, train, some)))[1]:
                return some, Status.SUCCESS
        best = int(inquiry.margins(answers).argmax())
        moves, scores = tried[best], answers[best : best + 1]
    return moves, Status.FAILURE


def _drawn(case: Case, settings: Settings, step: int) -> npt.NDArray[np.float32]:
    """A random direction."""
    return _flat(uniform_draws(settings.seed, Purpose.FLIP, [case.sample], [step], case.x.shape)[:, 0])


def _example(inquiry: Inquiry, train: _Train, moves: Indices) -> Tensor:
    return inquiry.clean.new_tensor(train.moved(moves)).reshape(inquiry.case.x.shape)


def _promise(moves: Indices, direction: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Of moves done, what each adds to the margin at the input that the direction is of."""
    added: npt.NDArray[np.float32] = direction[moves[:, 2], moves[:, 0]] - direction[moves[:, 1], moves[:, 0]]
    return added


def _flat(x: Tensor) -> npt.NDArray[np.float32]:
    """(T, C, ...) as (T, positions)."""
    flat: npt.NDArray[np.float32] = x.reshape(len(x), -1).numpy()
    return flat
