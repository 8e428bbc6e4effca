"""Bounds of a first layer's sums where few of its spikes flip, for whole batches and with gradients."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from compiler.ir.ops import Conv2d, Linear


def flip_sums(op: Conv2d | Linear, weight: Tensor, clean: Tensor, most: float) -> tuple[Tensor, Tensor]:
    """The least and the largest change of each output when up to `most` inputs flip; of a fraction, a part of one.

    A flip adds w where the input is 0 and -w where it is 1. So an output has twice as many candidates as inputs, each
    with the one value of its input at which it exists, in one order for all samples: the k most negative that exist
    are looked for among the first few, and further on where those are not enough. Exact, as
    `compiler.certify.flip_sums`, whose bounds these are.

    Shapes: clean (M, C, ...) of zeros and ones, weight as the layer's -> two (M, O, ...) as the layer's result.
    """
    if isinstance(op, Linear):
        low, high = _both(weight, clean, most)
        return low, high
    columns = functional.unfold(clean, weight.shape[2:], padding=op.padding, stride=op.stride)
    inside = functional.unfold(torch.ones_like(clean[:1]), weight.shape[2:], padding=op.padding, stride=op.stride)
    lows: list[Tensor] = []
    highs: list[Tensor] = []
    for rows, part, real in zip(
        weight.flatten(1).chunk(op.groups), columns.chunk(op.groups, 1), inside.chunk(op.groups, 1), strict=True
    ):
        taken = part.movedim(1, 2).flatten(0, 1)
        there = real.movedim(1, 2).expand(len(clean), -1, -1).flatten(0, 1)
        for sums, made in zip((lows, highs), _both(rows, taken, most, there), strict=True):
            sums.append(made.reshape(len(clean), -1, len(rows)).movedim(1, 2))
    low, high = torch.cat(lows, 1), torch.cat(highs, 1)
    size = [
        (extent + 2 * padding - kernel) // stride + 1
        for extent, padding, kernel, stride in zip(
            clean.shape[2:], op.padding, weight.shape[2:], op.stride, strict=True
        )
    ]
    return low.reshape(*low.shape[:2], *size), high.reshape(*high.shape[:2], *size)


def _both(rows: Tensor, clean: Tensor, most: float, there: Tensor | None = None) -> tuple[Tensor, Tensor]:
    return _least(rows, clean, most, there), -_least(-rows, clean, most, there)


def _least(rows: Tensor, clean: Tensor, most: float, there: Tensor | None) -> Tensor:
    """The sum of up to `most` of the most negative changes.

    Shapes: rows (O, F), clean and there (M, F), whether an input can flip -> (M, O).
    """
    terms = rows.shape[1]
    candidates = torch.cat([rows, -rows], 1)
    depth = min(2 * terms, 24 + 4 * int(most + 1))
    ones = clean.T.to(torch.bool)
    exists = torch.stack([~ones, ones])  # by the candidate's half
    if there is not None:
        exists = exists & there.T.to(torch.bool)
    while True:
        values, index = candidates.topk(depth, 1, largest=False)
        made, is_whole = _chosen(values, index, exists.flatten(0, 1), most)
        if is_whole or depth == 2 * terms:
            return made
        depth = min(2 * terms, 2 * depth)


def _chosen(values: Tensor, index: Tensor, exists: Tensor, most: float) -> tuple[Tensor, bool]:
    """The sums over the candidates at hand, and whether no further one could change them.

    Shapes: values and index (O, D), exists (2 F, M) -> (M, O).
    """
    shares = []
    is_whole = False
    with torch.no_grad():
        counts = values.new_zeros(len(values), exists.shape[1])
        for j in range(values.shape[1]):
            there = exists[index[:, j]]
            counts += there
            shares.append((most + 1 - counts).clamp_(0.0, 1.0).mul_(there))  # of the k-th flip: min(1, most - k + 1)
            # its next candidate has a negative change, or it is not known to have none
            goes_on = values[:, j + 1] < 0 if j + 1 < values.shape[1] else values[:, j] < 0
            is_whole = not bool(((counts < most) & goes_on[:, None]).any())
            if is_whole:
                break
    gains = values[:, : len(shares)].clamp(max=0.0)
    return torch.bmm(gains[:, None], torch.stack(shares, 1))[:, 0].T, is_whole
