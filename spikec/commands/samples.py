"""Test samples of a data set in the shape that a program takes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from frontends.datasets import Split, load
from hwmodel.errors import CompileError, Loc
from runtime.host import F32


@dataclass(frozen=True, slots=True, kw_only=True)
class HeldOut:
    """Inputs (N, ...) or (T, N, ...), and labels where the data set has them."""

    x: F32
    labels: npt.NDArray[np.int64] | None


def held_out(data: str, count: int) -> HeldOut:
    """The first `count` test samples (0: all).

    Raises: CompileError if the data set has fewer.
    """
    return samples_of(data, count, Split.TEST)


def samples_of(data: str, count: int, split: Split) -> HeldOut:
    """The first `count` samples of a split (0: all).

    Raises: CompileError if it has fewer.
    """
    samples = load(data, split=split)
    if count < 0 or count > len(samples):
        raise CompileError(
            f"{count} samples asked for, the {split} set has {len(samples)}",
            Loc(data),
            hint=f"--samples 1 to {len(samples)}, or 0 for all",
        )
    chosen = samples.take(slice(0, count or len(samples)))
    x = np.ascontiguousarray(chosen.x.swapaxes(0, 1)) if chosen.has_time else chosen.x
    return HeldOut(x=x, labels=chosen.y if chosen.labelled else None)
