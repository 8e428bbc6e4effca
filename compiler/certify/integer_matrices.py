"""The linear layers of a network as sparse integer matrices over flattened elements, C, H, W order."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from compiler.ir import TensorType
from compiler.ir.ops import AvgPool2d, Conv2d, MaxPool2d

if TYPE_CHECKING:
    from scipy.sparse import csr_array

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Axis:
    """How windows lie along rows or columns: output `i` starts at `stride * i - padding`."""

    size: int
    extent: int  # windows
    kernel: int
    stride: int
    padding: int

    def pairs(self) -> tuple[Ints, Ints, Ints]:
        """Window, offset in it and input position, for all positions that are not padding."""
        window, offset = np.indices((self.extent, self.kernel)).reshape(2, -1)
        position = self.stride * window + offset - self.padding
        inside = (position >= 0) & (position < self.size)
        return window[inside], offset[inside], position[inside]

    def lengths(self, *, with_padding: bool) -> Ints:
        """Positions of each window, with those in the padding or without, never those beyond it."""
        start = self.stride * np.arange(self.extent) - self.padding
        end = np.minimum(start + self.kernel, self.size + self.padding)
        if with_padding:
            return end - start
        return np.minimum(end, self.size) - np.maximum(start, 0)


def axes(op: Conv2d | AvgPool2d | MaxPool2d, kernel: tuple[int, int], x: TensorType, y: TensorType) -> list[Axis]:
    """Rows and columns of an op that slides windows over x."""
    return [
        Axis(size=x.size(name), extent=y.size(name), kernel=kernel[i], stride=op.stride[i], padding=op.padding[i])
        for i, name in enumerate("HW")
    ]


def convolution(weight: Ints, op: Conv2d, x: TensorType, y: TensorType) -> csr_array:
    """The matrix of a convolution.

    y[o, p] = sum over c, k of weight[o, c, k] * x[c, stride * p + k - padding]

    Shapes: weight (O, C / groups, kh, kw) -> (O * H' * W', C * H * W).
    Source: equation 2.3.
    """
    out, per_group = weight.shape[:2]
    rows, columns = axes(op, (weight.shape[2], weight.shape[3]), x, y)
    row, row_offset, row_in = (part[None, None, :, None] for part in rows.pairs())
    column, column_offset, column_in = (part[None, None, None, :] for part in columns.pairs())
    o = np.arange(out)[:, None, None, None]
    within = np.arange(per_group)[None, :, None, None]
    channel = o // (out // op.groups) * per_group + within
    targets = (o * rows.extent + row) * columns.extent + column
    sources = (channel * rows.size + row_in) * columns.size + column_in
    values = weight[o, within, row_offset, column_offset]
    targets, sources, values = (a.reshape(-1) for a in np.broadcast_arrays(targets, sources, values))
    return _matrix(
        values, targets, sources, (out * rows.extent * columns.extent, x.size("C") * rows.size * columns.size)
    )


def averages(op: AvgPool2d, x: TensorType, y: TensorType) -> tuple[csr_array, int]:
    """Sums over windows, each weighted by L / divisor, and L, the least common multiple of the divisors.

    Shapes: (C * H' * W', C * H * W).
    """
    rows, columns = axes(op, op.kernel, x, y)
    divisors = np.multiply.outer(
        rows.lengths(with_padding=op.count_include_pad), columns.lengths(with_padding=op.count_include_pad)
    )
    common = int(np.lcm.reduce(divisors.reshape(-1)))
    targets, sources = _windows(rows, columns, x.size("C"))
    places = rows.extent * columns.extent
    values = (common // divisors).reshape(-1)[targets % places]
    return _matrix(values, targets, sources, (x.size("C") * places, x.size("C") * rows.size * columns.size)), common


def memberships(op: MaxPool2d, x: TensorType, y: TensorType) -> csr_array:
    """1 where an element is in a window.

    Shapes: (C * H' * W', C * H * W).
    """
    rows, columns = axes(op, op.kernel, x, y)
    targets, sources = _windows(rows, columns, x.size("C"))
    channels = x.size("C")
    shape = (channels * rows.extent * columns.extent, channels * rows.size * columns.size)
    return selected(targets, sources, shape)


def scaled_rows(matrix: csr_array, factors: Ints) -> csr_array:
    """Every row times its factor."""
    scaled = matrix.copy()
    scaled.data *= np.repeat(factors, np.diff(matrix.indptr))
    scaled.eliminate_zeros()
    return scaled


def selected(targets: Ints, sources: Ints, shape: tuple[int, int]) -> csr_array:
    """1 at every (target, source), 0 elsewhere."""
    return _matrix(np.ones(len(targets), np.int64), targets, sources, shape)


def dense(values: Ints) -> csr_array:
    """The matrix of a linear layer."""
    from scipy import sparse

    return sparse.csr_array(values)


def _windows(rows: Axis, columns: Axis, channels: int) -> tuple[Ints, Ints]:
    """Flat window and flat element, for every element of every window."""
    row, _, row_in = (part[None, :, None] for part in rows.pairs())
    column, _, column_in = (part[None, None, :] for part in columns.pairs())
    channel = np.arange(channels)[:, None, None]
    targets = (channel * rows.extent + row) * columns.extent + column
    sources = (channel * rows.size + row_in) * columns.size + column_in
    targets, sources = np.broadcast_arrays(targets, sources)
    return targets.reshape(-1), sources.reshape(-1)


def _matrix(values: Ints, targets: Ints, sources: Ints, shape: tuple[int, int]) -> csr_array:
    from scipy import sparse

    matrix = sparse.csr_array((values, (targets, sources)), shape=shape)
    matrix.eliminate_zeros()
    return matrix
