"""The types of the IR's values: a shape, an element type and a name for every axis."""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import StrEnum

Dim = int | str  # a string is a symbolic extent, as "N" for the batch


class DType(StrEnum):
    """Element types; a spike is one bit."""

    SPIKE = "spike"
    F16 = "f16"
    F32 = "f32"


@dataclass(frozen=True, slots=True)
class TensorType:
    """A typed value: extents, element type and axis names.

    Axes are letters of `TNCHW` in that order: time, sample, channel (or feature), row, column.
    """

    shape: tuple[Dim, ...]
    dtype: DType
    axes: str

    def __str__(self) -> str:
        dims = ", ".join(
            axis if size == axis else f"{axis}={size}" for axis, size in zip(self.axes, self.shape, strict=True)
        )
        return f"{self.dtype}[{dims}]"

    def has(self, axis: str) -> bool:
        """Whether the value has the axis."""
        return axis in self.axes

    def size(self, axis: str) -> int:
        """The extent of an axis that is not symbolic."""
        extent = self.shape[self.axes.index(axis)]
        assert isinstance(extent, int), f"{axis} is symbolic"
        return extent

    def resized(self, **sizes: Dim) -> TensorType:
        """The same type with other extents on the named axes."""
        shape = tuple(sizes.get(axis, size) for axis, size in zip(self.axes, self.shape, strict=True))
        return replace(self, shape=shape)

    def of(self, dtype: DType) -> TensorType:
        """The same shape with another element type."""
        return replace(self, dtype=dtype)

    def without(self, axis: str) -> TensorType:
        """The type after a reduction over one axis."""
        at = self.axes.index(axis)
        return replace(self, shape=self.shape[:at] + self.shape[at + 1 :], axes=self.axes[:at] + self.axes[at + 1 :])
