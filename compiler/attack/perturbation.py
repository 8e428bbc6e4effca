"""How large a perturbation is, in every measure that people use."""

from __future__ import annotations

from dataclasses import asdict, dataclass

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True, slots=True, kw_only=True)
class Perturbation:
    """The distance between a sample and its adversarial example, over their N elements.

    Units: as the input; of spikes, l0 counts flips, and rate, l1 / N and mean_square are one number.
    """

    l0: int  # elements that differ
    rate: float  # l0 / N
    l1: float
    l2: float
    rms: float
    linf: float
    dissertation: float  # mean square: what the dissertation's own code calls the perturbation per point
    text: float  # l2 / N: what section 5.2.5 defines

    def named(self) -> dict[str, float]:
        """By name."""
        return asdict(self)


def perturbation(before: npt.NDArray[np.float32], after: npt.NDArray[np.float32]) -> Perturbation:
    """Measures of `after - before`, in f64."""
    change = np.abs(after.astype(np.float64) - before)
    square = float((change**2).sum())
    l0 = int(np.count_nonzero(change))
    return Perturbation(
        l0=l0,
        rate=l0 / change.size,
        l1=float(change.sum()),
        l2=square**0.5,
        rms=(square / change.size) ** 0.5,
        linf=float(change.max(initial=0.0)),
        dissertation=square / change.size,
        text=square**0.5 / change.size,
    )
