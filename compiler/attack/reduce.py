"""Takes back the flips that an adversarial example of spikes does not need."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch

from compiler.attack.goal import succeeds
from compiler.attack.lanes import Lanes
from compiler.attack.perturbation import perturbation
from compiler.attack.settings import Outcome, Status
from compiler.attack.victim import Victim
from compiler.ir import CompileError, DType


@dataclass(slots=True)
class _Search:
    """Undoes runs of flips, halving their length; `flips` are those still needed, the least important first."""

    outcome: Outcome
    flips: npt.NDArray[np.int64]  # places in the flattened input
    size: int
    at: int = 0
    queries: int = 0
    has_changed: bool = False  # in this pass over single flips

    @property
    def is_done(self) -> bool:
        """Whether no single flip can be taken back."""
        return not self.flips.size or self.size < 1

    def candidate(self) -> npt.NDArray[np.float32]:
        """The example without the next run of flips."""
        return self.example(np.delete(self.flips, slice(self.at, self.at + self.size)))

    def example(self, flips: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
        """The clean sample with some flips."""
        x = self.outcome.case.x.copy()
        x.reshape(-1)[flips] = 1 - x.reshape(-1)[flips]
        return x

    def answer(self, *, still_succeeds: bool) -> None:
        """Go on after a try."""
        self.queries += 1
        if still_succeeds:
            self.flips = np.delete(self.flips, slice(self.at, self.at + self.size))
            self.has_changed = True
        else:
            self.at += self.size
        if self.at < self.flips.size:
            return
        self.at = 0
        if self.size > 1:
            self.size = max(1, min(self.size, self.flips.size) // 2)
        elif not self.has_changed:
            self.size = 0
        self.has_changed = False


def reduce_flips(victim: Victim, outcomes: Iterable[Outcome]) -> Iterator[Outcome]:
    """Each success with fewer flips, in no fixed order; other outcomes as they are.

    What is left is minimal in the sense that no single flip can be taken back. Flips go in the order of the gradient
    at the example, the weakest first, in runs that are halved. One query a try, one gradient a sample.

    Raises: CompileError for a network that does not take spikes.
    """
    node = victim.graph.input
    if victim.graph.types[node.name].dtype is not DType.SPIKE:
        raise CompileError(f"{node.name}: flips are taken back of spikes, and the network takes intensities", node.loc)
    queue = Lanes(iter(outcomes), lambda outcome: outcome.case.sample)
    searches: dict[int, _Search] = {}
    while True:
        fresh = queue.fill(set(searches))
        if not fresh and not searches:
            return
        yield from (outcome for _, outcome in fresh if outcome.status is not Status.SUCCESS)
        searches |= _started(victim, {place: o for place, o in fresh if o.status is Status.SUCCESS})
        if searches:
            _try(victim, searches)
        for place, search in list(searches.items()):
            if search.is_done:
                yield _reduced(searches.pop(place))


def _started(victim: Victim, outcomes: dict[int, Outcome]) -> dict[int, _Search]:
    if not outcomes:
        return {}
    x = torch.stack([torch.from_numpy(outcome.adversarial) for outcome in outcomes.values()], 1)
    gradient = victim.gradient(x, _wanted(outcomes.values()), list(outcomes)).abs()
    searches = {}
    for n, (place, outcome) in enumerate(outcomes.items()):
        flips = np.flatnonzero(outcome.adversarial != outcome.case.x)
        order = np.argsort(gradient[:, n].flatten().numpy()[flips], kind="stable")
        searches[place] = _Search(outcome, flips[order], size=max(1, flips.size // 2))
    return searches


def _try(victim: Victim, searches: dict[int, _Search]) -> None:
    """One query of each."""
    x = torch.stack([torch.from_numpy(search.candidate()) for search in searches.values()], 1)
    scores = victim.scores(x, list(searches))
    outcomes = [search.outcome for search in searches.values()]
    wanted = _wanted(outcomes)
    hits = {flag: succeeds(scores, wanted, targeted=flag) for flag in (False, True)}
    for n, search in enumerate(searches.values()):
        search.answer(still_succeeds=bool(hits[search.outcome.case.target is not None][n]))


def _wanted(outcomes: Iterable[Outcome]) -> torch.Tensor:
    cases = [outcome.case for outcome in outcomes]
    return torch.tensor([case.label if case.target is None else case.target for case in cases])


def _reduced(search: _Search) -> Outcome:
    before = search.outcome
    adversarial = search.example(search.flips)
    return replace(
        before,
        adversarial=adversarial,
        perturbation=perturbation(before.case.x, adversarial),
        queries=before.queries + search.queries,
        gradients=before.gradients + 1,
    )
