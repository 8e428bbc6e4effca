"""Results as bits in every form that a CPU may have."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from compiler.fused.body import Index
from compiler.fused.cpu import cpu_kernel
from compiler.fused.emit import Expr, T, argument, f32, kernel, put, select
from compiler.fused.population import KernelName, Norm, Population, Results, Window
from compiler.fused.result_bits import IS_X86, gathered
from compiler.tvm_setup import host_target, thread_count, tvm

BITS = Results.WORDS | Results.MASK
PLAIN = Population(timesteps=3, decay=0.5, threshold=0.5)
POOLED = Population(timesteps=2, decay=0.5, threshold=0.5, window=Window(kernel=(2, 2), average=False))
needs_x86 = pytest.mark.skipif(not IS_X86, reason="instructions of x86")


@pytest.mark.parametrize(
    ("lanes", "x86"),
    [
        pytest.param(16, True, marks=needs_x86),
        pytest.param(8, True, marks=needs_x86),
        (8, False),
        (16, False),
        (32, False),
    ],
)
def test_flags_are_gathered(lanes: int, x86: bool) -> None:
    def body() -> None:
        count = T.int64()
        values, bits = argument("values", [count, lanes]), argument("bits", [count], "int32")
        with T.serial(count) as row:

            def flag(lane: Index) -> Expr:
                return select(values[row, lane] > f32(0.0), f32(1.0), f32(0.0))

            put(bits, gathered(flag, lanes, x86=x86), row)

    values, bits = torch.randn(200, lanes), torch.zeros(200, dtype=torch.int32)
    tvm.compile(kernel("gather", body), target=host_target())["gather"](values, bits)
    want = ((values > 0).numpy() * (np.uint64(1) << np.arange(lanes, dtype=np.uint64))).sum(1)
    assert np.array_equal(bits.numpy().view(np.uint32) & np.uint64((1 << lanes) - 1), want)


@pytest.mark.parametrize("population", [PLAIN, POOLED], ids=["plain", "pooled"])
@pytest.mark.parametrize("channels", [32, 43])
def test_vectors_of_any_length_write_the_same_words(population: Population, channels: int) -> None:
    """Of 8 lanes for a CPU with AVX2 alone; the y of the usual kernel shows that the words are right."""
    x = torch.randn(population.timesteps, 2, 4, 6, channels)
    older = tvm.target.Target({"kind": "llvm", "mcpu": "x86-64-v3"}) if IS_X86 else host_target()
    wide, narrow = (run(population, x, lanes, target) for lanes, target in ((16, host_target()), (8, older)))
    for left, right in zip(wide, narrow, strict=True):
        assert torch.equal(left, right)
    spikes = (wide[0][..., None] >> torch.arange(32)).bitwise_and(1).flatten(-2)
    assert not spikes[..., channels:].any()
    assert torch.equal(spikes[..., :channels].float(), forward_y(population, x))


def test_threads_change_no_bit() -> None:
    configure, before = tvm.get_global_func("runtime.config_threadpool"), thread_count()
    x = torch.randn(PLAIN.timesteps, 2, 7, 9, 43)
    try:
        configure(1, 1)
        alone = run(PLAIN, x, 16, host_target())
        configure(1, 3)
        together = run(PLAIN, x, 16, host_target())
    finally:
        configure(1, before)
    for left, right in zip(alone, together, strict=True):
        assert torch.equal(left, right)


def run(population: Population, x: Tensor, lanes: int, target: tvm.target.Target) -> tuple[Tensor, Tensor]:
    """Words and mask."""
    function = cpu_kernel(population, KernelName.FORWARD, lanes=lanes, tail=True, results=BITS)
    pixels = out_pixels(population, x)
    words, mask = (torch.full((*pixels, -(-x.shape[-1] // 32)), -1, dtype=torch.int32) for _ in range(2))
    part = getattr(torch, f"int{lanes}")
    parts = (flat(population, bits.view(part)) for bits in (words, mask))
    tvm.compile(function, target=target)["forward"](flat(population, x), *parts)
    return words, mask


def forward_y(population: Population, x: Tensor) -> Tensor:
    """The results as numbers."""
    function = cpu_kernel(population, KernelName.FORWARD, lanes=16, tail=True)
    y = torch.full((*out_pixels(population, x), x.shape[-1]), torch.nan)
    tvm.compile(function, target=host_target())["forward"](flat(population, x), flat(population, y))
    return y


def out_pixels(population: Population, x: Tensor) -> tuple[int, ...]:
    """T, N, H', W'."""
    rows, columns = (1, 1) if population.window is None else population.window.kernel
    return *x.shape[:2], x.shape[2] // rows, x.shape[3] // columns


def flat(population: Population, maps: Tensor) -> Tensor:
    """Pixels as one axis without pooling, a view."""
    return maps.flatten(1, 3) if population.window is None else maps


@pytest.mark.parametrize(
    ("name", "lanes", "message"),
    [
        (KernelName.GRADIENT, 16, "gradient writes no bits, only forward does"),
        (KernelName.FORWARD, 4, "lanes is 4, must be 8, 16 or 32 for results as bits"),
    ],
    ids=["gradient", "lanes"],
)
def test_kernels_without_bits(name: KernelName, lanes: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        cpu_kernel(PLAIN, name, lanes=lanes, tail=False, results=BITS)


@pytest.mark.parametrize("name", [KernelName.GRADIENT, KernelName.GRADIENT_SUMS])
def test_backward_kernels_have_one_argument_less_without_y(name: KernelName) -> None:
    population = Population(timesteps=1, decay=0.5, threshold=1.0, norm=Norm.BATCH)
    counts = [
        len(cpu_kernel(population, name, lanes=16, tail=False, results=results).params)
        for results in (Results.Y, Results.NONE)
    ]
    assert counts[0] == counts[1] + 1
