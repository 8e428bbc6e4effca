"""Files with random damage are refused, or read as a slow reader of the same format reads them."""

from __future__ import annotations

import struct
from collections.abc import Callable

import numpy as np
import pytest

from frontends.events.aedat import decode_version_2, decode_version_3
from frontends.events.nmnist import decode
from frontends.events.recording import Events, Window, spikes
from hwmodel.errors import CompileError, Loc
from tests.frontends.event_files import (
    Event,
    aedat_2_bytes,
    aedat_3_bytes,
    binned,
    nmnist_bytes,
    packet,
    random_events,
)

DAMAGED = 500  # files of each format
Reader = Callable[[bytes], list[Event] | None]


def nmnist_slowly(content: bytes) -> list[Event] | None:
    events: list[Event] = []
    late = 0
    for at in range(0, len(content), 5):
        word = content[at : at + 5]
        if len(word) < 5:
            return None
        x, y, rest = word[0], word[1], int.from_bytes(word[2:], "big")
        if y == 240:
            late += 8192
            continue
        if x > 33 or y > 33:
            return None
        events.append((x, y, rest >> 23, rest % (1 << 23) + late))
    return events or None


def body_of(content: bytes, version: bytes) -> bytes | None:
    if not content.startswith(b"#"):
        return None
    skipped = 0
    while content[skipped : skipped + 1] == b"#":
        line, newline, _ = content[skipped:].partition(b"\n")
        skipped += len(line) + len(newline)
        if line.startswith(b"#!AER-DAT") and not line.strip()[9:].startswith(version):
            return None
        if line.strip() == b"#!END-HEADER":
            break
    return content[skipped:]


def aedat_2_slowly(content: bytes) -> list[Event] | None:
    body = body_of(content, b"2")
    if body is None or len(body) % 8:
        return None
    events: list[Event] = []
    for address, time in struct.iter_unpack(">II", body):
        if address & 0x8000:
            continue
        if address >> 15:
            return None
        events.append((127 - (address >> 8), 127 - (address >> 1) % 128, 1 - address % 2, time))
    return events or None


def aedat_3_slowly(content: bytes) -> list[Event] | None:
    body = body_of(content, b"3")
    if body is None:
        return None
    events: list[Event] = []
    while body:
        if len(body) < 28:
            return None
        kind, _, size, _, overflow, capacity, number, _ = struct.unpack("<hhiiiiii", body[:28])
        body = body[28:]
        if size < 1 or overflow < 0 or number < 0 or number > capacity or size * capacity > len(body):
            return None
        if kind == 1:
            if size != 8:
                return None
            for word, time in struct.iter_unpack("<II", body[: 8 * number]):
                if word & 1:
                    events.append((word >> 17, (word >> 2) % (1 << 15), (word >> 1) & 1, time + overflow * (1 << 31)))
        body = body[size * capacity :]
    return events if events and max(max(x, y) for x, y, _, _ in events) < 128 else None


FORMATS = {
    "nmnist": (decode, nmnist_slowly, 34, nmnist_bytes(random_events(0, 40, sensor=34, last_us=40_000))),
    "aedat 2": (decode_version_2, aedat_2_slowly, 128, aedat_2_bytes(random_events(1, 40, sensor=128, last_us=40_000))),
    "aedat 3": (
        decode_version_3,
        aedat_3_slowly,
        128,
        aedat_3_bytes(packet(random_events(seed, 8, sensor=128, last_us=40_000)) for seed in range(4)),
    ),
}


def damaged(content: bytes, rng: np.random.Generator) -> bytes:
    """A few bytes changed, and now and then the end cut off or a piece left out."""
    changed = bytearray(content)
    for at in rng.integers(0, len(changed), rng.integers(0, 3)):
        changed[at] = rng.integers(0, 256)
    match rng.integers(0, 6):
        case 0:
            del changed[rng.integers(0, len(changed)) :]
        case 1:
            begin = int(rng.integers(0, len(changed)))
            del changed[begin : begin + int(rng.integers(1, 12))]
    return bytes(changed)


def as_tuples(events: Events) -> list[Event]:
    columns = (events.x, events.y, events.is_on.astype(int), events.time_us)
    return [(int(x), int(y), int(on), int(time)) for x, y, on, time in zip(*columns, strict=True)]


@pytest.mark.parametrize("name", list(FORMATS))
def test_damaged_files_are_refused_or_read_right(name: str) -> None:
    decoder, slowly, sensor, content = FORMATS[name]
    rng = np.random.default_rng(len(name))
    window = Window(timesteps=5, bin_us=5000, size=sensor - 3)
    read = 0
    for _ in range(DAMAGED):
        file = damaged(content, rng)
        want = slowly(file)
        if want is None:
            with pytest.raises(CompileError, match=r"^file: error: "):
                decoder(file, Loc("file"))
            continue
        read += 1
        events = decoder(file, Loc("file"))
        assert as_tuples(events) == want
        seen = binned(want, timesteps=5, bin_us=5000, size=sensor - 3, sensor=sensor)
        np.testing.assert_array_equal(spikes(events, window, sensor), seen)
    assert DAMAGED // 5 < read < DAMAGED * 19 // 20


def test_a_heading_ends_where_it_says() -> None:
    events = random_events(3, 5, sensor=128, last_us=1000)
    # a packet of kind 35 begins with the byte '#', as a line of the heading does
    content = aedat_3_bytes([packet(events[:2], kind=ord("#")), packet(events)])
    assert as_tuples(decode_version_3(content, Loc("file"))) == events
