"""The boundary attack: from an input that is adversarial, along the decision boundary towards the clean one."""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from compiler.attack.flips import Indices, with_flips
from compiler.attack.network import Network
from compiler.attack.probe import QUERIES, Probe, takes_spikes
from compiler.attack.searches import Answer, Ask, Search, run_searches
from compiler.attack.settings import Case, Outcome, Settings, Status
from compiler.attack.victim import BLOCK

Path = Callable[[float], Tensor]  # from the clean sample at 0 to a start at 1

_NOISE_ROUNDS = 4  # blocks of random inputs that are looked at for a start
_ASIDE = 4  # a quarter of a block tells how rough the boundary is, the rest goes on
_FACTOR = 1.2  # sizes grow or shrink by it
_GOAL = 0.1  # share of successes that sizes are held at: wide moves reach parts of the boundary that are closer
_FIRST, _LARGEST, _SMALLEST = 0.6, 0.9, 1e-6  # sizes, as shares of the distance


class Moves(Protocol):
    """How one kind of input moves; a random generator makes the choices."""

    def noise(self, rng: np.random.Generator) -> list[Tensor]:
        """A block of random inputs."""

    def path(self, start: Tensor, rng: np.random.Generator) -> Path:
        """A way from the clean sample to a start."""

    def aside(self, now: Tensor, size: float, rng: np.random.Generator) -> Tensor:
        """Another input about as far from the clean sample; size as a share of the distance."""

    def ahead(self, now: Tensor, size: float, rng: np.random.Generator) -> Tensor:
        """An input that is closer to the clean sample by a share of the distance."""

    def distance(self, now: Tensor) -> float:
        """From the clean sample."""

    def has_arrived(self, now: Tensor) -> bool:
        """Whether nothing closer is left that could be adversarial."""


def attack(
    victim: Network,
    cases: Iterable[Case],
    settings: Settings,
    *,
    starts: Sequence[Case] = (),
    queries: int | None = None,
) -> Iterator[Outcome]:
    """Find an adversarial input and bring it closer, by decisions alone, in no fixed order of the cases.

    A case starts at the closest adversarial input among 16 of the starts and 64 random ones, and from there goes to the
    boundary by two 16-fold divisions of the way. Each round then asks about 16 inputs that lie as far away, moved
    aside, 12 of them also moved ahead, and goes on with the closest success. A move's size grows while more than a
    tenth of its inputs succeed, and shrinks otherwise. Intensities move as in the paper: aside on the sphere, ahead on
    the straight line. Of spikes some flips go elsewhere (aside) and some are taken back (ahead), which the paper does
    not have.

    Where codes are drawn, each query has its own, and an example is judged by the one that it was accepted with.
    An example beyond epsilon or the budget ends as out of bound; a case without a start fails as it was.

    starts: samples of any class with their labels; a targeted case takes those of its target, others those of other
    classes. queries: of a case, with that of the clean sample, without the one that confirms a success; 64 for each
    iteration unless given. gamma, step and restarts play no part.

    Source: Brendel et al., "Decision-based adversarial attacks", ICLR 2018, in blocks of queries (section 5.4.7).
    Raises: CompileError for a case that does not fit the network.
    """
    limit = QUERIES * settings.iterations if queries is None else queries
    makes = SpikeMoves if takes_spikes(victim) else ImageMoves

    def search(case: Case) -> Search:
        own = [start.x for start in starts if _is_useful(start, case)][:BLOCK]
        return _walk(Probe(case, settings), makes(torch.from_numpy(case.x)), [torch.from_numpy(x) for x in own], limit)

    return run_searches(victim, cases, search, settings)


def _is_useful(start: Case, case: Case) -> bool:
    return start.label != case.label if case.target is None else start.label == case.target


def _walk(probe: Probe, moves: Moves, starts: Sequence[Tensor], limit: int) -> Search:
    if (found := (yield from probe.clean_error())) is not None:
        return found
    standing = yield from _begin(probe, moves, starts, limit)
    if standing is None:
        return probe.outcome(Status.FAILURE, probe.clean, 0, 0)
    now, draw = standing
    around, step, rounds = _FIRST, _FIRST, 0
    while (room := min(BLOCK, limit - probe.queries)) > 0 and step > _SMALLEST and not moves.has_arrived(now):
        rounds += 1
        moved = [moves.aside(now, around, probe.rng) for _ in range(room)]
        tried = moved[:_ASIDE] + [moves.ahead(x, step, probe.rng) for x in moved[_ASIDE:]]
        replies = yield from probe.asked(torch.stack(tried))
        hits = [at for at, is_success in enumerate(replies.successes) if is_success]
        if hits:
            closest = min(hits, key=lambda at: (moves.distance(tried[at]), at))
            if moves.distance(tried[closest]) <= moves.distance(now):
                now, draw = tried[closest], replies.draws[closest]
        around = _held(around, replies.successes[:_ASIDE])
        step = _held(step, replies.successes[_ASIDE:])
    return probe.outcome(Status.SUCCESS, now, rounds, draw)


def _held(size: float, successes: Sequence[bool]) -> float:
    """A size that grows where more than the goal succeed, and shrinks where fewer do."""
    if not successes:
        return size
    return min(size * _FACTOR, _LARGEST) if sum(successes) > _GOAL * len(successes) else size / _FACTOR


def _begin(
    probe: Probe, moves: Moves, starts: Sequence[Tensor], limit: int
) -> Generator[Ask, Answer, tuple[Tensor, int] | None]:
    """An adversarial input near the boundary, and the step of its code."""
    found: tuple[Tensor, int] | None = None
    for turn in range(_NOISE_ROUNDS + 1):
        tried = list(starts) if turn == 0 else moves.noise(probe.rng)
        tried = tried[: max(0, limit - probe.queries)]
        if not tried:
            continue
        replies = yield from probe.asked(torch.stack(tried))
        hits = [at for at, is_success in enumerate(replies.successes) if is_success]
        for at in hits:
            if found is None or moves.distance(tried[at]) < moves.distance(found[0]):
                found = tried[at], replies.draws[at]
        if found is not None:
            break
    if found is None:
        return None
    path, low, high = moves.path(found[0], probe.rng), 0.0, 1.0
    for _ in range(2):
        shares = [low + (high - low) * (n + 1) / BLOCK for n in range(BLOCK)]
        shares = shares[: max(0, limit - probe.queries)]
        if not shares:
            break
        tried = [path(share) for share in shares]
        replies = yield from probe.asked(torch.stack(tried))
        if True not in replies.successes:
            break
        at = replies.successes.index(True)
        found, high, low = (tried[at], replies.draws[at]), shares[at], shares[at - 1] if at else low
    return found


@dataclass(frozen=True, slots=True)
class ImageMoves:
    """Values in [0, 1], by their l2 distance. Shapes: as the clean sample."""

    clean: Tensor

    def noise(self, rng: np.random.Generator) -> list[Tensor]:
        """Uniform images."""
        return [torch.from_numpy(rng.random(tuple(self.clean.shape), np.float32)) for _ in range(BLOCK)]

    def path(self, start: Tensor, rng: np.random.Generator) -> Path:
        """The straight line."""
        return lambda share: self.clean + share * (start - self.clean)

    def aside(self, now: Tensor, size: float, rng: np.random.Generator) -> Tensor:
        """now + size * distance * a random direction across the line to the clean sample; on the sphere, clipped."""
        line = self._line(now)
        distance = _length(line)
        if distance == 0.0:
            return now
        across = rng.standard_normal(line.shape)
        across -= line * float((across * line).sum()) / distance**2
        moved = line + size * distance * across / max(_length(across), np.finfo(np.float64).tiny)
        return self._at(moved * (distance / _length(moved)))

    def ahead(self, now: Tensor, size: float, rng: np.random.Generator) -> Tensor:
        """x' + size * (x - x')."""
        return self._at(self._line(now) * (1 - size))

    def distance(self, now: Tensor) -> float:
        """The l2 norm."""
        return _length(self._line(now))

    def has_arrived(self, now: Tensor) -> bool:
        """Whether it is the clean sample itself, which another code may make adversarial."""
        return self.distance(now) == 0.0

    def _line(self, now: Tensor) -> npt.NDArray[np.float64]:
        line: npt.NDArray[np.float64] = now.numpy().astype(np.float64) - self.clean.numpy()
        return line

    def _at(self, line: npt.NDArray[np.float64]) -> Tensor:
        return torch.from_numpy((self.clean.numpy() + line).clip(0, 1).astype(np.float32))


def _length(line: npt.NDArray[np.float64]) -> float:
    return math.sqrt(float((line**2).sum()))


@dataclass(frozen=True, slots=True)
class SpikeMoves:
    """Binary spikes, by the number of flips. Shapes: as the clean sample."""

    clean: Tensor

    def noise(self, rng: np.random.Generator) -> list[Tensor]:
        """With 1/16 to all of the spikes flipped."""
        size = self.clean.numel()
        return [with_flips(self.clean, rng.permutation(size)[: -(-size * (n + 1) // BLOCK)]) for n in range(BLOCK)]

    def path(self, start: Tensor, rng: np.random.Generator) -> Path:
        """The start's flips one after the other, in a random order."""
        flips = rng.permutation(self._flips(start))
        return lambda share: with_flips(self.clean, flips[: max(1, round(share * len(flips)))])

    def aside(self, now: Tensor, size: float, rng: np.random.Generator) -> Tensor:
        """A share of the flips, at least one, given up for others."""
        flips = rng.permutation(self._flips(now))
        others = rng.permutation(np.setdiff1d(np.arange(self.clean.numel()), flips))
        fresh = others[: max(1, round(size * len(flips)))]
        return with_flips(self.clean, np.concatenate([flips[len(fresh) :], fresh]))

    def ahead(self, now: Tensor, size: float, rng: np.random.Generator) -> Tensor:
        """A share of the flips, at least one, taken back."""
        flips = rng.permutation(self._flips(now))
        return with_flips(self.clean, flips[max(1, round(size * len(flips))) :])

    def distance(self, now: Tensor) -> float:
        """The flips."""
        return float(len(self._flips(now)))

    def has_arrived(self, now: Tensor) -> bool:
        """Whether it has a single flip."""
        return self.distance(now) <= 1

    def _flips(self, now: Tensor) -> Indices:
        return np.flatnonzero((now != self.clean).numpy())
