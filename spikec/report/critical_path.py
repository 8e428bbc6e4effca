"""The instructions that a phase's time consists of, found backwards from its last end."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from runtime.timing.channels import Place
from runtime.timing.simulate import ChannelTiming, PhaseTiming


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One instruction on the critical path. Units: cycles."""

    resource: str  # the memory of a transfer, else the channel
    layer: int
    cycles: float


def critical_path(phase: PhaseTiming) -> Iterator[Step]:
    """Instructions, the last one first, each of which begins exactly when the next of the list ends.

    An instruction begins when its channel is free, what it needs is done and its memory is free; whichever was last is
    the one before it. Of several at the same time the own channel counts. So the steps fill the elapsed time.
    """
    by_name = {timing.channel.name: timing for timing in phase.channels if timing.ends}
    served = _served(by_name)
    place = max(
        ((name, len(t.ends) - 1) for name, t in by_name.items()), key=lambda p: by_name[p[0]].ends[-1], default=None
    )
    while place is not None:
        name, number = place
        timing = by_name[name]
        starts, ends = timing.starts[number], timing.ends[number]
        if ends > starts:
            layer = timing.channel.instructions[number].layer
            yield Step(resource=timing.channel.port or name, layer=layer, cycles=ends - starts)
        place = _before(timing, number, by_name, served)


def _before(
    timing: ChannelTiming, number: int, by_name: Mapping[str, ChannelTiming], served: Mapping[tuple[str, float], Place]
) -> Place | None:
    """What an instruction's start waited for; nothing at time 0."""
    starts = timing.starts[number]
    if starts == 0:
        return None
    if number and timing.ends[number - 1] == starts:
        return timing.channel.name, number - 1
    if starts > timing.asked[number]:
        return served[timing.channel.port, starts]
    return next(place for place in timing.channel.needs[number] if by_name[place[0]].ends[place[1]] == starts)


def _served(by_name: Mapping[str, ChannelTiming]) -> dict[tuple[str, float], Place]:
    """Transfers that took time, by their memory and end."""
    return {
        (timing.channel.port, ends): (name, number)
        for name, timing in by_name.items()
        if timing.channel.port
        for number, (starts, ends) in enumerate(zip(timing.starts, timing.ends, strict=True))
        if ends > starts
    }
