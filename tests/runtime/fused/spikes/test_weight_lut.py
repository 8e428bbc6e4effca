"""Gradients of the weights of layers of spikes by look-ups against torch's of the same numbers."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from compiler.fused.spikes.geometry import Geometry
from compiler.fused.spikes.weight_lut import CHUNK, OUT_CHANNELS
from runtime.fused.spikes.weight_lut import supports, weight_lut
from tests.runtime.fused.spikes.spike_maps import geometries, random_spikes, take, words_of

SMALL = Geometry(images=1, height=1, width=1, channels=1, out_channels=1)
pytestmark = pytest.mark.skipif(not supports(SMALL), reason="the processor has no look-ups in registers")


@st.composite
def layers(draw: st.DrawFn) -> Geometry:
    geometry = draw(geometries())
    return replace(geometry, out_channels=geometry.groups * draw(st.integers(1, 2 * OUT_CHANNELS + 3)))


def by_torch(geometry: Geometry, x: Tensor, grad: Tensor) -> Tensor:
    weight = torch.empty(geometry.out_channels, geometry.group_channels, *geometry.kernel, dtype=x.dtype)
    _, gradient, _ = torch.ops.aten.convolution_backward(
        grad.permute(0, 3, 1, 2).contiguous(), x.permute(0, 3, 1, 2).contiguous(), weight, None,
        geometry.stride, geometry.padding, (1, 1), False, (0, 0), geometry.groups, (False, True, False),
    )  # fmt: skip
    last: Tensor = gradient.permute(0, 2, 3, 1)
    return last


def by_look_ups(geometry: Geometry, x: Tensor, grad: Tensor) -> Tensor:
    gradient = torch.full((geometry.out_channels, *geometry.kernel, geometry.group_channels), float("nan"))
    weight_lut(geometry, words_of(geometry, x), grad, gradient, take)
    return gradient


def gradients(geometry: Geometry, seed: int) -> Tensor:
    shape = (geometry.images, geometry.out_height, geometry.out_width, geometry.out_channels)
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def integers(geometry: Geometry, seed: int) -> Tensor:
    """Gradients whose sums are exact."""
    return (4 * gradients(geometry, seed)).round()


@settings(max_examples=60)
@given(layers(), st.floats(0, 1), st.integers(0, 2**16))
def test_exact_sums_are_torchs(geometry: Geometry, density: float, seed: int) -> None:
    x, grad = random_spikes(geometry, density, seed), integers(geometry, seed)
    assert torch.equal(by_look_ups(geometry, x, grad), by_torch(geometry, x, grad))


@pytest.mark.parametrize(
    "geometry",
    [
        Geometry(images=8, height=16, width=16, channels=64, out_channels=24, kernel=(3, 3), padding=(1, 1)),
        Geometry(images=40, height=8, width=8, channels=70, out_channels=17, kernel=(5, 5), stride=(2, 2)),
        Geometry(images=2, height=30, width=30, channels=8, out_channels=16, kernel=(7, 7), padding=(3, 3)),
        Geometry.of_linear(4096, 64, 64),
        Geometry(images=1, height=5, width=5, channels=3, out_channels=8, kernel=(3, 3)),
    ],
    ids=["3x3", "5x5 stride 2", "7x7", "linear", "few pixels"],
)
@pytest.mark.parametrize("density", [0.1, 0.4, 1.0])
def test_errors_are_not_above_torchs(geometry: Geometry, density: float) -> None:
    """Against f64; twice torch's largest error plus two units in the last place of the largest gradient."""
    x, grad = random_spikes(geometry, density, 3), gradients(geometry, 4)
    exact = by_torch(geometry, x.double(), grad.double())
    ours, torchs = (
        (found.double() - exact).abs().max().item()
        for found in (by_look_ups(geometry, x, grad), by_torch(geometry, x, grad))
    )
    assert ours <= 2 * torchs + 2 * 2**-23 * exact.abs().max().item()


@pytest.mark.parametrize("width", [1, 5, 16, 40])
def test_no_spikes_give_no_gradient(width: int) -> None:
    geometry = Geometry(images=2, height=3, width=width, channels=33, out_channels=19, kernel=(3, 3), padding=(1, 1))
    assert not by_look_ups(geometry, torch.zeros(2, 3, width, 33), gradients(geometry, 1)).any()


@pytest.mark.parametrize("images", [1, 7, 3 * CHUNK + 1])
def test_maps_of_one_pixel(images: int) -> None:
    """Each has a table; many of them are several chunks."""
    geometry = Geometry(images=images, height=1, width=1, channels=9, out_channels=10, kernel=(3, 3), padding=(1, 1))
    x, grad = random_spikes(geometry, 0.5, images), integers(geometry, images)
    assert torch.equal(by_look_ups(geometry, x, grad), by_torch(geometry, x, grad))


@pytest.mark.parametrize("channels", [32, 48, 64])
@pytest.mark.parametrize("out_channels", [OUT_CHANNELS, 40 * OUT_CHANNELS])
def test_sums_with_and_without_parts(channels: int, out_channels: int) -> None:
    """Many output channels are work enough, and their sums are written where they belong."""
    geometry = Geometry(images=5, height=6, width=9, channels=channels, out_channels=out_channels, kernel=(1, 3))
    x, grad = random_spikes(geometry, 0.4, 7), integers(geometry, 8)
    assert torch.equal(by_look_ups(geometry, x, grad), by_torch(geometry, x, grad))


def test_an_infinite_gradient_reaches_the_weights_of_its_spikes() -> None:
    geometry = Geometry(images=1, height=4, width=7, channels=20, out_channels=20, kernel=(3, 3), padding=(1, 1))
    x, grad = random_spikes(geometry, 0.5, 2), integers(geometry, 1)
    finite = by_look_ups(geometry, x, grad)
    grad[0, 2, 5, 18] = float("inf")
    found = by_look_ups(geometry, x, grad)
    reached = torch.zeros_like(found, dtype=torch.bool)
    reached[18] = x[0, 1:4, 4:7] > 0
    assert torch.equal(found.isinf(), reached)
    assert torch.equal(found[~reached], finite[~reached])


def test_any_number_of_threads_gives_the_same_bits() -> None:
    geometry = Geometry(images=4, height=24, width=24, channels=48, out_channels=50, kernel=(3, 3), padding=(1, 1))
    x, grad = random_spikes(geometry, 0.3, 5), gradients(geometry, 6)
    before = torch.get_num_threads()
    found = []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            found.append(by_look_ups(geometry, x, grad))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(*found)
    torch.testing.assert_close(found[0], by_torch(geometry, x, grad), rtol=1e-5, atol=1e-4)


def test_layers_without_results() -> None:
    assert not supports(replace(SMALL, out_channels=0))
    assert not supports(replace(SMALL, images=0))
