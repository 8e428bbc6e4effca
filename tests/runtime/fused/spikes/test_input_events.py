"""The input's gradient by events, against torch's in double precision."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from compiler.fused.spikes.geometry import Geometry
from compiler.tvm_setup import tvm
from runtime.fused.spikes import events as events_module
from runtime.fused.spikes import input_events as module
from runtime.fused.spikes.input_events import input_events, supports
from tests.runtime.fused.spikes.spike_maps import geometries, random_spikes, take, words_of

EPSILON = torch.finfo(torch.float32).eps


def gradient(geometry: Geometry, grad: Tensor, weight: Tensor) -> Tensor:
    """grad_x with the channels last, by torch."""
    shape = (geometry.images, geometry.channels, geometry.height, geometry.width)
    maps, kernel = grad.permute(0, 3, 1, 2), weight.permute(0, 3, 1, 2)
    grad_x = torch.nn.grad.conv2d_input(
        shape, kernel, maps, geometry.stride, geometry.padding, groups=geometry.groups
    )  # fmt: skip
    return grad_x.permute(0, 2, 3, 1)


def case(geometry: Geometry, density: float) -> tuple[Tensor, Tensor]:
    """The output's gradient, of which so much is not zero, and the weights."""
    random = torch.Generator().manual_seed(7)
    shape = (geometry.images, geometry.out_height, geometry.out_width, geometry.out_channels)
    grad = torch.randn(shape, generator=random) * (torch.rand(shape, generator=random) < density)
    kernel = (geometry.out_channels, *geometry.kernel, geometry.group_channels)
    return grad, torch.randn(kernel, generator=random)


def run(geometry: Geometry, grad: Tensor, weight: Tensor, mask: Tensor | None) -> Tensor:
    shape = (geometry.images, geometry.height, geometry.width, geometry.channels)
    grad_x = torch.full((torch.Size(shape).numel() + 16,), torch.nan)
    words = None if mask is None else words_of(geometry, mask)
    input_events(geometry, grad, weight, words, grad_x[:-16].view(shape), take)
    assert grad_x[-16:].isnan().all()  # nothing is written beyond the end
    return grad_x[:-16].view(shape)


def check(geometry: Geometry, density: float, *, masked: bool = False) -> None:
    """The error is at most twice that of torch's f32, and a few roundings of the largest result."""
    grad, weight = case(geometry, density)
    mask = random_spikes(geometry, 0.3, 5) if masked else None
    want, theirs = gradient(geometry, grad.double(), weight.double()), gradient(geometry, grad, weight)
    bound = 2 * (theirs - want).abs().max() + 4 * EPSILON * want.abs().max()
    found = run(geometry, grad, weight, mask)
    if mask is not None:
        want = want * mask
        assert not found[mask == 0].any()
    assert (found - want).abs().max() <= bound


LAYERS = (geometries(), st.integers(1, 70), st.sampled_from([0.0, 0.05, 0.4, 1.0]), st.booleans())


@settings(max_examples=15)
@given(*LAYERS)
def test_against_torch(geometry: Geometry, out_channels: int, density: float, masked: bool) -> None:
    check(replace(geometry, out_channels=geometry.groups * out_channels), density, masked=masked)


@pytest.mark.slow
@settings(max_examples=100)
@given(*LAYERS)
def test_many_against_torch(geometry: Geometry, out_channels: int, density: float, masked: bool) -> None:
    check(replace(geometry, out_channels=geometry.groups * out_channels), density, masked=masked)


@pytest.mark.parametrize(
    "geometry",
    [
        pytest.param(Geometry.of_linear(100, 300, 10), id="linear"),
        pytest.param(Geometry.of_linear(1, 130, 1000), id="linear, one row"),
        pytest.param(
            Geometry(images=2, height=9, width=9, channels=24, out_channels=24, kernel=(3, 3), groups=24),
            id="depthwise",
        ),
        pytest.param(
            Geometry(images=3, height=33, width=20, channels=96, out_channels=40, kernel=(3, 3), padding=(1, 1)),
            id="several tiles",
        ),
        pytest.param(
            Geometry(images=2, height=8, width=9, channels=33, out_channels=40, kernel=(1, 1), stride=(3, 2)),
            id="inputs that no output sees",
        ),
        pytest.param(
            Geometry(images=2, height=2, width=2, channels=3, out_channels=4, kernel=(1, 1), padding=(3, 3)),
            id="windows beside the map",
        ),
    ],
)  # fmt: skip
@pytest.mark.parametrize("masked", [False, True])
def test_shapes(geometry: Geometry, masked: bool) -> None:
    check(geometry, 0.1, masked=masked)


@pytest.mark.parametrize("density", [0.1, 0.4, 1.0])
@pytest.mark.parametrize(
    "geometry",
    [
        pytest.param(Geometry.of_linear(50, 100, 4000), id="linear"),
        pytest.param(Geometry(images=2, height=8, width=8, out_channels=512, channels=64, kernel=(3, 3)), id="3x3"),
    ],
)
def test_long_sums(geometry: Geometry, density: float) -> None:
    """Thousands of terms, where one sum from first to last would err 3 to 7 times as much as torch's."""
    check(geometry, density)


def test_what_is_no_number_reaches_its_inputs_only_and_no_masked_one() -> None:
    geometry = Geometry(images=1, height=8, width=8, channels=40, out_channels=40, kernel=(3, 3), padding=(1, 1))
    grad, weight = case(geometry, 0.1)
    grad[0, 4, 4, 3], grad[0, 4, 5, 6] = torch.nan, torch.inf
    mask = random_spikes(geometry, 0.5, 5)
    found = run(geometry, grad, weight, mask)
    reached = torch.zeros_like(mask)
    reached[0, 3:6, 3:6] = 1
    assert torch.equal(found.isnan(), (reached * mask).bool())
    assert not found[mask == 0].any()


def test_same_bits_for_any_number_of_threads() -> None:
    geometry = Geometry(images=4, height=24, width=24, channels=64, out_channels=64, kernel=(3, 3), padding=(1, 1))
    grad, weight = case(geometry, 0.1)
    mask, threads, results = random_spikes(geometry, 0.3, 5), torch.get_num_threads(), []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            results.append(run(geometry, grad, weight, mask))
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
    for channels in (64, 75):
        geometry = Geometry(images=2, height=9, width=7, channels=channels, out_channels=70, kernel=(3, 3))
        check(geometry, 0.2, masked=True)


def test_supports_what_can_be_counted() -> None:
    assert supports(Geometry(images=400, height=64, width=64, channels=1, out_channels=512))
    assert not supports(Geometry(images=1024, height=64, width=64, channels=1, out_channels=512))
