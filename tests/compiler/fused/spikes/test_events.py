"""Lists of what is not zero, against NumPy."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor

from compiler.fused.cpu import vector_lanes
from compiler.fused.spikes.events import SPARE, ListSizes, list_kernel
from compiler.tvm_setup import host_target, tvm

ROOM = 32 * 2  # events of a pixel: two words


@functools.cache
def compiled(values: bool) -> Callable[..., None]:
    function = list_kernel("list_events", lanes=vector_lanes(), values=values, parallel=True)
    kernel: Callable[..., None] = tvm.compile(function, target=host_target())["list_events"]
    return kernel


@dataclass(frozen=True, slots=True)
class Lists:
    """What the kernel wrote; arrays are a little longer than they need to be, and so show what it should not touch."""

    bounds: npt.NDArray[np.int32]  # (groups, chunks, pixels, 2)
    events: npt.NDArray[np.int32]
    values: npt.NDArray[np.float32]


def run(sizes: ListSizes, source: Tensor) -> Lists:
    pixels, run, groups, _, chunks, _, room = map(int, sizes)
    length = groups * chunks * -(-pixels // run) * (run * room + SPARE)
    values = source.dtype == torch.float32
    bounds = torch.full((groups * chunks * pixels * 2,), -1, dtype=torch.int32)
    events, kept = torch.full((length + 16,), -1, dtype=torch.int32), torch.full((length + 16,), -5.0)
    compiled(values)(*sizes, source.reshape(-1), bounds, events, *([kept] if values else []))
    assert events[length:].eq(-1).all()
    assert kept[length:].eq(-5.0).all()
    return Lists(bounds.numpy().reshape(groups, chunks, pixels, 2), events.numpy(), kept.numpy())


def check_runs(lists: Lists, sizes: ListSizes) -> None:
    """Within a run each pixel's events begin where those of the one before end, and each run has its own room."""
    for list_, bounds in enumerate(lists.bounds.reshape(-1, int(sizes.pixels), 2)):
        runs = -(-int(sizes.pixels) // int(sizes.run))
        for number in range(runs):
            begins, ends = bounds[number * int(sizes.run) : (number + 1) * int(sizes.run)].T
            assert begins[0] == (list_ * runs + number) * (int(sizes.run) * int(sizes.room) + SPARE)
            np.testing.assert_array_equal(begins[1:], ends[:-1])


@pytest.mark.parametrize("density", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("words", [1, 3, 4])
def test_spikes(density: float, words: int) -> None:
    pixels, groups = 11, 2
    bits = np.random.default_rng(0).random((pixels, groups, words, 32)) < density
    source = torch.from_numpy(np.packbits(bits, axis=3, bitorder="little").view(np.int32).copy())
    chunks = -(-words // 2)
    sizes = ListSizes(pixels, 4, groups, words, chunks, 2, ROOM)
    lists = run(sizes, source)
    check_runs(lists, sizes)
    for group, chunk, pixel in np.ndindex(groups, chunks, pixels):
        begin, end = lists.bounds[group, chunk, pixel]
        (channels,) = np.nonzero(bits[pixel, group, 2 * chunk : 2 * chunk + 2].reshape(-1))
        np.testing.assert_array_equal(lists.events[begin:end], pixel * ROOM + channels)


@pytest.mark.parametrize("density", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("channels", [1, 16, 45, 64, 131])
def test_gradients(density: float, channels: int) -> None:
    """Beside numbers there are some that are none, and zeros of both signs."""
    pixels, groups = 11, 2
    rng = np.random.default_rng(1)
    numbers = rng.standard_normal((pixels, groups, channels), np.float32)
    numbers *= rng.random(numbers.shape) < density
    numbers[3, 1, -1], numbers[4, 0, 0], numbers[5, 0, 0] = np.nan, -np.inf, 1e-45
    chunks, room = -(-channels // 64), min(64, channels)
    sizes = ListSizes(pixels, 4, groups, channels, chunks, 64, room)
    lists = run(sizes, torch.from_numpy(numbers))
    check_runs(lists, sizes)
    for group, chunk, pixel in np.ndindex(groups, chunks, pixels):
        begin, end = lists.bounds[group, chunk, pixel]
        some = numbers[pixel, group, 64 * chunk : 64 * (chunk + 1)]
        (places,) = np.nonzero(some)
        np.testing.assert_array_equal(lists.events[begin:end], pixel * 64 + places)
        np.testing.assert_array_equal(lists.values[begin:end], some[places])
