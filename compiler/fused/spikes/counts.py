"""Averages of pooled spikes: as counts whose bits are planes, and how planes are dealt out to kernels for spikes."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

from compiler.fused.plan import Part
from compiler.fused.population import Population
from compiler.fused.spikes.costs import GAIN, LayerCosts, Pass, Way

MOST_PIXELS = 16  # of a window: averages over more hold too many values for their bits to pay


@dataclass(frozen=True, slots=True)
class Counts:
    """Of spikes in windows of so many pixels, a power of two: values are k / pixels, exactly, with k from 0 to pixels.

    Bit i of k is plane i, so that a layer of averages is a sum of layers of spikes, whose weights are scaled by powers
    of two: W k / pixels = sum over i of (2^i / pixels W) k_i.
    """

    pixels: int

    @property
    def planes(self) -> int:
        """Bits of the largest count."""
        return self.pixels.bit_length()

    def factor(self, plane: int) -> float:
        """What a one in a plane stands for."""
        return float(1 << plane) / self.pixels


def counts_of(part: Part | None) -> Counts | None:
    """Of a population's averages; None of spikes, and of averages that no power of two makes whole.

    A partial window at the edge averages over fewer pixels; their number must divide the window's.
    """
    window = part.window if isinstance(part, Population) else None
    if window is None or not window.average:
        return None
    pixels = window.kernel[0] * window.kernel[1]
    is_partial = window.ceil and not window.exact
    if pixels & (pixels - 1) or pixels > MOST_PIXELS or (is_partial and max(window.kernel) > 2):
        return None
    return Counts(pixels)


@dataclass(frozen=True, slots=True)
class Planes:
    """How planes are dealt out: the lowest `looked_up` of the first `used` to look-ups, the others to events.

    Planes above are empty.
    """

    looked_up: int
    used: int

    @property
    def way(self) -> Way:
        """What this is called."""
        if self.looked_up == 0:
            return Way.EVENTS
        return Way.LOOKUP if self.looked_up == self.used else Way.BOTH


def deal(costs: LayerCosts, of: Pass, shares: Sequence[float], ways: Collection[Way]) -> Planes | None:
    """How planes are best dealt out; None: the dense kernel is best.

    A look-up of several planes takes as often as long as one of one, events as long as the sum of shares says.

    shares: of ones, by plane. ways: those that compute all planes.
    """
    best, least = None, GAIN * costs.seconds(of, Way.DENSE)
    for planes, seconds in _dealt(costs, of, shares, ways):
        if seconds < least:
            best, least = planes, seconds
    return best


def dealt_costs(costs: LayerCosts, of: Pass, shares: Sequence[float], ways: Collection[Way]) -> dict[Way, float]:
    """What each way takes at these shares; where both kernels take planes, with these dealt out best."""
    found = {Way.DENSE: costs.seconds(of, Way.DENSE)}
    for planes, seconds in _dealt(costs, of, shares, ways):
        found[planes.way] = min(seconds, found.get(planes.way, seconds))
    return found


def _dealt(
    costs: LayerCosts, of: Pass, shares: Sequence[float], ways: Collection[Way]
) -> Iterator[tuple[Planes, float]]:
    """All that the kernels can do, and the seconds that it takes."""
    possible = set(ways) & set(costs.ways(of))
    for looked_up in range(len(shares) + 1):
        planes, seconds = Planes(looked_up, len(shares)), 0.0
        needed = {Way.LOOKUP, Way.EVENTS} if planes.way is Way.BOTH else {planes.way}
        if needed <= possible:
            if Way.LOOKUP in needed:
                seconds += looked_up * costs.seconds(of, Way.LOOKUP)
            if Way.EVENTS in needed:
                seconds += costs.seconds(of, Way.EVENTS, sum(shares[looked_up:]))
            yield planes, seconds
