"""What the Backward Engine does for the tiles of a grid iteration, as a source answers that knows the masks or not."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from hwmodel.config import BackwardConfig, H2LearnConfig, Synchronise
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

    A tile takes ceil(outputs / group) * taps cycles; with a stride s an output has about taps / s**2 valid taps,
    counted exactly. The pipeline fills for each tile, or once where PEs run on through all tiles.
    """

    config: H2LearnConfig

    def counts(self, tile: GradConvTile, position: int) -> TileCounts:
        """Every output with every tap that meets the stride."""
        backward = self.config.backward
        rows = _taps(tile.h, tile.kernel_h, tile.stride_h, tile.top)
        columns = _taps(tile.w, tile.kernel_w, tile.stride_w, tile.left)
        works = [max(1, y * x) for y in rows for x in columns]  # output by output, in scan order
        tiles, outputs, pairs = tile.nt * tile.nn, len(works), sum(rows) * sum(columns)
        by_pe = _works_by_pe(works, tile.cols, backward)
        if backward.synchronise is Synchronise.ITERATION:
            cycles: float = tiles * max(by_pe) + backward.pipe
        elif backward.run_ahead:
            cycles = run_ahead_cycles(np.array([by_pe], np.float64), tiles, backward.run_ahead, backward.pipe)
        else:
            cycles = tiles * (max(by_pe) + backward.pipe)
        return TileCounts(
            cycles=cycles,
            macs=tiles * pairs * tile.rows * tile.cols,
            outputs=tiles * outputs * tile.cols,
            pe_cycles=tiles * sum(works) * tile.rows * tile.cols,
        )


def run_ahead_cycles(by_pe: npt.NDArray[np.floating], images: int, most: int, pipe: int) -> float:
    """Cycles until all PEs have done all tiles; a PE that waited for the slowest one fills its pipeline anew.

    start[i] = max(end[i - 1], max over PEs of end[i - 1 - most]), + pipe where that is later than end[i - 1].
    Shapes: by_pe (images, PEs), or (1, PEs) for all.
    """
    end = np.full(by_pe.shape[1], float(pipe))
    done: list[float] = []
    for image in range(images):
        if image > most:
            limit = done[image - 1 - most]
            end = np.where(end < limit, limit + pipe, end)
        end += by_pe[image % len(by_pe)]
        done.append(float(end.max()))
    return done[-1]


def _works_by_pe(works: list[int], columns: int, backward: BackwardConfig) -> list[int]:
    """Cycles of each PE, over lists of the outputs of as many columns as share one."""
    lists = min(backward.cols // backward.shared_columns, columns)
    pes = backward.pe_group * backward.shared_columns
    shares = {columns // lists, -(-columns // lists)}
    dealt = ([work for work in works for _ in range(share)] for share in shares)
    return [sum(entries[pe::pes]) for entries in dealt for pe in range(pes)]


def _taps(size: int, kernel: int, stride: int, first: int) -> list[int]:
    """Taps of one axis that meet the stride, for each output."""
    return [sum((at + first - tap) % stride == 0 for tap in range(kernel)) for at in range(size)]
