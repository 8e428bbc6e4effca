"""Reads the fields of a program file's header, each of which may be anything."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import fields
from typing import cast


def only_fields(kind: type, item: Mapping[str, object]) -> None:
    """Refuse a field that the kind does not have."""
    unknown = set(item) - {field.name for field in fields(kind)}
    if unknown:
        raise ValueError(f"{kind.__name__} has no fields {sorted(unknown)}")


def text(value: object) -> str:
    """A text that can be printed."""
    if not isinstance(value, str):
        raise TypeError(f"{value!r} is no text")
    value.encode()  # a lone surrogate could not be printed later
    return value


def choice(value: object, allowed: tuple[str, ...]) -> str:
    """One of the allowed texts."""
    if value not in allowed:
        raise ValueError(f"{value!r} is not one of {allowed}")
    return text(value)


def flag(value: object) -> bool:
    """A truth value."""
    if not isinstance(value, bool):
        raise TypeError(f"{value!r} is no flag")
    return value


def integer(value: object) -> int:
    """A natural number or 0."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise ValueError(f"{value!r} is no natural number")
    return value


def count(value: object) -> int:
    """A number of at least 1."""
    if integer(value) < 1:
        raise ValueError("a count of 0")
    return cast(int, value)


def pair(value: object) -> tuple[int, int]:
    """Two counts."""
    first, second = cast(list[object], value)
    return count(first), count(second)


def number(value: object) -> float:
    """A finite number."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < math.inf:
        raise ValueError(f"{value!r} is no finite number")
    try:
        return float(value)
    except OverflowError as fault:
        raise ValueError("an integer beyond any float") from fault
