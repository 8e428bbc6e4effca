"""What the Backward Engine does for tiles whose masks are known: its finders and PEs counted by matrix products."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from hwmodel.config import H2LearnConfig, Skips, Synchronise
from hwmodel.isa import GradConvTile
from hwmodel.timing.tiles import TileCounts, run_ahead_cycles

Mask = npt.NDArray[np.bool_] | npt.NDArray[np.uint8]
F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class WindowSums:
    """Effectual I&O Finder: what each row of PEs finds in the window of each output, in scan order.

    Shapes: cycles (images, rows, outputs); valid, busy (images, outputs), sums over the rows of valid inputs and of
    cycles. One image and one row stand for all where no input is skipped.
    Source: section 3.2.3, figure 3.6 (b); an output without valid inputs takes a cycle.
    """

    cycles: F32
    valid: F64
    busy: F64


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class OutputGroups:
    """Effectual O Finder: the outputs that each PE of the groups of a row gets.

    Shapes: groups (images, outputs, PEs of a row), how often the PE computes the output: once, or for several of its
    shared columns; found (images, outputs), columns that want it. One image stands for all where no output is skipped,
    and then one column too unless columns are shared.
    Source: section 3.2.3, figure 3.6 (a).
    """

    groups: F32
    found: F64


def window_sums(inputs: Mask | None, tile: GradConvTile, config: H2LearnConfig) -> WindowSums:
    """Valid inputs of every window; each tap that meets the stride where inputs are not skipped or not known.

    Taps outside the region find nothing where inputs are skipped.
    Shapes: inputs (images, y, x, rows).
    """
    if inputs is None or config.backward.skips not in (Skips.BOTH, Skips.INPUTS):
        rows = _taps(tile.h, tile.kernel_h, tile.stride_h, tile.top)
        columns = _taps(tile.w, tile.kernel_w, tile.stride_w, tile.left)
        taps = np.outer(rows, columns).reshape(1, 1, -1).astype(np.float64)
        return WindowSums(
            cycles=np.maximum(taps, 1).astype(np.float32),
            valid=tile.rows * taps[:, 0],
            busy=tile.rows * np.maximum(taps, 1)[:, 0],
        )
    images, height, width, rows_in = inputs.shape
    assert (images, rows_in) == (tile.nt * tile.nn, tile.rows)
    vertical = _hits(tile.h, tile.kernel_h, tile.stride_h, tile.top, height)
    horizontal = _hits(tile.w, tile.kernel_w, tile.stride_w, tile.left, width)
    channels_first = (inputs != 0).reshape(images, height * width, rows_in).transpose(0, 2, 1)
    valid = np.matmul(channels_first.astype(np.float32), np.kron(vertical, horizontal))
    cycles = np.maximum(valid, np.float32(1))
    return WindowSums(
        cycles=cycles, valid=valid.sum(axis=1, dtype=np.float64), busy=cycles.sum(axis=1, dtype=np.float64)
    )


def output_groups(outputs: Mask | None, tile: GradConvTile, config: H2LearnConfig) -> OutputGroups:
    """Valid outputs of every column, dealt out in turn by their rank; all where outputs are not skipped or not known.

    With shared columns a list holds the outputs of all columns of one place modulo cols / shared_columns, position by
    position, and goes to the PEs of that many columns.
    Shapes: outputs (images, h, w, cols).
    """
    backward, size = config.backward, tile.h * tile.w
    known = outputs is not None and tile.out_sparsity and backward.skips in (Skips.BOTH, Skips.OUTPUTS)
    if not known:
        found = np.full((1, size), float(tile.cols))
        width = 1 if backward.shared_columns == 1 else tile.cols
        return OutputGroups(groups=_dealt(np.ones((1, size, width), np.bool_), config), found=found)
    assert outputs is not None
    images = tile.nt * tile.nn
    assert outputs.shape == (images, tile.h, tile.w, tile.cols)
    valid = (outputs != 0).reshape(images, size, tile.cols)
    return OutputGroups(groups=_dealt(valid, config), found=valid.sum(axis=2, dtype=np.float64))


def _dealt(valid: npt.NDArray[np.bool_], config: H2LearnConfig) -> F32:
    """Outputs by PE. Shapes: valid (images, outputs, columns) -> (images, outputs, PEs of a list x lists)."""
    backward = config.backward
    images, size, columns = valid.shape
    lists = min(backward.cols // backward.shared_columns, columns)
    share = -(-columns // lists)
    pes = backward.pe_group * backward.shared_columns
    padded = np.zeros((images, size, share * lists), np.bool_)
    padded[:, :, :columns] = valid
    entries = padded.reshape(images, size * share, lists)
    rank = np.cumsum(entries, axis=1, dtype=np.int16 if size * share < 1 << 15 else np.int32)  # from 1
    pe = np.where(entries, (rank - 1) % pes, -1).reshape(images, size, share, lists)
    groups = np.empty((images, size, pes, lists), np.float32)
    for number in range(pes):
        groups[:, :, number] = (pe == number).sum(axis=2, dtype=np.uint8)
    return groups.reshape(images, size, pes * lists)


def counts_by_image(sums: WindowSums, groups: OutputGroups, images: int) -> F64:
    """Slowest PE without the pipeline's fill, macs, outputs and cycles of all PEs. Shapes: (images, 4)."""
    slowest = np.matmul(sums.cycles, groups.groups).max(axis=(1, 2))
    columns = (slowest, *_effort(sums, groups))
    return np.stack([np.broadcast_to(column.astype(np.float64), (images,)) for column in columns], axis=1)


def tile_counts(sums: WindowSums, groups: OutputGroups, tile: GradConvTile, config: H2LearnConfig) -> TileCounts:
    """One instruction, from what its finders found."""
    images = tile.nt * tile.nn
    cycles = array_cycles(np.matmul(sums.cycles, groups.groups), images, config)
    pairs, found, busy = (float(effort.sum()) * (images // len(effort)) for effort in _effort(sums, groups))
    return TileCounts(cycles=cycles, macs=pairs, outputs=found, pe_cycles=busy)


def array_cycles(by_pe: F32, images: int, config: H2LearnConfig) -> float:
    """Cycles of an array whose PEs are busy for `by_pe`, pipeline fills included.

    The slowest PE decides over each tile, or over all tiles of the iteration: then PEs run on from tile to tile, and
    the pipeline fills once. Between the two a PE runs on until it is `run_ahead` tiles ahead of the slowest one.
    Shapes: by_pe (images, rows, PEs of a row); one image stands for all.
    """
    backward = config.backward
    repeats = images // len(by_pe)
    if backward.synchronise is Synchronise.ITERATION:
        return float(by_pe.sum(axis=0, dtype=np.float64).max()) * repeats + backward.pipe
    if backward.run_ahead:
        return run_ahead_cycles(by_pe.reshape(len(by_pe), -1), images, backward.run_ahead, backward.pipe)
    return float(by_pe.max(axis=(1, 2)).sum(dtype=np.float64)) * repeats + images * backward.pipe


def mask_counts(inputs: Mask | None, outputs: Mask | None, tile: GradConvTile, config: H2LearnConfig) -> TileCounts:
    """One instruction, from its masks as they stand in the banks of the source and of the outputs.

    Shapes: inputs (nt * nn, y, x, rows), outputs (nt * nn, h, w, cols); None where all are valid.
    Source: section 3.2.3.
    """
    return tile_counts(window_sums(inputs, tile, config), output_groups(outputs, tile, config), tile, config)


def source_size(outputs: int, first: int, stride: int) -> int:
    """Rows (or columns) of the source that a tile's outputs can meet, from row 0 of its region; `first` as `top`."""
    return max((outputs - 1 + first) // stride + 1, 1)


def _effort(sums: WindowSums, groups: OutputGroups) -> tuple[F64, F64, F64]:
    """Pairs, outputs and cycles of all PEs of an image; a single image stands for all."""
    return (sums.valid * groups.found).sum(axis=1), groups.found.sum(axis=1), (sums.busy * groups.found).sum(axis=1)


@functools.lru_cache(maxsize=256)
def _hits(size: int, kernel: int, stride: int, first: int, extent: int) -> F32:
    """1 where a tap of the kernel takes output `at` to row `row` of the source. Shapes: (row, at)."""
    tap = np.arange(size) + first - stride * np.arange(extent)[:, None]
    return ((tap >= 0) & (tap < kernel)).astype(np.float32)


def _taps(size: int, kernel: int, stride: int, first: int) -> list[int]:
    """Taps that meet the stride, of each output of an axis."""
    return [sum((at + first - tap) % stride == 0 for tap in range(kernel)) for at in range(size)]
