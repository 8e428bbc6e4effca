"""Examples made on one network, shown to another (section 5.4.7)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch

from compiler.attack.fresh import Share, clopper_pearson
from compiler.attack.goal import succeeds, wins
from compiler.attack.network import Network
from compiler.attack.randomness import Purpose, uniform_draws
from compiler.attack.settings import Outcome, Status
from compiler.ir import CompileError, Encoding


@dataclass(frozen=True, slots=True, kw_only=True)
class Transfer:
    """How examples of one network do on another.

    share: of the shown examples that do on the other network what they were made for; None where none was shown.
    shown: successes whose clean sample the other network gets right; clean_errors: those that it does not.
    """

    share: Share | None
    successes: int
    shown: int
    clean_errors: int


def cross(outcomes: Iterable[Outcome], other: Network, *, seed: int = 0) -> Transfer:
    """Show the successes of an attack to another network, once each.

    A network behind a Bernoulli code gets draws of its own, one for the clean sample and one for the example. The
    interval is Clopper and Pearson's at 95 %.

    Raises: CompileError for a network that takes inputs of another shape.
    """
    successes = shown = clean_errors = 0
    for outcome in outcomes:
        if outcome.status is not Status.SUCCESS:
            continue
        case = outcome.case
        scores = _scores(other, outcome, seed)
        if not bool(wins(scores[:1], torch.tensor([case.label]))[0]):
            clean_errors += 1
            continue
        shown += 1
        wanted = torch.tensor([case.label if case.target is None else case.target])
        successes += bool(succeeds(scores[1:], wanted, targeted=case.target is not None)[0])
    share = clopper_pearson(successes, shown) if shown else None
    return Transfer(share=share, successes=successes, shown=shown, clean_errors=clean_errors)


def _scores(other: Network, outcome: Outcome, seed: int) -> torch.Tensor:
    """Of the clean sample and the example."""
    node = other.graph.input
    kind = other.graph.types[node.name]
    shape = tuple(size for size, axis in zip(kind.shape, kind.axes, strict=True) if axis != "N")
    if outcome.case.x.shape != shape:
        message = f"sample {outcome.case.sample}: has shape {outcome.case.x.shape}, the other network takes {shape}"
        raise CompileError(message, node.loc)
    pair = [torch.from_numpy(x) for x in (outcome.case.x, outcome.adversarial)]
    if other.encoding is not Encoding.BERNOULLI:
        return other.scores(torch.stack(pair, int(other.has_time)))
    extent = (other.graph.timesteps, *outcome.case.x.shape)
    draws = uniform_draws(seed, Purpose.FRESH, [outcome.case.sample] * 2, [0, 1], extent)
    return other.scores((draws < torch.stack(pair)).to(torch.float32))
