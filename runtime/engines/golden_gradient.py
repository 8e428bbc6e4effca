"""Golden Backward Engine: effectual neuron IDs, sparse PEs, and gradients of linear and real-valued layers."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from runtime.engines.geometry import GradWindow, Window
from runtime.engines.golden_forward import accumulate_tree, adder_tree
from runtime.engines.soma_plan import F16, U8

OUTPUT_ID_BUFFERS = 4  # PEs of a group: section 3.2.3, "four-PEs in our experiments"

Ids = npt.NDArray[np.intp]


@dataclass(frozen=True, slots=True, kw_only=True)
class ConvIds:
    """What an Effectual I&O Finder tells the PEs of a row about the outputs of one buffer.

    A conv ID counts the taps of the sliding window over x in raster order, in which the priority encoder hands
    them out.
    Shapes: tags (ids, taps, R), rows and columns (ids, taps), where a tag is set; weight_ids (taps,).
    Source: section 3.2.3, figure 3.6 (b).
    """

    tags: npt.NDArray[np.bool_]  # valid multiplications
    rows: Ids  # of the input
    columns: Ids
    weight_ids: Ids


def output_ids(mask: U8, id_buffers: int) -> tuple[Ids, ...]:
    """Effectual O Finder of a column: (b, y, x) of the valid outputs, scanned row by row, dealt out in turn per b.

    Shapes: mask (B, h, w) -> (ids, 3) per buffer.
    Source: section 3.2.3, figure 3.6 (a).
    """
    ids = np.argwhere(mask)
    rank = np.arange(len(ids)) - np.searchsorted(ids[:, 0], ids[:, 0])
    return tuple(ids[rank % id_buffers == k] for k in range(id_buffers))


def conv_ids(ids: Ids, x_mask: U8, window: GradWindow) -> ConvIds:
    """Effectual I&O Finder: the taps at which an output meets an input that is not zero.

    Shapes: ids (ids, 3), x_mask (B, Hin, Win, R).
    """
    _, height, width, _ = x_mask.shape
    weight_ids = np.arange(window.taps)[::-1]
    ky, kx = np.divmod(weight_ids, window.kernel_w)
    rows, row_left = np.divmod(ids[:, 1, None] + window.top - ky, window.stride_h)
    columns, column_left = np.divmod(ids[:, 2, None] + window.left - kx, window.stride_w)
    hit = (row_left == 0) & (rows >= 0) & (rows < height) & (column_left == 0) & (columns >= 0) & (columns < width)
    rows, columns = np.where(hit, rows, 0), np.where(hit, columns, 0)
    tags = hit[..., None] & x_mask[ids[:, 0, None], rows, columns].astype(np.bool_)
    return ConvIds(tags=tags, rows=rows, columns=columns, weight_ids=weight_ids)


def private_sums(ids: Ids, found: ConvIds, x: F16, weights: F16) -> F16:
    """One PE of each group in a column: multiply, round, add, round, conv ID after conv ID.

    Shapes: x (B, Hin, Win, R), weights (taps, R) -> (ids, R).
    """
    acc = np.zeros((len(ids), x.shape[-1]), np.float16)
    for conv, weight in enumerate(found.weight_ids):
        busy = np.flatnonzero(found.tags[:, conv].any(axis=1))
        inputs = x[ids[busy, 0], found.rows[busy, conv], found.columns[busy, conv]]
        acc[busy] = np.where(found.tags[busy, conv], acc[busy] + inputs * weights[weight], acc[busy])
    return acc


def accumulate_gradient(
    x: F16,
    x_mask: U8 | None,
    weights: F16,
    out_mask: U8 | None,
    window: GradWindow,
    psum: F16,
    init: bool,
    dense_rows: int,
    id_buffers: int = OUTPUT_ID_BUFFERS,
) -> None:
    """Column after column: find the effectual IDs, run the PE groups, reorder their sums and add the rows."""
    columns, rows = weights.shape[1:]
    assert weights.shape[0] == window.taps
    assert (x.shape[-1], psum.shape) == (rows, (x.shape[0], window.out_h, window.out_w, columns))
    taken = (x != 0).astype(np.uint8) if x_mask is None else x_mask
    wanted = np.ones(psum.shape, np.uint8) if out_mask is None else out_mask
    assert (taken.shape, wanted.shape) == (x.shape, psum.shape)
    tile = np.zeros((*psum.shape[:-1], rows, columns), np.float16)
    for column in range(columns):
        for ids in output_ids(wanted[..., column], id_buffers):
            found = conv_ids(ids, taken, window)
            b, y, column_x = ids.T
            tile[b, y, column_x, :, column] = private_sums(ids, found, x, weights[:, column])
    before = np.zeros_like(psum) if init else psum
    psum[...] = np.where(wanted.astype(np.bool_), before + adder_tree(tile, dense_rows), before)


def accumulate_fc_gradient(x: F16, weights: F16, psum: F16, init: bool, dense_rows: int) -> None:
    """Position after position of the map: one product a PE, no zero is skipped."""
    positions, columns, rows = weights.shape
    assert (x.shape[-1], psum.shape) == (rows, (x.shape[0], positions, columns))
    for position in range(positions):
        acc = np.zeros((x.shape[0], rows, columns), np.float16)
        acc = acc + x[:, :, None] * weights[position].T
        accumulate_tree(acc, dense_rows, psum[:, position], init)


def accumulate_outer(x: F16, g: F16, window: Window, psum: F16, init: bool, dense_rows: int) -> None:
    """Output position after output position, then map after map."""
    batch, out_h, out_w, columns = g.shape
    assert x.shape[-1] <= dense_rows
    assert (out_h, out_w) == (window.out_h, window.out_w)
    assert window.covers(x.shape[1], x.shape[2])
    assert psum.shape == (window.taps, x.shape[-1], columns)
    if init:
        psum[...] = 0
    for b in range(batch):
        acc = np.zeros_like(psum)
        for oy, ox in np.ndindex(out_h, out_w):
            y, left = oy * window.stride_h, ox * window.stride_w
            patch = x[b % len(x), y : y + window.kernel_h, left : left + window.kernel_w]
            product = patch.reshape(window.taps, -1, 1) * g[b, oy, ox]
            acc = np.where(g[b, oy, ox] != 0, acc + product, acc)
        psum[...] = psum + acc
