"""Bounds of a layer's sums where few of its inputs may flip: the clean sum and the largest changes (top-k)."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional

from compiler.ir.ops import Conv2d, Linear

Floats = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]
CHUNK = 1 << 22  # changes held at once


def flip_sums(op: Conv2d | Linear, weight: Tensor, change: Tensor, most: Tensor) -> tuple[Tensor, Tensor]:
    """The least and the largest change of each output, when of each sample's inputs at most so many change.

    y - y_clean = sum over at most k of the i of w_i change_i: the least takes the k most negative terms. For a single
    output no bound is tighter.

    change: of each input, -1 or 1, or 0 where it cannot: so that terms are weights, which f32 holds.
    Shapes: change (M, C, ...), most (M,) -> two (M, O, places), f64.
    """
    windows, rows = _windows(op, change, weight.shape[2:]).float().numpy(), _rows(op, weight).float().numpy()
    groups, outputs, terms = rows.shape
    low, high = np.empty((2, len(windows), groups, outputs, windows.shape[2]))
    budgets = most.numpy()
    step = max(1, CHUNK // (outputs * windows.shape[2] * terms))
    for start in range(0, len(windows), step):
        part = slice(start, start + step)
        for group in range(groups):
            terms_of = rows[group, :, None] * windows[part, group, None]
            low[part, group] = _least(terms_of, budgets[part])
            high[part, group] = -_least(-terms_of, budgets[part])
    return torch.from_numpy(low).flatten(1, 2), torch.from_numpy(high).flatten(1, 2)


def _least(terms: Floats, most: Integers) -> Doubles:
    """The sum of up to so many of the most negative. Shapes: (M, O, places, terms), (M,) -> (M, O, places)."""
    k = min(int(most.max()), terms.shape[-1])
    if k < 1:
        return np.zeros(terms.shape[:-1])
    kept = np.sort(np.partition(terms, k - 1, -1)[..., :k], -1)
    counts = np.arange(k) < most[:, None, None, None]
    return np.asarray(np.sum(np.minimum(kept, 0.0), -1, np.float64, where=counts))


def _windows(op: Conv2d | Linear, x: Tensor, kernel: torch.Size) -> Tensor:
    """What the outputs at each place take. Shapes: (M, groups, places, terms)."""
    if isinstance(op, Linear):
        return x[:, None, None]
    columns = functional.unfold(x, kernel, padding=op.padding, stride=op.stride)  # channels first, as weights are
    return columns.reshape(len(x), op.groups, -1, columns.shape[-1]).transpose(2, 3)


def _rows(op: Conv2d | Linear, weight: Tensor) -> Tensor:
    """The weights of each output. Shapes: (groups, outputs, terms)."""
    groups = 1 if isinstance(op, Linear) else op.groups
    return weight.reshape(groups, len(weight) // groups, -1)
