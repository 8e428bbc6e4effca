"""What every input set does: checks of what it is given, and sums over one sample."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from hwmodel.errors import CompileError, Loc

Floats = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]
LOC = Loc("input set")


def fill(owner: object, **values: object) -> None:
    """Fill fields of a frozen dataclass; its arrays become read-only."""
    for name, value in values.items():
        if isinstance(value, np.ndarray):
            value.setflags(write=False)
        object.__setattr__(owner, name, value)


def hull(clean: Floats, free: Bools) -> dict[str, Doubles]:
    """The fields lower and upper of spikes of which the free ones take both values."""
    return {side: np.where(free, end, clean).astype(np.float64) for side, end in (("lower", 0.0), ("upper", 1.0))}


def total(terms: Tensor, shape: tuple[int, ...]) -> Tensor:
    """The sum over the axes of one sample."""
    return terms.flatten(-len(shape)).sum(-1)


def least_sum(values: Tensor, k: int) -> Tensor:
    """The sum of the k smallest along the last axis. Shapes: (..., n) -> (...)."""
    if k >= values.shape[-1]:
        return values.sum(-1)
    if values.requires_grad or k == 0:
        return values.topk(k, largest=False).values.sum(-1)
    chosen = np.partition(values.numpy(), k - 1, -1)[..., :k]  # several times as fast as topk
    return torch.from_numpy(chosen).sum(-1)


def check_form(a: Tensor, shape: tuple[int, ...]) -> None:
    """Refuse a linear form that is not f64, or not over inputs of that shape.

    Raises: CompileError.
    """
    if a.dtype is not torch.float64 or a.shape[a.ndim - len(shape) :] != shape:
        raise CompileError(f"a linear form {a.dtype} {tuple(a.shape)} is no f64 one over inputs {shape}", LOC)


def is_spikes(x: npt.NDArray[np.generic], shape: tuple[int, ...]) -> bool:
    """Whether an array holds zeros and ones only, in that shape."""
    return x.shape == shape and bool(np.isin(x, (0, 1)).all())


def spikes(x: npt.ArrayLike) -> Floats:
    """A copy of a clean input of spikes.

    Raises: CompileError if it is not binary.
    """
    given = finite(x, "clean input")
    if not np.isin(given, (0, 1)).all():
        raise CompileError("the clean input holds other values than 0 and 1", LOC, hint="give spikes, or use LinfReal")
    return given


def finite(x: npt.ArrayLike, what: str) -> Floats:
    """A copy in f32.

    Raises: CompileError if it is empty, or not finite.
    """
    given = np.array(x, np.float32)
    if not given.size or given.ndim == 0:
        raise CompileError(f"the {what} has shape {given.shape}, which holds no sample", LOC)
    if not np.isfinite(given).all():
        raise CompileError(f"the {what} holds a NaN or infinite value", LOC)
    return given


def mask_of(mask: npt.ArrayLike, shape: tuple[int, ...]) -> Bools:
    """A copy of a mask.

    Raises: CompileError if it is not bool, or of another shape.
    """
    given = np.array(mask)
    if given.shape != shape or given.dtype != np.bool_:
        raise CompileError(f"a mask {given.dtype} {given.shape} is no bool one for inputs {shape}", LOC)
    return given


def real_interval(clean: Floats, eps: float, clip: tuple[float, float]) -> tuple[Floats, Floats]:
    """The least and the largest f32 within eps of each element and inside clip.

    The ends are taken in f64, where a difference of an f32 value and eps is off by at most 2^-53 of it.
    Raises: CompileError if eps is negative or not finite.
    """
    if not 0.0 <= eps < math.inf:
        raise CompileError(f"eps is {eps:g}, must be at least 0 and finite", LOC)
    wide = clean.astype(np.float64)
    low, high = np.maximum(wide - eps, clip[0]), np.minimum(wide + eps, clip[1])
    least, most = low.astype(np.float32), high.astype(np.float32)
    least = np.where(least < low, np.nextafter(least, np.float32(np.inf)), least)
    most = np.where(most > high, np.nextafter(most, np.float32(-np.inf)), most)
    return least.astype(np.float32), most.astype(np.float32)


def tensor(array: npt.NDArray[np.generic]) -> Tensor:
    """An array's values, in memory of their own: the arrays of a set are read-only, which tensors cannot be."""
    return torch.from_numpy(array.copy())
