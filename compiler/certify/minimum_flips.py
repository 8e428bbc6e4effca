"""The least number of flipped spikes that changes a decision, with a proof or a proven lower bound."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from compiler.certify.exact import (
    Answer,
    Effort,
    Floats,
    Goal,
    batch_of,
    decide_goal,
    modelled,
    replayed,
    require_solver,
    solver_for,
)
from compiler.certify.input_sets import Flips, L0Ball
from compiler.certify.integer_network import IntegerNetwork, lower
from compiler.ir import CompileError, Graph, Loc

PROOF_SHARE = 0.6  # of the time is for proofs that few flips do not suffice, before any input is looked for


@dataclass(frozen=True, slots=True, kw_only=True)
class MinimumFlips:
    """The least number of flips that changes a decision.

    example: an input with `flips` flips that does, replayed in integers; flips and it are None if none was found.
    lower: no input with fewer flips does: that is proved. Where it is one more than the elements that may flip, none
    at all does.
    """

    flips: int | None
    lower: int
    example: Floats | None
    seconds: float

    @property
    def is_optimal(self) -> bool:
        return self.flips == self.lower


def minimum_flips(
    graph: Graph,
    clean: Floats,
    label: int,
    *,
    target: int | None = None,
    mask: npt.NDArray[np.bool_] | None = None,
    flips: Flips = Flips.BOTH,
    known: Floats | None = None,
    effort: Effort | None = None,
) -> MinimumFlips:
    """The least number of flipped spikes that takes the label's win away, or gives the win to a target alone.

    Balls of 0, 1, 2, ... flips are decided one after the other, each with bounds that know its size. Where that takes
    too long, the rest of the time goes to a search for few flips among all, which may prove more. No flip of an example
    that is not proved to be the least can be taken back alone.

    known: an input that an attack found; a proof that fewer flips do not suffice then ends the search. One that is no
        such input in integers counts for nothing. An attack finds fewer flips than the search does on a large network.
    Raises: CompileError as `decide`, and for a known input with other changes than the flips that are allowed.
    """
    started = time.perf_counter()
    given = effort or Effort()
    network, goal = lower(graph), Goal(label=label, target=target)
    still = L0Ball(clean=clean, k=0, mask=mask, flips=flips)
    every = replace(still, k=int(still.free.sum()))
    best = _checked(network, known, every, goal)
    ends = started + given.seconds
    share = 1.0 if best is not None else PROOF_SHARE
    k, found = _deepened(network, still, goal, given, best, started + share * given.seconds)
    best = best if found is None else found
    if k <= every.k and best is None:
        k, best = _searched(network, every, goal, replace(given, seconds=ends - time.perf_counter()), k)
    count = None if best is None else _distance(best, still.clean)
    return MinimumFlips(flips=count, lower=k, example=best, seconds=time.perf_counter() - started)


def _deepened(
    network: IntegerNetwork, still: L0Ball, goal: Goal, effort: Effort, known: Floats | None, ends: float
) -> tuple[int, Floats | None]:
    """The number of flips below which there is no hit, and a hit with as many if it was found."""
    limit = int(still.free.sum()) + 1 if known is None else _distance(known, still.clean)
    for k in range(limit):
        left = ends - time.perf_counter()
        if left <= 0:
            return k, None
        verdict = decide_goal(network, replace(still, k=k), goal, replace(effort, seconds=left), {})
        if verdict.answer is not Answer.ROBUST:
            return k, verdict.counterexample
    return limit, None


def _searched(
    network: IntegerNetwork, every: L0Ball, goal: Goal, effort: Effort, proven: int
) -> tuple[int, Floats | None]:
    """The same by minimising over all inputs, of which none with fewer than the proven number of flips is a hit."""
    started = time.perf_counter()
    cp_model = require_solver()
    spiking, is_possible = modelled(network, every, goal, {})
    if not is_possible:
        return every.k + 1, None
    clean = every.clean.reshape(-1)
    count = sum(spiking.bits.flipped(int(clean[position]), position) for position in spiking.bits.at)
    spiking.model.add(count >= proven)
    spiking.model.minimize(count)
    solver = solver_for(replace(effort, seconds=effort.seconds - (time.perf_counter() - started)))
    status = solver.solve(spiking.model)
    if status == cp_model.INFEASIBLE:
        return every.k + 1, None
    if status == cp_model.UNKNOWN:
        return proven, None
    best = replayed(spiking, goal, solver)
    # The bound is an integer that the solver gives as a float.
    bound = _distance(best, every.clean) if status == cp_model.OPTIMAL else round(solver.best_objective_bound)
    return max(proven, bound), _reduced(network, best, every.clean, goal)


def _reduced(network: IntegerNetwork, example: Floats, clean: Floats, goal: Goal) -> Floats:
    """The example with flips taken back one at a time, as long as it stays a hit."""
    while len(flipped := np.flatnonzero(example != clean)):
        fewer = [example.copy() for _ in flipped]
        for one, position in zip(fewer, flipped, strict=True):
            one.flat[position] = clean.flat[position]
        hits = np.flatnonzero(goal.is_hit(network, batch_of(network, *fewer)))
        if not len(hits):
            break
        example = fewer[hits[0]]
    return example


def _checked(network: IntegerNetwork, known: Floats | None, every: L0Ball, goal: Goal) -> Floats | None:
    """An input that is known, less the flips that it does not need, if it is one that is looked for."""
    if known is None:
        return None
    if not every.contains(known):
        raise CompileError("the known input is not the clean one with allowed flips", Loc("input set"))
    if not goal.is_hit(network, batch_of(network, known))[0]:
        return None
    return _reduced(network, known, every.clean, goal)


def _distance(x: Floats, clean: Floats) -> int:
    return int((x != clean).sum())
