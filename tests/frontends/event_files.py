"""Writes files of event data sets as they are handed out, and bins events by hand."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

Event = tuple[int, int, int, int]  # x, y, 1 for ON, time in us

HEADING_2 = b"#!AER-DAT2.0\r\n# This is a raw AE data file - do not edit\r\n# created Mon Jan 01 00:00:00 2015\r\n"
HEADING_3 = b"#!AER-DAT3.1\r\n#Format: RAW\r\n#Source 1: DVS128\r\n#!END-HEADER\r\n"


def nmnist_bytes(events: Iterable[Event]) -> bytes:
    """Events of 40 bits."""
    return b"".join(struct.pack(">BB", x, y) + (on << 23 | time).to_bytes(3, "big") for x, y, on, time in events)


def aedat_2_bytes(events: Iterable[Event], heading: bytes = HEADING_2) -> bytes:
    """Pairs of address and time."""
    words = (((127 - x) << 8 | (127 - y) << 1 | (1 - on), time) for x, y, on, time in events)
    return heading + b"".join(struct.pack(">II", *pair) for pair in words)


def packet(events: Sequence[Event], *, kind: int = 1, overflow: int = 0, spare: int = 0, valid: int = 1) -> bytes:
    """A packet of polarity events, with room for `spare` more."""
    number = len(events)
    head = struct.pack("<hhiiiiii", kind, 1, 8, 4, overflow, number + spare, number, number)
    body = b"".join(struct.pack("<II", x << 17 | y << 2 | on << 1 | valid, time) for x, y, on, time in events)
    return head + body + bytes(8 * spare)


def aedat_3_bytes(packets: Iterable[bytes], heading: bytes = HEADING_3) -> bytes:
    """Packets behind a heading."""
    return heading + b"".join(packets)


def binned(events: Iterable[Event], *, timesteps: int, bin_us: int, size: int, sensor: int) -> npt.NDArray[np.float32]:
    """One event after the other."""
    seen = np.zeros((timesteps, 2, size, size), dtype=np.float32)
    every = list(events)
    start = min(time for _, _, _, time in every)
    for x, y, on, time in every:
        step = (time - start) // bin_us
        if step < timesteps:
            seen[step, on, y * size // sensor, x * size // sensor] = 1.0
    return seen


def random_events(seed: int, count: int, *, sensor: int, last_us: int) -> list[Event]:
    """Events in the order of their times."""
    rng = np.random.default_rng(seed)
    times = np.sort(rng.integers(0, last_us, count))
    places = rng.integers(0, sensor, (count, 2))
    return [
        (int(x), int(y), int(on), int(time))
        for (x, y), on, time in zip(places, rng.integers(0, 2, count), times, strict=True)
    ]


def write_nmnist(folder: Path, files: Mapping[str, Sequence[Event]]) -> Path:
    """Files by their place, as Train/3/00001.bin."""
    for name, events in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(nmnist_bytes(events))
    return folder
