"""Layers of spikes by look-ups against torch's convolution of the same numbers."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from compiler.fused.spikes.forward_lut import CHUNK
from compiler.fused.spikes.geometry import Geometry
from runtime.fused.spikes.forward_lut import forward_lut, supports
from tests.runtime.fused.spikes.spike_maps import geometries, random_spikes, take, words_of

SMALL = Geometry(images=1, height=1, width=1, channels=1, out_channels=1)
pytestmark = pytest.mark.skipif(not supports(SMALL), reason="the processor has no look-ups in registers")


@st.composite
def layers(draw: st.DrawFn) -> Geometry:
    geometry = draw(geometries())
    return replace(geometry, out_channels=geometry.groups * draw(st.integers(1, 40)))


def by_torch(geometry: Geometry, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """In f64, rounded: in f32 oneDNN reads beside the map where 1 channel meets a window as wide as the map."""
    last = torch.conv2d(
        x.permute(0, 3, 1, 2).double(), weight.permute(0, 3, 1, 2).double(), None if bias is None else bias.double(),
        geometry.stride, geometry.padding, groups=geometry.groups,
    )  # fmt: skip
    return last.permute(0, 2, 3, 1).float()


def by_look_ups(geometry: Geometry, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    y = torch.full(
        (geometry.images, geometry.out_height, geometry.out_width, geometry.out_channels), float("nan")
    )  # fmt: skip
    forward_lut(geometry, words_of(geometry, x), weight, bias, y, take)
    return y


def parameters(geometry: Geometry, seed: int) -> tuple[Tensor, Tensor]:
    """Weight and bias."""
    generator = torch.Generator().manual_seed(seed)
    shape = (geometry.out_channels, *geometry.kernel, geometry.group_channels)
    return torch.randn(shape, generator=generator), torch.randn(geometry.out_channels, generator=generator)


def integers(geometry: Geometry, seed: int) -> tuple[Tensor, Tensor]:
    """Weight and bias whose sums are exact."""
    weight, bias = parameters(geometry, seed)
    return (4 * weight).round(), (4 * bias).round()


@settings(max_examples=60)
@given(layers(), st.floats(0, 1), st.booleans(), st.integers(0, 2**16))
def test_exact_sums_are_torchs(geometry: Geometry, density: float, biased: bool, seed: int) -> None:
    x, (weight, bias) = random_spikes(geometry, density, seed), integers(geometry, seed)
    some = bias if biased else None
    assert torch.equal(by_look_ups(geometry, x, weight, some), by_torch(geometry, x, weight, some))


@pytest.mark.parametrize(
    "geometry",
    [
        Geometry(images=2, height=8, width=8, channels=256, out_channels=24, kernel=(3, 3), padding=(1, 1)),
        Geometry(images=3, height=14, width=14, channels=70, out_channels=40, kernel=(5, 5), stride=(2, 2)),
        Geometry(images=2, height=9, width=9, channels=96, out_channels=16, kernel=(7, 7), padding=(3, 3)),
        Geometry.of_linear(40, 4096, 64),
        Geometry(images=1, height=5, width=5, channels=3, out_channels=8, kernel=(3, 3)),
    ],
    ids=["3x3", "5x5 stride 2", "7x7", "linear", "few channels"],
)
@pytest.mark.parametrize("density", [0.1, 0.4, 1.0])
def test_errors_are_not_above_torchs(geometry: Geometry, density: float) -> None:
    """Against f64; twice torch's largest error plus two units in the last place of the largest result."""
    x, (weight, bias) = random_spikes(geometry, density, 3), parameters(geometry, 4)
    exact = by_torch(geometry, x.double(), weight.double(), bias.double())
    ours, torchs = (
        (y.double() - exact).abs().max().item()
        for y in (by_look_ups(geometry, x, weight, bias), by_torch(geometry, x, weight, bias))
    )
    assert ours <= 2 * torchs + 2 * 2**-23 * exact.abs().max().item()


@pytest.mark.parametrize("width", [1, 5, 16, 40])
def test_no_spikes_leave_the_bias(width: int) -> None:
    geometry = Geometry(images=2, height=3, width=width, channels=33, out_channels=19, kernel=(3, 3), padding=(1, 1))
    weight, bias = parameters(geometry, 1)
    x = torch.zeros(2, 3, width, 33)
    assert torch.equal(by_look_ups(geometry, x, weight, bias), bias.expand(2, 3, width, 19))
    assert not by_look_ups(geometry, x, weight, None).any()


@pytest.mark.parametrize("images", [1, 7, 20 * CHUNK])
def test_maps_of_one_pixel(images: int) -> None:
    """Each is a vector; many of them are several chunks."""
    geometry = Geometry(images=images, height=1, width=1, channels=9, out_channels=10, kernel=(3, 3), padding=(1, 1))
    x, (weight, bias) = random_spikes(geometry, 0.5, images), integers(geometry, images)
    assert torch.equal(by_look_ups(geometry, x, weight, bias), by_torch(geometry, x, weight, bias))


def test_any_number_of_threads_gives_the_same_bits() -> None:
    geometry = Geometry(images=4, height=24, width=24, channels=48, out_channels=50, kernel=(3, 3), padding=(1, 1))
    x, (weight, bias) = random_spikes(geometry, 0.3, 5), parameters(geometry, 6)
    before = torch.get_num_threads()
    found = []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            found.append(by_look_ups(geometry, x, weight, bias))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(*found)
    torch.testing.assert_close(found[0], by_torch(geometry, x, weight, bias), rtol=1e-5, atol=1e-5)


def test_a_layer_without_results() -> None:
    assert not supports(replace(SMALL, out_channels=0))
