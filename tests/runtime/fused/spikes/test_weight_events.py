"""The weight's gradient by events against torch's gradient of the dense layer."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

from compiler.fused.spikes.geometry import Geometry
from compiler.tvm_setup import tvm
from runtime.fused.spikes import weight_events as module
from runtime.fused.spikes.weight_events import weight_events
from tests.runtime.fused.spikes.spike_maps import geometries, random_spikes, take, words_of

LAYER = Geometry(images=3, height=9, width=11, channels=70, out_channels=70, kernel=(3, 3), padding=(1, 1))
LAYERS = {
    "1x1": replace(LAYER, kernel=(1, 1), padding=(0, 0)),
    "1x1 stride 2": replace(LAYER, kernel=(1, 1), padding=(0, 0), stride=(2, 2)),
    "5x5 stride 2": replace(LAYER, kernel=(5, 5), padding=(2, 2), stride=(2, 1)),
    "7x7": replace(LAYER, kernel=(7, 7), padding=(3, 3)),
    "padding beyond the kernel": replace(LAYER, padding=(4, 3)),
    "stride beyond the kernel": replace(LAYER, kernel=(1, 3), padding=(3, 0), stride=(4, 1)),
    "a tap that meets no input": replace(LAYER, height=1, width=1, padding=(1, 2), stride=(2, 1)),
    "groups": replace(LAYER, channels=66, out_channels=6, groups=2),
    "a channel each": replace(LAYER, channels=5, out_channels=10, groups=5),
    "many images of a pixel": replace(LAYER, images=1000, height=1, width=1, channels=3),
    "wide map": replace(LAYER, images=1, width=500, channels=5),
    "one number": Geometry(images=1, height=1, width=1, channels=1, out_channels=1),
    "linear": Geometry.of_linear(300, 65, 130),
    "linear, few outputs": Geometry.of_linear(40, 300, 10),
}


def by_torch(geometry: Geometry, spikes: Tensor, grad: Tensor) -> Tensor:
    shape = (geometry.out_channels, geometry.group_channels, *geometry.kernel)
    weight = torch.zeros(shape, dtype=spikes.dtype, requires_grad=True)
    y = functional.conv2d(
        spikes.permute(0, 3, 1, 2), weight, None, geometry.stride, geometry.padding, groups=geometry.groups
    )
    (grad_weight,) = torch.autograd.grad(y, weight, grad.permute(0, 3, 1, 2))
    return grad_weight.permute(0, 2, 3, 1)


def by_events(geometry: Geometry, spikes: Tensor, grad: Tensor) -> Tensor:
    shape = (geometry.out_channels, *geometry.kernel, geometry.group_channels)
    grad_weight = torch.full(shape, float("nan"))
    weight_events(geometry, words_of(geometry, spikes), grad, grad_weight, take)
    return grad_weight


def grad_of(geometry: Geometry, seed: int) -> Tensor:
    shape = (geometry.images, geometry.out_height, geometry.out_width, geometry.out_channels)
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def assert_exact(geometry: Geometry, density: float, seed: int) -> None:
    """With integers, whose sums are exact in any order."""
    spikes, grad = random_spikes(geometry, density, seed), grad_of(geometry, seed).mul(4).round()
    dense = by_torch(geometry, spikes.double(), grad.double()).float()
    assert torch.equal(by_events(geometry, spikes, grad), dense)


@settings(max_examples=60, deadline=None)
@given(geometries(), st.integers(1, 70), st.floats(0, 1), st.integers(0, 2**16))
def test_exact_sums_are_torchs(geometry: Geometry, outputs: int, density: float, seed: int) -> None:
    kernel = replace(geometry, kernel=(3, 3), stride=(1, 1), height=geometry.height + 2, width=geometry.width + 2)
    assert_exact(replace(kernel, out_channels=geometry.groups * outputs), density, seed)


@settings(max_examples=30, deadline=None)
@given(geometries(), st.integers(49, 70), st.floats(0, 1), st.integers(0, 2**16))
def test_exact_sums_with_strides_are_torchs(geometry: Geometry, outputs: int, density: float, seed: int) -> None:
    kernel = replace(geometry, kernel=(3, 3), stride=(2, 2), height=geometry.height + 2, width=geometry.width + 2)
    assert_exact(replace(kernel, out_channels=geometry.groups * outputs), density, seed)


@pytest.mark.parametrize("name", LAYERS)
def test_layers_of_all_kinds(name: str) -> None:
    for density in (0.0, 0.3, 1.0):
        assert_exact(LAYERS[name], density, len(name))


@pytest.mark.slow
@settings(max_examples=40, deadline=None)
@given(geometries(), st.integers(1, 140), st.floats(0, 1), st.integers(0, 2**16))
def test_any_kernel(geometry: Geometry, outputs: int, density: float, seed: int) -> None:
    assert_exact(replace(geometry, out_channels=geometry.groups * outputs), density, seed)


@pytest.fixture
def avx2(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The kernels of a CPU with vectors of 8 values; nothing that was compiled for it stays."""
    kernels = (module._lists_kernel, module._sums_kernel, module._weight_kernel)
    for kernel in kernels:
        kernel.cache_clear()
    monkeypatch.setattr(module, "vector_lanes", lambda: 8)
    monkeypatch.setattr(module, "host_target", lambda: tvm.target.Target({"kind": "llvm", "mcpu": "x86-64-v3"}))
    yield
    for kernel in kernels:
        kernel.cache_clear()


@pytest.mark.parametrize("name", ["1x1", "7x7"])
def test_with_vectors_of_eight(name: str, avx2: None) -> None:
    assert_exact(LAYERS[name], 0.3, 8)


@pytest.mark.parametrize("density", [0.1, 1.0])
@pytest.mark.parametrize(
    "geometry",
    [
        Geometry(images=20, height=16, width=16, channels=32, out_channels=32, kernel=(3, 3), padding=(1, 1)),
        Geometry(images=20, height=16, width=16, channels=64, out_channels=8),
        Geometry.of_linear(400, 256, 100),
    ],
    ids=["3x3", "1x1", "linear"],
)
def test_errors_are_not_above_torchs(geometry: Geometry, density: float) -> None:
    """Against f64; twice torch's largest error plus two units in the last place of the largest result."""
    spikes, grad = random_spikes(geometry, density, 3), grad_of(geometry, 2) + 0.3
    exact = by_torch(geometry, spikes.double(), grad.double())
    ours, torchs = (
        (found.double() - exact).abs().max().item()
        for found in (by_events(geometry, spikes, grad), by_torch(geometry, spikes, grad))
    )
    assert ours <= 2 * torchs + 2 * 2**-23 * exact.abs().max().item()


def test_any_number_of_threads_gives_the_same_bits() -> None:
    geometry = replace(LAYER, images=8, height=30, width=30, out_channels=96)
    spikes, grad = random_spikes(geometry, 0.2, 7), grad_of(geometry, 6)
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            found.append(by_events(geometry, spikes, grad))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(*found)
    torch.testing.assert_close(found[0], by_torch(geometry, spikes, grad), rtol=1e-4, atol=1e-3)


def test_a_gradient_that_no_spike_meets_is_not_added() -> None:
    spikes, grad = random_spikes(LAYER, 0.3, 5), grad_of(LAYER, 5)
    spikes[:, 4:] = 0
    grad[:, 6:] = float("nan")
    assert by_events(LAYER, spikes, grad).isfinite().all()
