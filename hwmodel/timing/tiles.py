"""What the Backward Engine does for the tiles of a grid iteration, as a source answers that knows the masks or not."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from hwmodel.config import H2LearnConfig
from hwmodel.isa import GradConvTile


@dataclass(frozen=True, slots=True, kw_only=True)
class TileCounts:
    """All tiles (one of each sample and step) of one instruction, summed.

    cycles: that the array is busy, pipeline fills included. macs: valid pairs of input and output over all PEs.
    outputs: output IDs over all columns. pe_cycles: cycles of all PEs without waiting for each other, so that
    pe_cycles / (PEs * cycles) is the array's utilisation.
    """

    cycles: float
    macs: float
    outputs: float
    pe_cycles: float


class TileSource(Protocol):
    """Answers for one instruction; `position` is its place in the stream of the Backward Engine."""

    def counts(self, tile: GradConvTile, position: int) -> TileCounts:
        """The work of all its tiles."""
        ...


@dataclass(frozen=True, slots=True)
class DenseTiles:
    """No zero is skipped, or nothing is known of the masks.

    A tile takes ceil(outputs / group) * taps cycles, and the pipeline's fill; with a stride s an output has about
    taps / s**2 valid taps, counted exactly.
    """

    config: H2LearnConfig

    def counts(self, tile: GradConvTile, position: int) -> TileCounts:
        """Every output with every tap that meets the stride."""
        backward = self.config.backward
        rows = _taps(tile.h, tile.kernel_h, tile.stride_h, tile.top)
        columns = _taps(tile.w, tile.kernel_w, tile.stride_w, tile.left)
        works = [max(1, y * x) for y in rows for x in columns]  # output by output, in scan order
        groups = [sum(works[lane :: backward.pe_group]) for lane in range(backward.pe_group)]
        tiles, outputs = tile.nt * tile.nn, len(works)
        pairs = sum(rows) * sum(columns)
        return TileCounts(
            cycles=tiles * (max(groups) + backward.pipe),
            macs=tiles * pairs * tile.rows * tile.cols,
            outputs=tiles * outputs * tile.cols,
            pe_cycles=tiles * sum(works) * tile.rows * tile.cols,
        )


def _taps(size: int, kernel: int, stride: int, first: int) -> list[int]:
    """Taps of one axis that meet the stride, for each output."""
    return [sum((at + first - tap) % stride == 0 for tap in range(kernel)) for at in range(size)]
