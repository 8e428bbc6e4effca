"""Window geometry shared by the engines."""

from __future__ import annotations

from dataclasses import dataclass

TAPS_PER_PE = 9
SUB_LUTS = 3
SUB_LUT_ENTRIES = 8
WINDOWS_PER_PATTERN = 8  # neighbouring output columns that a PE of the Weight Update Engine takes at once
UPDATE_SUB_LUTS = 2
UPDATE_SUB_LUT_ENTRIES = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Window:
    """A sliding window over a region whose halo is included: no padding happens in the engines.

    Shapes: region height >= (out_h - 1) * stride_h + kernel_h, and the same for the width.
    """

    kernel_h: int
    kernel_w: int
    stride_h: int
    stride_w: int
    out_h: int
    out_w: int

    @property
    def taps(self) -> int:
        """Kernel positions, in raster order."""
        return self.kernel_h * self.kernel_w

    @property
    def pieces(self) -> int:
        """PEs that one input channel occupies: nine taps each, the last one zero-padded."""
        return -(-self.taps // TAPS_PER_PE)

    def covers(self, height: int, width: int, kernel_h: int | None = None) -> bool:
        """Whether a region is large enough for `kernel_h` kernel rows (all of them when None)."""
        rows = self.kernel_h if kernel_h is None else kernel_h
        return (
            height >= (self.out_h - 1) * self.stride_h + rows
            and width >= (self.out_w - 1) * self.stride_w + self.kernel_w
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class GradWindow:
    """Geometry of an input gradient: output (oy, ox) reads tap (ky, kx) at row (oy + top - ky) / stride_h of the
    region, where that divides and lies inside [0, Hin); columns alike with left.

    Source: section 3.2.3, the sliding window of the kernel rotated by 180 degrees.
    """

    kernel_h: int
    kernel_w: int
    stride_h: int
    stride_w: int
    out_h: int
    out_w: int
    top: int
    left: int

    @property
    def taps(self) -> int:
        """Kernel positions, in raster order."""
        return self.kernel_h * self.kernel_w
