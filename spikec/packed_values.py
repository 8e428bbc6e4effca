"""Inputs of a network in one line of text, bit for bit, and counts that a line holds."""

from __future__ import annotations

import base64
import math
import zlib
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]

BITS, F32 = "bits", "f32"
_LARGEST = 1 << 63  # what the random generators take


def packed(values: Floats) -> dict[str, object]:
    """Ones and zeros as bits, others as they are; compressed, in base64."""
    is_binary = bool((np.isin(values, (0, 1)) & ~np.signbit(values)).all())  # a bit has no sign
    content = np.packbits(values.astype(bool)).tobytes() if is_binary else values.astype("<f4").tobytes()
    text = base64.b64encode(zlib.compress(content, 9)).decode()
    return {"shape": list(values.shape), BITS if is_binary else F32: text}


def unpacked(content: Mapping[str, object]) -> Floats:
    """Raises: ValueError, KeyError or TypeError for what `packed` does not write."""
    listed = content["shape"]
    if not isinstance(listed, list):
        raise TypeError("no shape")
    shape = tuple(whole(extent) for extent in listed)
    size = math.prod(shape)
    is_binary = BITS in content
    want = (size + 7) // 8 if is_binary else 4 * size
    inflated = _inflated(str(content[BITS if is_binary else F32]), want)
    if is_binary:
        bits = np.unpackbits(np.frombuffer(inflated, np.uint8), count=size)
        return bits.astype(np.float32).reshape(shape)
    values = np.frombuffer(inflated, "<f4").astype(np.float32).reshape(shape)
    if not ((values >= 0) & (values <= 1)).all():
        raise ValueError("values outside [0, 1]")
    return values


def _inflated(text: str, size: int) -> bytes:
    """So many bytes. Raises: ValueError for more, fewer, or what is not compressed."""
    machine = zlib.decompressobj()
    try:
        content = machine.decompress(base64.b64decode(text, validate=True), size + 1)
    except zlib.error as fault:
        raise ValueError(str(fault)) from fault
    if len(content) != size or not machine.eof:
        raise ValueError(f"{len(content)} bytes, not {size}")
    return content


def whole(value: object) -> int:
    """A count. Raises: ValueError for anything else."""
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < _LARGEST:
        raise ValueError(f"{value!r} is no count")
    return value
