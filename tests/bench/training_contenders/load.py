"""How busy the machine is with something else: two threads beside a stranger's are slower by far more than half."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

IDLE_SHARE = 0.85  # of all cores, left by others before and during a turn
WATCH_S = 0.25
T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """CPU time of all cores since the machine started."""

    busy_s: float  # of every process, and time that the host gave to other machines
    total_s: float

    @staticmethod
    def now() -> Usage:
        ticks = [int(word) for word in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]]
        user, nice, system, idle, iowait, irq, softirq, steal = (tick / os.sysconf("SC_CLK_TCK") for tick in ticks)
        busy = user + nice + system + irq + softirq + steal
        return Usage(busy_s=busy, total_s=busy + idle + iowait)


def wait_for_idle(end: float) -> None:
    """Return when the machine is idle, or at that time of the monotonic clock."""
    while time.monotonic() < end:
        before = Usage.now()
        time.sleep(WATCH_S)
        after = Usage.now()
        if after.busy_s - before.busy_s <= (1 - IDLE_SHARE) * (after.total_s - before.total_s):
            return


def cpu_s(pid: int) -> float:
    """CPU time of a process and all its threads."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def watched(pid: int, work: Callable[[], T]) -> tuple[T, float]:
    """The work's result, and the share of all cores that others than the process took meanwhile."""
    before, own_before = Usage.now(), cpu_s(pid)
    result = work()
    after, own = Usage.now(), cpu_s(pid) - own_before
    total = after.total_s - before.total_s
    others = after.busy_s - before.busy_s - own
    return result, max(0.0, others / total) if total else 0.0
