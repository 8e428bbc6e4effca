"""The content of a certificate: JSON with packed arrays, read with distrust."""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import math
import zlib
from collections.abc import Mapping
from dataclasses import replace
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from compiler.ir import Graph, Loc
from compiler.ir.text import print_graph

Content = Mapping[str, object]
Element = TypeVar("Element", np.float32, np.bool_, np.int8)
KEY = "sha256"


class Fault(Exception):  # noqa: N818  # it is found in a certificate, the check itself goes well
    """Why a certificate is refused."""


def sealed(content: Content) -> dict[str, object]:
    """A content with the SHA-256 of all the rest of it."""
    rest = {key: value for key, value in content.items() if key != KEY}
    return {**rest, KEY: hashlib.sha256(canonical(rest).encode()).hexdigest()}


def is_sealed(content: Content) -> bool:
    """Whether a content is as it was sealed."""
    return content == sealed(content)


def canonical(content: Content) -> str:
    """The one text of a content; equal contents have equal texts.

    Raises: ValueError if a number is not finite.
    """
    return json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False)


def graph_digest(graph: Graph) -> str:
    """SHA-256 of a network: its ops with all their fields and its parameters' bits, but not where it was read from."""
    bare = graph.with_nodes(tuple(replace(node, loc=Loc("")) for node in graph.nodes))
    digest = hashlib.sha256(print_graph(bare).encode())
    for name in sorted(bare.parameters):
        array = bare.parameters[name]
        digest.update(f"{name} {array.shape} ".encode() + array.astype("<f4").tobytes())
    return digest.hexdigest()


def packed(array: npt.NDArray[np.generic]) -> str:
    """An array's elements, compressed, as text: bools as bits, others little-endian, all first bytes first."""
    if array.dtype == np.bool_:
        plain = np.packbits(array.reshape(-1).astype(np.uint8)).tobytes()
    else:
        ordered = array.astype(array.dtype.newbyteorder("<")).tobytes()
        plain = np.frombuffer(ordered, np.uint8).reshape(-1, array.dtype.itemsize).T.tobytes()
    return base64.b64encode(zlib.compress(plain, 9)).decode()


def unpacked(text: object, kind: type[Element], shape: tuple[int, ...]) -> npt.NDArray[Element]:
    """The array of such a text.

    Raises: Fault if there is no such array of that shape.
    """
    count = math.prod(shape)
    size = -(-count // 8) if kind is np.bool_ else count * np.dtype(kind).itemsize
    try:
        if not isinstance(text, str):
            raise Fault("an array is missing")
        inflating = zlib.decompressobj()
        plain = inflating.decompress(base64.b64decode(text, validate=True), size + 1)
    except (binascii.Error, zlib.error, ValueError) as fault:
        raise Fault(f"an array cannot be unpacked: {fault}") from fault
    if len(plain) != size or not inflating.eof or inflating.unused_data:
        raise Fault(f"an array has not the {size} bytes of {shape}")
    if kind is np.bool_:
        bits = np.unpackbits(np.frombuffer(plain, np.uint8), count=count)
        return bits.astype(kind).reshape(shape)
    ordered = np.frombuffer(plain, np.uint8).reshape(np.dtype(kind).itemsize, -1).T.tobytes()
    return np.frombuffer(ordered, np.dtype(kind).newbyteorder("<")).astype(kind).reshape(shape)


def as_number(value: object) -> float:
    """A finite number.

    Raises: Fault if it is none.
    """
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise Fault(f"{value!r} is no number")
    return float(value)


def as_whole(value: object) -> int:
    """An integer from 0 on.

    Raises: Fault if it is none.
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise Fault(f"{value!r} is no count")
    return value


def as_flag(value: object) -> bool:
    """A truth value.

    Raises: Fault if it is none.
    """
    if not isinstance(value, bool):
        raise Fault(f"{value!r} is neither true nor false")
    return value


def as_part(value: object) -> Content:
    """An object within the content.

    Raises: Fault if it is none.
    """
    if not isinstance(value, dict):
        raise Fault(f"{value!r} is no object")
    return value


def as_list(value: object) -> list[object]:
    """A list within the content.

    Raises: Fault if it is none.
    """
    if not isinstance(value, list):
        raise Fault(f"{value!r} is no list")
    return value
