"""Numbers as people read them: a prefix before the unit, three digits, no exponent."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Prefix:
    """A prefix of the SI, and what it stands for."""

    symbol: str
    factor: float

    def shown(self, value: float) -> str:
        """The value in units of this prefix."""
        return digits(value / self.factor)


PREFIXES = tuple(
    Prefix(symbol, factor)
    for symbol, factor in (("", 1.0), ("m", 1e-3), ("u", 1e-6), ("n", 1e-9), ("p", 1e-12), ("f", 1e-15))
)


def prefix_of(values: Iterable[float]) -> Prefix:
    """The largest prefix with which none of the values, all of them positive, is below one."""
    least = min(values)
    return next((prefix for prefix in PREFIXES if least >= prefix.factor), PREFIXES[-1])


def digits(value: float) -> str:
    """Three digits, or all of those before the point."""
    exponent = int(f"{value:.2e}".partition("e")[2])
    return f"{value:,.{min(max(2 - exponent, 0), 5)}f}"
