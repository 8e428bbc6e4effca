"""Gives every tensor its address: constants first, then activations that share space when they do not meet."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from hwmodel.errors import CompileError, Loc

ALIGNMENT_BYTES = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """A tensor that needs space from the layer that writes it to the last one that reads it.

    `first` -1: written by the host before the program; constants live from -1 to beyond the last layer.
    """

    name: str
    size_bytes: int
    first: int
    last: int


def allocate_memory(
    constants: Sequence[Request], activations: Sequence[Request], capacity_bytes: int, loc: Loc
) -> dict[str, int]:
    """Addresses by first fit; two activations may share bytes only if no layer needs both.

    Ensures: constants stand at the same addresses whichever memory they are copied to.
    Raises: CompileError if the capacity does not suffice.
    """
    addresses: dict[str, int] = {}
    base = 0
    for request in constants:
        addresses[request.name] = base
        base += _aligned(request.size_bytes)
    placed: list[tuple[int, int, Request]] = []
    top = base
    for request in sorted(activations, key=lambda r: (-r.size_bytes, r.first)):
        address = base
        for start, end, other in sorted(placed, key=lambda item: item[0]):
            meets = other.first <= request.last and request.first <= other.last
            if meets and start < address + request.size_bytes and address < end:
                address = end
        addresses[request.name] = address
        end = address + _aligned(request.size_bytes)
        placed.append((address, end, request))
        top = max(top, end)
    if top > capacity_bytes:
        raise CompileError(
            f"the program needs {top} bytes of one external memory, which has {capacity_bytes}",
            loc,
            hint="use a smaller batch, fewer time steps, or a configuration with more memory",
        )
    return addresses


def _aligned(size: int) -> int:
    return -(-size // ALIGNMENT_BYTES) * ALIGNMENT_BYTES
