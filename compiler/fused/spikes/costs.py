"""Which kernel computes a pass of a layer with spike input: the one that measurements say is fastest."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import ClassVar

import numpy as np

from compiler.fused.cache_file import CacheFile

GAIN = 0.95  # of the dense kernel's time: one that saves less than this does not take its place
MOST_AGAIN = 3000  # multiplications of a value: results that took more of them are kept rather than computed again
SMALLEST = 1 << 27  # multiplications of a pass, about a millisecond: below, counting and choosing would cost too much


class SpikeKernels(StrEnum):
    """Whether layers with spike input take kernels of their own."""

    MEASURED = "measured"  # each pass in each step, where measurements of this machine say that it pays
    LOOKUP = "look-up"  # always, tables and masks
    EVENTS = "events"  # always, events
    OFF = "off"


class Pass(StrEnum):
    """A pass through a layer."""

    FORWARD = "forward"
    WEIGHT_GRADIENT = "weight_gradient"
    INPUT_GRADIENT = "input_gradient"


class Way(StrEnum):
    """How it is computed, and what share the time of it grows with."""

    DENSE = "dense"  # torch's kernels, on numbers
    LOOKUP = "look-up"  # tables in registers: the same time at every density
    EVENTS = "events"  # of spikes; of the input gradient, of non-zero gradients
    MASKED = "masked"  # of neurons whose surrogate gradient is not zero
    BOTH = "both"  # of averages of spikes: tables for some bits of the counts, events for the others


WAYS: Mapping[Pass, tuple[Way, ...]] = {
    Pass.FORWARD: (Way.DENSE, Way.LOOKUP, Way.EVENTS),
    Pass.WEIGHT_GRADIENT: (Way.DENSE, Way.LOOKUP, Way.EVENTS),
    Pass.INPUT_GRADIENT: (Way.DENSE, Way.MASKED, Way.EVENTS),
}


@dataclass(frozen=True, slots=True)
class Cost:
    """Seconds of a call by share: lines between measured points (share, seconds), and their ends beyond."""

    points: tuple[tuple[float, float], ...]

    @classmethod
    def of(cls, measured: Mapping[float, float]) -> Cost:
        """Through measurements by share; time never falls as the share grows."""
        points, most = [], 0.0
        for share, seconds in sorted(measured.items()):
            most = max(most, seconds)
            points.append((share, most))
        return cls(tuple(points))

    def at(self, share: float) -> float:
        """Seconds at a share."""
        shares, seconds = ([point[axis] for point in self.points] for axis in (0, 1))
        return float(np.interp(share, shares, seconds))


@dataclass(frozen=True, slots=True)
class LayerCosts:
    """Of one layer on this machine, by pass and way; ways without a cost do not compute the layer."""

    costs: Mapping[tuple[Pass, Way], Cost]

    def choose(self, of: Pass, shares: Mapping[Way, float]) -> Way:
        """The way that is fastest at these shares, if it saves enough; a way whose share is unknown is left out.

        shares: of what each way's time grows with; none is needed for `Way.DENSE` and `Way.LOOKUP`.
        """
        dense = self.costs[of, Way.DENSE].at(0.0)
        best, least = Way.DENSE, GAIN * dense
        for way in WAYS[of][1:]:
            cost = self.costs.get((of, way))
            if cost is None or (way is not Way.LOOKUP and way not in shares):
                continue
            seconds = cost.at(shares.get(way, 0.0))
            if seconds < least:
                best, least = way, seconds
        return best

    def scaled(self, factor: float) -> LayerCosts:
        """Of a batch so many times as large."""
        if factor == 1.0:
            return self
        return LayerCosts(
            {key: Cost(tuple((share, factor * s) for share, s in cost.points)) for key, cost in self.costs.items()}
        )

    def ways(self, of: Pass) -> tuple[Way, ...]:
        """Those that compute a pass."""
        return tuple(way for way in WAYS[of] if (of, way) in self.costs)

    def seconds(self, of: Pass, way: Way, share: float = 0.0) -> float:
        """What a pass takes."""
        return self.costs[of, way].at(share)


@dataclass(frozen=True, slots=True)
class CostCache(CacheFile[LayerCosts]):
    """The file of measured costs."""

    file_name: ClassVar[str] = "spike_costs.json"
    format: ClassVar[int] = 3
    entries: ClassVar[str] = "measured costs"

    def parsed(self, value: object) -> LayerCosts:
        if not isinstance(value, dict):
            raise TypeError("costs are an object")
        found = {}
        for name, numbers in value.items():
            of, way = name.split(" ", 1)
            measured = {float(share): float(seconds) for share, seconds in numbers}
            if not measured or not all(0 <= number < math.inf for point in measured.items() for number in point):
                raise ValueError(f"{name} costs {numbers!r}")
            found[Pass(of), Way(way)] = Cost.of(measured)
        missing = [of for of, _ in found if (of, Way.DENSE) not in found]
        if missing or not found:
            raise ValueError(f"no dense cost of {missing[0] if missing else 'any pass'}")
        return LayerCosts(found)

    def written(self, entry: LayerCosts) -> object:
        return {f"{of} {way}": cost.points for (of, way), cost in entry.costs.items()}
