"""The types of instruction fields: integers of a width, and closed sets of choices."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated


class LutMode(StrEnum):
    """What the sub-LUTs hold: sums of three taps, or single weights."""

    CONV = "conv"
    FC = "fc"


class ResetKind(StrEnum):
    """What a spike does to the membrane potential."""

    HARD = "hard"
    SOFT = "soft"
    NONE = "none"


class CompareRule(StrEnum):
    """Whether a membrane potential equal to the threshold fires."""

    GE = "ge"
    GT = "gt"


class PoolKind(StrEnum):
    """Pooling of the Soma."""

    NONE = "none"
    AVG = "avg"
    MAX = "max"


@dataclass(frozen=True, slots=True)
class Bits:
    """Width of an integer field."""

    width: int
    signed: bool = False


U1 = Annotated[int, Bits(1)]
U2 = Annotated[int, Bits(2)]
U8 = Annotated[int, Bits(8)]
U10 = Annotated[int, Bits(10)]
U12 = Annotated[int, Bits(12)]
U16 = Annotated[int, Bits(16)]
U24 = Annotated[int, Bits(24)]
U20 = Annotated[int, Bits(20)]
U32 = Annotated[int, Bits(32)]
S16 = Annotated[int, Bits(16, signed=True)]
S20 = Annotated[int, Bits(20, signed=True)]
