"""Vector clocks over the queues: which accesses are ordered, whatever the speed of the queues."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from hwmodel.isa import Queue

Clock = npt.NDArray[np.int64]
QUEUES = tuple(Queue)
INDEX = {queue: i for i, queue in enumerate(QUEUES)}


def zero_clock() -> Clock:
    """The clock before anything happened."""
    return np.zeros(len(QUEUES), np.int64)


@dataclass(slots=True)
class Accesses:
    """The last read and write of a resource by each queue, as positions in that queue."""

    reads: Clock = field(default_factory=zero_clock)
    writes: Clock = field(default_factory=zero_clock)

    def race(self, clock: Clock, *, write: bool) -> str:
        """What a new access would race with, or "": all it conflicts with must have happened before."""
        if (self.writes > clock).any():
            return f"a write of {culprit(self.writes, clock)}"
        if write and (self.reads > clock).any():
            return f"a read of {culprit(self.reads, clock)}"
        return ""

    def note(self, queue: int, clock: Clock, *, write: bool) -> None:
        """Remember an access."""
        (self.writes if write else self.reads)[queue] = clock[queue]


def culprit(seen: Clock, clock: Clock) -> str:
    """The queue and position of an access that is not known to have happened before."""
    queue = int(np.argmax(seen > clock))
    return f"{QUEUES[queue]}[{int(seen[queue]) - 1}]"
