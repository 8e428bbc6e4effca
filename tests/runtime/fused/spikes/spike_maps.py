"""Random layers of spikes for the tests of their kernels, and their words by NumPy."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import strategies as st
from torch import Tensor

from compiler.fused.spikes.geometry import BITS, Geometry


def take(role: str, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Memory whose contents nobody may rely on."""
    return torch.full(shape, -77, dtype=dtype)


@st.composite
def geometries(draw: st.DrawFn) -> Geometry:
    """Layers with kernels of 1 to 7, strides of 1 and 2, padding, groups, and all counts of channels up to 70."""
    kernel = draw(st.tuples(*[st.sampled_from([1, 3, 5, 7])] * 2))
    padding = draw(st.tuples(*[st.integers(0, 3)] * 2))
    height, width = (draw(st.integers(max(1, k - 2 * p), 20)) for k, p in zip(kernel, padding, strict=True))
    groups = draw(st.sampled_from([1, 1, 2, 3]))
    return Geometry(
        images=draw(st.integers(1, 3)), height=height, width=width, channels=groups * draw(st.integers(1, 70)),
        out_channels=groups, kernel=kernel, stride=draw(st.tuples(*[st.integers(1, 2)] * 2)), padding=padding,
        groups=groups,
    )  # fmt: skip


def random_spikes(geometry: Geometry, density: float, seed: int) -> Tensor:
    """Spikes (images, height, width, channels), f32."""
    shape = (geometry.images, geometry.height, geometry.width, geometry.channels)
    return (torch.rand(shape, generator=torch.Generator().manual_seed(seed)) < density).float()


def words_of(geometry: Geometry, spikes: Tensor) -> Tensor:
    """The words of spikes."""
    maps = (geometry.images, geometry.height, geometry.width)
    bits = np.zeros((*maps, geometry.groups, geometry.words_of_group * BITS), bool)
    bits[..., : geometry.group_channels] = spikes.numpy().reshape(*maps, geometry.groups, -1) > 0
    words = np.packbits(bits, axis=4, bitorder="little").view(np.int32)
    return torch.from_numpy(words.reshape(*maps, geometry.words))
