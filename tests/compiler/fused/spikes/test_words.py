"""Kernels of words against NumPy's packbits, for this CPU and for one of eight lanes."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import pytest
import torch
from torch import Tensor
from tvm.ir import IRModule

from compiler.fused.population import Activation
from compiler.fused.spikes.geometry import BITS
from compiler.fused.spikes.words import FEW, WordName, pack_width, word_kernel
from compiler.tvm_setup import host_target, tvm

AVX2 = {"kind": "llvm", "mcpu": "x86-64-v3"}
INTEGERS = {Activation.F32: torch.int32, Activation.BF16: torch.int16}
TOO_MUCH = -(2**63)


@lru_cache
def compiled(activation: Activation, width: int, here: bool, parallel: bool = False) -> tvm.runtime.Executable:
    functions = {str(name): word_kernel(name, activation, width, parallel=parallel) for name in WordName}
    return tvm.compile(IRModule(functions), target=host_target() if here else tvm.target.Target(AVX2))


def random_spikes(rows: int, channels: int, activation: Activation) -> Tensor:
    generator = torch.Generator().manual_seed(rows * channels)
    return (torch.rand(rows * channels, generator=generator) < 0.3).to(getattr(torch, activation))


def words_of(spikes: Tensor, channels: int) -> Tensor:
    columns = -(-channels // BITS)
    bits = np.zeros((len(spikes) // channels, columns * BITS), bool)
    bits[:, :channels] = spikes.float().numpy().reshape(-1, channels) > 0
    return torch.from_numpy(np.packbits(bits, axis=1, bitorder="little").view(np.int32).reshape(-1))


def packed(kernels: tvm.runtime.Executable, values: Tensor, channels: int, parts: int = 3) -> tuple[Tensor, Tensor]:
    words = torch.full((len(values) // channels * -(-channels // BITS),), -1, dtype=torch.int32)
    sums = torch.full((parts, 2), TOO_MUCH)
    kernels["pack"](values, words, sums, channels)
    return words, sums[0]


@pytest.mark.parametrize(
    ("channels", "activation", "here"),
    [
        (1, Activation.F32, True), (2, Activation.BF16, True), (3, Activation.F32, False),
        (7, Activation.BF16, False), (8, Activation.F32, False), (13, Activation.F32, True),
        (32, Activation.BF16, True), (32, Activation.F32, False), (33, Activation.F32, True),
        (70, Activation.F32, False), (95, Activation.BF16, True),
    ],
)  # fmt: skip
def test_words_are_those_of_numpy(channels: int, activation: Activation, here: bool) -> None:
    kernels = compiled(activation, pack_width(channels), here)
    for rows in (1, 5, 16, 47, 100, 333):
        spikes = random_spikes(rows, channels, activation)
        values = spikes.view(INTEGERS[activation])
        words, sums = packed(kernels, values, channels)
        assert torch.equal(words, words_of(spikes, channels))
        assert sums.tolist() == [spikes.count_nonzero(), 0]
        counted = torch.full((4, 2), TOO_MUCH)
        kernels["count"](words, counted)
        assert counted[0].tolist() == [spikes.count_nonzero(), 0]
        again = torch.full_like(values, -1)
        kernels["expand"](words, again, channels, 3)
        assert torch.equal(again, values)


@pytest.mark.parametrize("channels", [3, 33])
@pytest.mark.parametrize("activation", Activation)
@pytest.mark.parametrize("value", [0.5, 1.0078125, 2.0, -1.0, -0.001, 1e-40, torch.inf, torch.nan])
def test_a_value_that_is_no_spike_is_found_wherever_it_stands(
    value: float, activation: Activation, channels: int
) -> None:
    kernels, rows = compiled(activation, pack_width(channels), True), 37
    for place in (0, 1, rows * channels // 2, rows * channels - 1):
        spikes = random_spikes(rows, channels, activation)
        spikes[place] = value
        _, sums = packed(kernels, spikes.view(INTEGERS[activation]), channels)
        assert sums[1] != 0


def test_findings_of_two_parts_do_not_cancel_out() -> None:
    spikes = torch.zeros(64, 32)
    spikes.view(torch.int32)[0], spikes.view(torch.int32)[-1] = 1, 2**31 - 1  # without the sign 2 and -2
    _, sums = packed(compiled(Activation.F32, 32, True), spikes.view(torch.int32).view(-1), 32, parts=4)
    assert sums[1] != 0


def test_a_zero_may_be_negative() -> None:
    zeros = -torch.zeros(40 * 32)
    words, sums = packed(compiled(Activation.F32, 32, True), zeros.view(torch.int32), 32)
    assert not words.any()
    assert sums.tolist() == [0, 0]


@pytest.mark.parametrize("channels", [2, 70])
def test_the_number_of_parts_and_threads_changes_nothing(channels: int) -> None:
    spikes = random_spikes(401, channels, Activation.F32)
    values, want = spikes.view(torch.int32), words_of(spikes, channels)
    kernels = compiled(Activation.F32, pack_width(channels), True, parallel=True)
    for parts in (1, 2, 7, 100):
        words, sums = packed(kernels, values, channels, parts)
        assert torch.equal(words, want)
        assert sums.tolist() == [spikes.count_nonzero(), 0]
        again = torch.full_like(values, -1)
        kernels["expand"](words, again, channels, parts)
        assert torch.equal(again, values)


def test_few_channels_are_compiled_for_each_and_many_for_a_power_of_two() -> None:
    widths = [pack_width(channels) for channels in (1, FEW - 1, FEW, 9, 16, 17, 32, 33, 500)]
    assert widths == [1, FEW - 1, FEW, 16, 16, 32, 32, 32, 32]
