"""What the fields of an op may hold besides plain numbers: parameter references, enums, surrogates."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


@dataclass(frozen=True, slots=True)
class Param:
    """A reference to a named array that stands beside the graph."""

    name: str

    def __str__(self) -> str:
        return f"@{self.name}"


Number = float | Param  # one scalar, or one value per channel


class Reset(StrEnum):
    """What a spike does to the membrane potential."""

    HARD = "hard"  # to reset_value
    SOFT = "soft"  # minus threshold
    NONE = "none"


class Compare(StrEnum):
    """When a membrane potential equal to the threshold fires."""

    GE = "ge"
    GT = "gt"


class Encoding(StrEnum):
    """How a real-valued input becomes a sequence over time."""

    BERNOULLI = "bernoulli"
    DIRECT = "direct"
    LATENCY = "latency"


class Reading(StrEnum):
    """How the values over time become one."""

    RATE = "rate"
    LAST = "last"
    MAX = "max"


class SurrogateKind(StrEnum):
    """Shape of the surrogate derivative of the fire function."""

    RECTANGLE = "rectangle"
    TRIANGLE = "triangle"
    ATAN = "atan"
    SIGMOID = "sigmoid"
    FAST_SIGMOID = "fast_sigmoid"
    SUPERSPIKE = "superspike"
    EXPONENTIAL = "exponential"


@dataclass(frozen=True, slots=True, kw_only=True)
class Surrogate:
    """Derivative of fire over u = m - threshold - offset, with peak `scale`.

    rectangle     scale where -width < u < width, else 0
    triangle      scale * max(0, 1 - |u| / width)
    atan          scale / (1 + (pi * u / (2 * width))^2)
    sigmoid       scale * 4 * sigma(u / width) * (1 - sigma(u / width))
    fast_sigmoid  scale / (1 + |u| / width)^2; superspike is the same function under its first name
    exponential   scale * exp(-|u| / width)

    The dissertation's window is th_l = threshold + offset - width, th_r = threshold + offset + width,
    and its eta is `scale`.
    Units: width and offset as the membrane potential.
    Source: equation 2.6 (rectangle); SpikingJelly's and snnTorch's surrogates with width = 1 / alpha.
    """

    kind: SurrogateKind = SurrogateKind.RECTANGLE
    width: float = 0.5
    scale: float = 1.0
    offset: float = 0.0
