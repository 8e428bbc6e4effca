"""Parts of an image that searches change at once: squares of positions, with all that lies in front of them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def positions(shape: Sequence[int]) -> tuple[int, ...]:
    """The extents that windows lie in: height and width of (..., C, H, W), the features of (..., C)."""
    return tuple(shape[-2:]) if len(shape) >= 3 else tuple(shape[-1:])


def window(extents: Sequence[int], corner: Sequence[int], side: int) -> Tensor:
    """Which positions lie in the square at a corner, cut off at the border. Shapes: as the extents, boolean."""
    inside = torch.zeros(tuple(extents), dtype=torch.bool)
    inside[tuple(slice(at, at + side) for at in corner)] = True
    return inside


def tiles(extents: Sequence[int], side: int) -> list[Tensor]:
    """Windows that cover every position once."""
    corners = torch.cartesian_prod(*(torch.arange(0, size, side) for size in extents)).reshape(-1, len(extents))
    return [window(extents, corner.tolist(), side) for corner in corners]
