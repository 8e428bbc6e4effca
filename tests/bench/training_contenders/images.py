"""Real images as the networks of the benchmark take them."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

DESCRIPTION = (
    "enlarged by a whole factor (bilinear) where they fit twice or more, averaged down where they are larger, "
    "padded with zeros to the network's size, one channel repeated over all"
)


def fitted(images: Tensor, shape: tuple[int, int, int]) -> Tensor:
    """The images in the network's shape, see `DESCRIPTION`: 28x28 are padded to 32x32, 8x8 enlarged fourfold.

    Shapes: (N, 1, H, W) or (N, C, H, W) -> (N, C, height, width), C that of `shape`. Units: in [0, 1] as given.
    """
    channels, *sizes = shape
    factor = min(size // own for size, own in zip(sizes, images.shape[2:], strict=True))
    if factor > 1:
        images = functional.interpolate(images, scale_factor=factor, mode="bilinear")
    height, width = (min(size, own) for size, own in zip(sizes, images.shape[2:], strict=True))
    images = functional.adaptive_avg_pool2d(images, (height, width))
    spare_y, spare_x = sizes[0] - height, sizes[1] - width
    around = (spare_x // 2, spare_x - spare_x // 2, spare_y // 2, spare_y - spare_y // 2)
    return functional.pad(images, around).expand(-1, channels, -1, -1).contiguous()


def coded(images: Tensor, timesteps: int, generator: torch.Generator) -> Tensor:
    """A rate code: at each step, each pixel is 1 with its value as the probability.

    Shapes: (N, C, H, W) -> (T * N, C, H, W), time-major.
    """
    draws = torch.rand((timesteps, *images.shape), generator=generator)
    return (draws < images).to(images.dtype).flatten(0, 1)
