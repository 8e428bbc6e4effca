"""The input's gradient at open places against torch's gradient of the dense layer."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from compiler.fused.spikes.geometry import Geometry
from runtime.fused.spikes.input_masked import input_masked, supports
from tests.runtime.fused.spikes.spike_maps import geometries, random_spikes, take, words_of

LAYER = Geometry(images=3, height=9, width=11, channels=70, out_channels=70, kernel=(3, 3), padding=(1, 1))
LAYERS = {
    "1x1": replace(LAYER, kernel=(1, 1), padding=(0, 0)),
    "1x1 stride 2": replace(LAYER, kernel=(1, 1), padding=(0, 0), stride=(2, 2)),
    "5x5 stride 2": replace(LAYER, kernel=(5, 5), padding=(2, 2), stride=(2, 2)),
    "7x7": replace(LAYER, kernel=(7, 7), padding=(3, 3)),
    "1x7 without padding": replace(LAYER, kernel=(1, 7), padding=(0, 0)),
    "padding beyond the kernel": replace(LAYER, padding=(4, 3)),
    "groups": replace(LAYER, channels=66, out_channels=6, groups=2),
    "many images of a pixel": replace(LAYER, images=1000, height=1, width=1, channels=3),
    "wide map": replace(LAYER, images=1, width=500, channels=5),
    "no tap meets a pixel": Geometry(
        images=2, height=1, width=1, channels=3, out_channels=4, stride=(2, 2), padding=(1, 1)
    ),
    "one number": Geometry(images=1, height=1, width=1, channels=1, out_channels=1),
    "linear": Geometry.of_linear(300, 65, 130),
    "linear, few outputs": Geometry.of_linear(40, 300, 10),
}


def by_torch(geometry: Geometry, grad: Tensor, weight: Tensor) -> Tensor:
    shape = (geometry.images, geometry.channels, geometry.height, geometry.width)
    x = torch.zeros(shape, dtype=grad.dtype, requires_grad=True)
    y = torch.conv2d(
        x, weight.permute(0, 3, 1, 2), None, geometry.stride, geometry.padding, groups=geometry.groups
    )  # fmt: skip
    (grad_x,) = torch.autograd.grad(y, x, grad.permute(0, 3, 1, 2))
    return grad_x.permute(0, 2, 3, 1)


def at_open_places(geometry: Geometry, grad: Tensor, weight: Tensor, mask: Tensor) -> Tensor:
    grad_x = torch.full((geometry.images, geometry.height, geometry.width, geometry.channels), float("nan"))
    input_masked(geometry, grad, weight, words_of(geometry, mask), grad_x, take)
    return grad_x


def numbers(geometry: Geometry, seed: int) -> tuple[Tensor, Tensor]:
    """Gradient and weight."""
    generator = torch.Generator().manual_seed(seed)
    outputs = (geometry.images, geometry.out_height, geometry.out_width, geometry.out_channels)
    weights = (geometry.out_channels, *geometry.kernel, geometry.group_channels)
    return torch.randn(outputs, generator=generator), torch.randn(weights, generator=generator)


def assert_exact(geometry: Geometry, density: float, seed: int) -> None:
    """With integers, whose sums are exact in any order."""
    grad, weight = (number.mul(4).round() for number in numbers(geometry, seed))
    mask = random_spikes(geometry, density, seed)
    dense = by_torch(geometry, grad.double(), weight.double()).float()
    assert torch.equal(at_open_places(geometry, grad, weight, mask), torch.where(mask > 0, dense, 0.0))


@settings(max_examples=60, deadline=None)
@given(geometries(), st.integers(17, 70), st.floats(0, 1), st.integers(0, 2**16))
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
    for density in (0.3, 1.0):
        assert_exact(LAYERS[name], density, len(name))


@pytest.mark.slow
@settings(max_examples=100, deadline=None)
@given(geometries(), st.integers(1, 140), st.floats(0, 1), st.integers(0, 2**16))
def test_any_kernel(geometry: Geometry, outputs: int, density: float, seed: int) -> None:
    assert_exact(replace(geometry, out_channels=geometry.groups * outputs), density, seed)


@pytest.mark.parametrize(
    "geometry",
    [
        Geometry(images=2, height=8, width=8, channels=64, out_channels=256, kernel=(3, 3), padding=(1, 1)),
        Geometry(images=2, height=9, width=9, channels=32, out_channels=80, kernel=(7, 7), padding=(3, 3)),
        Geometry.of_linear(40, 64, 4096),
    ],
    ids=["3x3", "7x7", "linear"],
)
def test_errors_are_not_above_torchs(geometry: Geometry) -> None:
    """Against f64; twice torch's largest error plus two units in the last place of the largest result."""
    (grad, weight), mask = numbers(geometry, 2), random_spikes(geometry, 0.5, 3)
    exact = by_torch(geometry, grad.double(), weight.double()) * mask
    ours, torchs = (
        (grad_x.double() - exact).abs().max().item()
        for grad_x in (at_open_places(geometry, grad, weight, mask), by_torch(geometry, grad, weight) * mask)
    )
    assert ours <= 2 * torchs + 2 * 2**-23 * exact.abs().max().item()


def test_nothing_leaks_into_closed_places() -> None:
    """Neither what the gradient holds there, nor what the memory held."""
    grad, weight = numbers(LAYER, 5)
    mask = random_spikes(LAYER, 0.4, 5)
    mask[:, 2:] = 0
    grad[:, 4:] = float("nan")
    found = at_open_places(LAYER, grad, weight, mask)
    assert not found[mask == 0].any()
    assert found.isfinite().all()
    assert not at_open_places(LAYER, grad * float("nan"), weight, torch.zeros_like(mask)).any()


def test_any_number_of_threads_gives_the_same_bits() -> None:
    geometry = replace(LAYER, images=8, height=20, width=20, stride=(1, 2))
    (grad, weight), mask = numbers(geometry, 6), random_spikes(geometry, 0.3, 7)
    before = torch.get_num_threads()
    found = []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            found.append(at_open_places(geometry, grad, weight, mask))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(*found)
    torch.testing.assert_close(found[0], by_torch(geometry, grad, weight) * mask, rtol=1e-4, atol=1e-4)


def test_layers_that_it_does_not_support() -> None:
    assert supports(LAYER)
    assert not supports(replace(LAYER, kernel=(3, 21), padding=(1, 10)))
    assert not supports(replace(LAYER, out_channels=0))
