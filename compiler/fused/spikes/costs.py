"""Which kernel computes a pass of a layer with spike input: the one that measurements say is fastest."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import ClassVar

from compiler.fused.cache_file import CacheFile

GAIN = 0.95  # of the dense kernel's time: one that saves less than this does not take its place
SMALLEST = 1 << 22  # multiplications of a pass: below, what a call costs decides, and the dense kernels are called


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


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """Seconds of a call: base + slope * share."""

    base: float
    slope: float = 0.0

    @classmethod
    def through(cls, low: float, high: float, seconds: tuple[float, float]) -> Cost:
        """The line through two measurements; time never falls as the share grows."""
        slope = max(0.0, (seconds[1] - seconds[0]) / (high - low))
        return cls(base=max(0.0, min(seconds[0] - slope * low, seconds[1])), slope=slope)

    def at(self, share: float) -> float:
        """Seconds at a share."""
        return self.base + self.slope * share


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
    format: ClassVar[int] = 1
    entries: ClassVar[str] = "measured costs"

    def parsed(self, value: object) -> LayerCosts:
        if not isinstance(value, dict):
            raise TypeError("costs are an object")
        found = {}
        for name, numbers in value.items():
            of, way = name.split(" ", 1)
            base, slope = (float(number) for number in numbers)
            if not (math.isfinite(base) and math.isfinite(slope) and base >= 0 and slope >= 0):
                raise ValueError(f"{name} costs {numbers!r}")
            found[Pass(of), Way(way)] = Cost(base=base, slope=slope)
        missing = [of for of in Pass if (of, Way.DENSE) not in found]
        if missing:
            raise ValueError(f"no dense cost of {missing[0]}")
        return LayerCosts(found)

    def written(self, entry: LayerCosts) -> object:
        return {f"{of} {way}": [cost.base, cost.slope] for (of, way), cost in entry.costs.items()}
