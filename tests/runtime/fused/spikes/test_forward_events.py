"""The forward pass by events, against torch's in double precision."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

from compiler.fused.spikes.geometry import Geometry
from compiler.tvm_setup import tvm
from runtime.fused.spikes import events as events_module
from runtime.fused.spikes import forward_events as module
from runtime.fused.spikes.forward_events import forward_events, supports
from tests.runtime.fused.spikes.spike_maps import geometries, random_spikes, take, words_of

EPSILON = torch.finfo(torch.float32).eps


def layer(geometry: Geometry, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """y with the channels last, by torch."""
    maps, kernel = x.permute(0, 3, 1, 2), weight.permute(0, 3, 1, 2)
    y = functional.conv2d(maps, kernel, bias, geometry.stride, geometry.padding, groups=geometry.groups)
    return y.permute(0, 2, 3, 1)


def weights(geometry: Geometry) -> tuple[Tensor, Tensor]:
    random = torch.Generator().manual_seed(7)
    shape = (geometry.out_channels, *geometry.kernel, geometry.group_channels)
    return torch.randn(shape, generator=random), torch.randn(geometry.out_channels, generator=random)


def run(geometry: Geometry, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    shape = (geometry.images, geometry.out_height, geometry.out_width, geometry.out_channels)
    y = torch.full((torch.Size(shape).numel() + 16,), torch.nan)
    forward_events(geometry, words_of(geometry, x), weight, bias, y[:-16].view(shape), take)
    assert y[-16:].isnan().all()  # nothing is written beyond the end
    return y[:-16].view(shape)


def check(geometry: Geometry, density: float, *, biased: bool = True, seed: int = 0) -> None:
    """The error is at most twice that of torch's f32, and a few roundings of the largest result."""
    x, (weight, bias) = random_spikes(geometry, density, seed), weights(geometry)
    bias_or_none = bias if biased else None
    want = layer(geometry, x.double(), weight.double(), bias.double() if biased else None)
    theirs = (layer(geometry, x, weight, bias_or_none) - want).abs().max()
    ours = (run(geometry, x, weight, bias_or_none) - want).abs().max()
    assert ours <= 2 * theirs + 4 * EPSILON * want.abs().max()


LAYERS = (geometries(), st.integers(1, 70), st.sampled_from([0.0, 0.05, 0.4, 1.0]), st.booleans())


@settings(max_examples=15)
@given(*LAYERS)
def test_against_torch(geometry: Geometry, out_channels: int, density: float, biased: bool) -> None:
    check(replace(geometry, out_channels=geometry.groups * out_channels), density, biased=biased)


@pytest.mark.slow
@settings(max_examples=100)
@given(*LAYERS)
def test_many_against_torch(geometry: Geometry, out_channels: int, density: float, biased: bool) -> None:
    check(replace(geometry, out_channels=geometry.groups * out_channels), density, biased=biased)


@pytest.mark.parametrize(
    "geometry",
    [
        pytest.param(Geometry.of_linear(100, 300, 10), id="linear"),
        pytest.param(Geometry.of_linear(1, 1000, 130), id="linear, one row"),
        pytest.param(
            Geometry(images=2, height=9, width=9, channels=24, out_channels=24, kernel=(3, 3), groups=24),
            id="depthwise",
        ),
        pytest.param(
            Geometry(images=3, height=33, width=20, channels=40, out_channels=96, kernel=(3, 3), padding=(1, 1)),
            id="several tiles",
        ),
        pytest.param(
            Geometry(images=2, height=2, width=2, channels=3, out_channels=4, kernel=(1, 1), padding=(3, 3)),
            id="windows beside the map",
        ),
    ],
)  # fmt: skip
@pytest.mark.parametrize("density", [0.02, 0.3])
def test_shapes(geometry: Geometry, density: float) -> None:
    check(geometry, density)


@pytest.mark.parametrize("density", [0.1, 0.4, 1.0])
@pytest.mark.parametrize(
    "geometry",
    [
        pytest.param(Geometry.of_linear(50, 4000, 100), id="linear"),
        pytest.param(Geometry(images=2, height=8, width=8, channels=512, out_channels=64, kernel=(3, 3)), id="3x3"),
    ],
)
def test_long_sums(geometry: Geometry, density: float) -> None:
    """Thousands of terms, where one sum from first to last would err 3 to 7 times as much as torch's."""
    check(geometry, density)


@pytest.mark.parametrize(
    "geometry",
    [
        pytest.param(Geometry.of_linear(1000, 4000, 16), id="linear"),
        pytest.param(
            Geometry(images=2, height=9, width=9, channels=40, out_channels=48, kernel=(3, 3), padding=(1, 1)), id="3x3"
        ),
    ],
)
def test_clusters(geometry: Geometry) -> None:
    """All spikes on two pixels: the lists are as uneven as can be, and long where few spikes are expected."""
    x, (weight, bias) = random_spikes(geometry, 0.0, 0), weights(geometry)
    x[0, 0, 0], x[-1, -1, -1] = 1, 1
    want = layer(geometry, x.double(), weight.double(), bias.double())
    theirs = (layer(geometry, x, weight, bias) - want).abs().max()
    assert (run(geometry, x, weight, bias) - want).abs().max() <= 2 * theirs + 4 * EPSILON * want.abs().max()


def test_same_bits_for_any_number_of_threads() -> None:
    geometry = Geometry(images=4, height=24, width=24, channels=64, out_channels=64, kernel=(3, 3), padding=(1, 1))
    x, (weight, bias) = random_spikes(geometry, 0.1, 3), weights(geometry)
    threads, results = torch.get_num_threads(), []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            results.append(run(geometry, x, weight, bias))
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])


def test_vectors_of_256_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a CPU without AVX-512 runs."""
    target = tvm.target.Target({"kind": "llvm", "mcpu": "x86-64-v3"})
    for where in (module, events_module):
        monkeypatch.setattr(where, "vector_lanes", lambda: 8)
        monkeypatch.setattr(where, "host_target", lambda: target)
    for out_channels in (64, 75):
        check(
            Geometry(
                images=2, height=9, width=7, channels=70, out_channels=out_channels, kernel=(3, 3), padding=(1, 1)
            ),
            0.2,
        )


def test_supports_what_can_be_counted() -> None:
    assert supports(Geometry(images=400, height=64, width=64, channels=512, out_channels=1))
    assert not supports(Geometry(images=1024, height=64, width=64, channels=512, out_channels=1))
