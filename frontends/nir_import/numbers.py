"""The numbers of NIR neurons: one for each channel at most, and free of the rounding of their encoding."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from compiler.ir import CompileError, Loc
from frontends.nir_file.nodes import NirNode

Floats = npt.NDArray[np.floating]
Float64 = npt.NDArray[np.float64]
_DIGITS = {4: 5, 8: 12}  # by bytes of a number: how many decimal digits one that a person wrote has at most


def numbers(node: NirNode, name: str, shape: tuple[int, ...], loc: Loc) -> Floats:
    """A parameter as one value, shape (), or one for each channel, shape (C,), in the width that the file has.

    shape: of the node's value without samples and time, channels first.
    Raises: CompileError where it is missing, no number, NaN, or differs between the neurons of a channel.
    """
    value = node.fields.get(name)
    if not isinstance(value, np.ndarray) or value.dtype.kind not in "fiub":
        raise CompileError(f"{node.kind} has no numbers named {name}", loc)
    width = np.float32 if value.dtype == np.float32 else np.float64
    array: Floats = value.astype(width, copy=False)
    if np.isnan(array).any():
        raise CompileError(f"{name} is not a number (NaN)", loc)
    if not array.size:
        raise CompileError(f"{name} is empty", loc)
    if (array == array.flat[0]).all():
        return array.reshape(-1)[:1].reshape(())
    while array.ndim > len(shape) and array.shape[0] == 1:  # an axis of samples
        array = array[0]
    fits = array.ndim == len(shape) and all(a in (1, b) for a, b in zip(array.shape, shape, strict=True))
    if not fits:
        raise CompileError(f"{name} has shape {value.shape}, the neurons have {shape}", loc)
    channels = array.reshape(array.shape[0], -1)
    if not (channels == channels[:, :1]).all():
        raise CompileError(
            f"{name} differs between the neurons of one channel",
            loc,
            hint="a neuron's numbers are one for all or one for each channel",
        )
    return channels[:, 0]


def written(stored: Floats, near: Float64, encode: Callable[[Floats], Floats]) -> Float64:
    """The numbers that a program had before it wrote `stored`, as far as they can be told.

    near: what decodes to them but for rounding. Of the numbers around it that encode to exactly the stored ones,
    the one of fewest decimal digits is taken; where none has few, the nearest of the stored width.
    """
    stored, near = np.broadcast_arrays(stored, near)
    result = np.array(near, dtype=np.float64)
    kind = stored.dtype.type
    for at in np.ndindex(stored.shape):
        want, value = stored[at], kind(near[at])
        if not np.isfinite(near[at]):
            continue
        short = [kind(f"{near[at]:.{digits}g}") for digits in range(1, _DIGITS[stored.dtype.itemsize] + 1)]
        around = [value, np.nextafter(value, kind(-np.inf)), np.nextafter(value, kind(np.inf))]
        with np.errstate(all="ignore"):
            found = next((c for c in (*short, *around) if encode(np.asarray(c)) == want), None)
        if found is not None:
            # A short f32 number is meant as its decimal text: 0.9, not 0.8999999761581421.
            result[at] = float(str(found))
    return result
