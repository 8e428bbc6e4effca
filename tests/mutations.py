"""Damages files as disks, networks and attackers do."""

from __future__ import annotations

import random
from collections.abc import Callable

SIZES = (0, 1, 2**31, 2**40, 2**63, 2**64 - 1)  # what lengths and addresses may turn into


def mutated(content: bytes, seed: int) -> bytes:
    """The content after one damage of a kind, and at a place, that follow from the seed."""
    rng = random.Random(seed)
    return rng.choice(_KINDS)(content, rng)


def _flipped(content: bytes, rng: random.Random) -> bytes:
    out = bytearray(content)
    for _ in range(rng.randint(1, 8)):
        out[rng.randrange(len(out))] ^= 1 << rng.randrange(8)
    return bytes(out)


def _cut(content: bytes, rng: random.Random) -> bytes:
    return content[: rng.randrange(len(content))]


def _overwritten(content: bytes, rng: random.Random) -> bytes:
    out = bytearray(content)
    for _ in range(rng.randint(1, 30)):
        out[rng.randrange(len(out))] = rng.randrange(256)
    return bytes(out)


def _zeroed(content: bytes, rng: random.Random) -> bytes:
    at, size = rng.randrange(len(content)), rng.randint(1, 64)
    hole = content[at : at + size]
    return content[:at] + bytes(len(hole)) + content[at + size :]


def _swapped(content: bytes, rng: random.Random) -> bytes:
    """Two pieces of the same length change places."""
    size = rng.randint(1, 64)
    first, second = (rng.randrange(len(content) - size) for _ in range(2))
    out = bytearray(content)
    out[first : first + size] = content[second : second + size]
    out[second : second + size] = content[first : first + size]
    return bytes(out)


def _resized(content: bytes, rng: random.Random) -> bytes:
    """A word becomes another length or address."""
    at = rng.randrange(len(content) // 8 - 1) * 8
    value = rng.choice((*SIZES, rng.randrange(len(content))))
    return content[:at] + value.to_bytes(8, "little") + content[at + 8 :]


_KINDS: tuple[Callable[[bytes, random.Random], bytes], ...] = (
    _flipped,
    _cut,
    _overwritten,
    _zeroed,
    _swapped,
    _resized,
)
