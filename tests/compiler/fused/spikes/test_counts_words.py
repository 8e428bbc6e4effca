"""Kernels of counts' bits against NumPy's packbits, for this CPU and for one of eight lanes."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import pytest
import torch
from torch import Tensor
from tvm.ir import IRModule

from compiler.fused.spikes.counts import Counts
from compiler.fused.spikes.counts_words import CountWordName, count_word_kernel
from compiler.fused.spikes.geometry import BITS
from compiler.tvm_setup import host_target, tvm

AVX2 = {"kind": "llvm", "mcpu": "x86-64-v3"}
TOO_MUCH = -(2**63)


@lru_cache
def compiled(counts: Counts, here: bool) -> tvm.runtime.Executable:
    functions = {str(name): count_word_kernel(name, counts, parallel=False) for name in CountWordName}
    return tvm.compile(IRModule(functions), target=host_target() if here else tvm.target.Target(AVX2))


def random_counts(counts: Counts, rows: int, channels: int) -> Tensor:
    generator = torch.Generator().manual_seed(rows * channels)
    return torch.randint(counts.pixels + 1, (rows * channels,), generator=generator)


def planes_of(counts: Counts, numbers: Tensor, channels: int) -> Tensor:
    columns = -(-channels // BITS)
    planes = []
    for plane in range(counts.planes):
        bits = np.zeros((len(numbers) // channels, columns * BITS), bool)
        bits[:, :channels] = (numbers.numpy().reshape(-1, channels) >> plane) & 1
        planes.append(np.packbits(bits, axis=1, bitorder="little").view(np.int32).reshape(-1))
    return torch.from_numpy(np.stack(planes))


def packed(counts: Counts, here: bool, values: Tensor, channels: int, parts: int) -> tuple[Tensor, Tensor]:
    words = torch.full((counts.planes, len(values) // channels * -(-channels // BITS)), -1, dtype=torch.int32)
    sums = torch.full((parts, counts.planes + 1), TOO_MUCH)
    compiled(counts, here)["pack_counts"](values, words, sums, channels)
    return words, sums[0]


@pytest.mark.parametrize("here", [True, False], ids=["here", "avx2"])
@pytest.mark.parametrize("pixels", [2, 4])
@pytest.mark.parametrize("channels", [1, 7, 32, 33, 70, 96])
def test_planes_are_those_of_numpy_and_expand_to_the_averages(channels: int, pixels: int, here: bool) -> None:
    counts = Counts(pixels)
    for rows, parts in ((1, 3), (5, 1), (47, 4), (100, 3)):
        numbers = random_counts(counts, rows, channels)
        values = numbers / pixels
        words, sums = packed(counts, here, values, channels, parts)
        assert torch.equal(words, planes_of(counts, numbers, channels))
        assert sums.tolist() == [int((numbers >> plane & 1).sum()) for plane in range(counts.planes)] + [0]
        again = torch.full((rows * channels + 40,), torch.nan)
        compiled(counts, here)["expand_counts"](words, again[: rows * channels], channels, parts)
        assert torch.equal(again[: rows * channels], values)
        assert bool(again[rows * channels :].isnan().all())


@pytest.mark.parametrize(
    "value", [0.3, -0.25, 1.25, 1.75, 2.0, torch.nan, torch.inf, -torch.inf, 3e38, -3e9, 1e-30], ids=str
)
@pytest.mark.parametrize("place", [0, 31, 32, 3 * 33 - 1])
def test_other_values_are_found_wherever_they_stand(value: float, place: int) -> None:
    counts, channels = Counts(4), 33
    values = random_counts(counts, 3, channels) / 4
    values[place] = value
    assert packed(counts, True, values, channels, parts=2)[1][-1] > 0
