"""Hard bounds of a perturbation: how far an iterate may lie from its clean sample."""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
import numpy.typing as npt

from hwmodel.errors import CompileError, Loc

Floats = npt.NDArray[np.float32]

# A sum of squares rounds by how it is added up; what is scaled stays that far inside its bound.
_MARGIN = 1e-9

_LIMITLESS = 2.0**31  # an l2 bound beyond the root of any number of elements


class Norm(StrEnum):
    """What is bounded."""

    L0 = "l0"  # elements that differ
    L2 = "l2"
    LINF = "linf"


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """No iterate of an attack lies further from its clean sample, measured by `perturbation`.

    Units: as the input; of l0, elements.
    Raises: CompileError for a bound that is not positive and finite; of l0, for one that is no whole number.
    """

    norm: Norm
    bound: float

    def __post_init__(self) -> None:
        name = f"the {self.norm} budget"
        if not 0.0 < self.bound < math.inf:
            raise CompileError(f"{name} is {self.bound:g}, must be positive and finite", Loc("attack"))
        if self.norm is Norm.L0 and self.bound != int(self.bound):
            raise CompileError(
                f"{name} is {self.bound:g}, must be a whole number", Loc("attack"), hint="it counts elements"
            )

    @property
    def flips(self) -> int | None:
        """How many spikes it lets flip; None for any number."""
        if self.norm is Norm.LINF:
            return None if self.bound >= 1.0 else 0
        if self.norm is Norm.L0:
            return int(self.bound)
        if self.bound >= _LIMITLESS:
            return None
        most = math.floor(self.bound**2)
        # The square of the bound is rounded; what counts is the root of the number of flips.
        return next(count for count in (most + 1, most, most - 1) if count**0.5 <= self.bound)

    def check_spikes(self, loc: Loc) -> None:
        """Raises: CompileError for a budget that lets no spike flip."""
        if self.flips == 0:
            hint = "one flip has the size 1 in every norm"
            raise CompileError(f"the {self.norm} budget {self.bound:g} is below one flip", loc, hint=hint)

    def projected(self, before: Floats, after: Floats) -> Floats:
        """The values inside the budget that an attack goes on with; each lies between `before` and `after`.

        linf clips each change, l2 scales them all, l0 keeps the largest and the first among equals.

        Shapes: one sample's, both the same.
        """
        change = after.astype(np.float64) - before
        match self.norm:
            case Norm.L0:
                return kept(before, after, np.abs(change), int(self.bound))
            case Norm.L2:
                size = float((change**2).sum()) ** 0.5
                if size <= self.bound * (1 - _MARGIN):
                    return after
                return _towards(before, after, change * (self.bound * (1 - _MARGIN) / size))
            case Norm.LINF:
                return _towards(before, after, change.clip(-self.bound, self.bound))


def kept(before: Floats, after: Floats, worth: npt.NDArray[np.float64] | Floats, most: int) -> Floats:
    """`after` with its changes of least worth taken back until at most `most` are left; of equals the first stay.

    Shapes: one sample's, all the same.
    """
    flat, old = after.reshape(-1).copy(), before.reshape(-1)
    changed = np.flatnonzero(flat != old)
    order = np.argsort(-worth.reshape(-1)[changed], kind="stable")
    back = changed[order[most:]]
    flat[back] = old[back]
    return flat.reshape(after.shape)


def _towards(before: Floats, after: Floats, change: npt.NDArray[np.float64]) -> Floats:
    """before + change in f32, between `before` and `after`; what rounding would bring beyond goes back."""
    got = (before.astype(np.float64) + change).astype(np.float32)
    got = got.clip(np.minimum(before, after), np.maximum(before, after))
    while (beyond := np.abs(got.astype(np.float64) - before) > np.abs(change)).any():
        got = np.where(beyond, np.nextafter(got, before), got)
    return got
