"""The look-up kernel on small layers, for this CPU and for one of eight lanes, against sums by NumPy."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pytest
import torch

from compiler.fused.spikes.forward_lut import CHANNELS, PARTS, TABLES, forward_lut_kernel, lookup_lanes, sizes_of
from compiler.fused.spikes.geometry import BITS, Geometry
from compiler.fused.spikes.planes import OVERRUN, plane_rows, positions
from compiler.tvm_setup import host_target, tvm

Array = npt.NDArray[np.float32]
Words = npt.NDArray[np.int32]
AVX2 = tvm.target.Target({"kind": "llvm", "mcpu": "x86-64-v3"})
TARGETS = {"here": host_target(), "avx2": AVX2}
LAYER = Geometry(
    images=2, height=6, width=7, channels=37, out_channels=11, kernel=(3, 3), stride=(2, 1), padding=(1, 1)
)
LAYERS = {
    "stride": LAYER,
    "whole words": replace(LAYER, channels=64, out_channels=CHANNELS, stride=(1, 1)),
    "groups": replace(LAYER, channels=6, out_channels=3 * (PARTS * CHANNELS + 1), groups=3, stride=(1, 2)),
    "more tables than a block": replace(LAYER, channels=TABLES * 2, kernel=(1, 1), padding=(0, 0)),
    "vectors are full": replace(LAYER, height=4, width=16, stride=(1, 1)),
}


def compiled(target: tvm.target.Target, *, bias: bool = True, parallel: bool = False) -> Callable[..., None]:
    lanes = lookup_lanes(target)
    if not lanes or (target is AVX2 and not lookup_lanes(host_target())):
        pytest.skip("the processor has no look-ups in registers")
    function: Callable[..., None] = tvm.compile(forward_lut_kernel(lanes, bias=bias, parallel=parallel), target=target)[
        "forward_lut"
    ]
    return function


def planes_of(geometry: Geometry, spikes: npt.NDArray[np.bool_]) -> Words:
    """The tap planes of spikes (images, pixels, groups, channels), by NumPy, their tails all ones."""
    bits = np.zeros((*spikes.shape[:3], geometry.words_of_group * BITS), bool)
    bits[..., : geometry.group_channels] = spikes
    words = np.packbits(bits, axis=3, bitorder="little").view(np.int32).reshape(*spikes.shape[:2], geometry.words)
    length = plane_rows(geometry)[1] * geometry.out_width
    places = positions(geometry, geometry.out_width, length)
    planes = np.full((geometry.images, geometry.words, len(places), length + OVERRUN), -1, np.int32)
    planes[..., :length] = np.where(places < 0, 0, np.moveaxis(words, 2, 1)[:, :, places])
    return planes


def reference(geometry: Geometry, spikes: npt.NDArray[np.bool_], weight: Array, bias: Array) -> Array:
    x = torch.from_numpy(spikes).double().view(geometry.images, geometry.height, geometry.width, -1)
    y = torch.conv2d(
        x.permute(0, 3, 1, 2), torch.from_numpy(weight).double().permute(0, 3, 1, 2), torch.from_numpy(bias).double(),
        geometry.stride, geometry.padding, groups=geometry.groups,
    )  # fmt: skip
    return y.permute(0, 2, 3, 1).float().numpy()


def random_layer(geometry: Geometry, seed: int) -> tuple[npt.NDArray[np.bool_], Array, Array]:
    """Spikes, and weights and bias that are small integers: all sums are exact."""
    random = np.random.default_rng(seed)
    shape = (geometry.images, geometry.height * geometry.width, geometry.groups, geometry.group_channels)
    weight = random.integers(-9, 10, (geometry.out_channels, *geometry.kernel, geometry.group_channels))
    bias = random.integers(-9, 10, geometry.out_channels)
    return random.random(shape) < 0.4, weight.astype(np.float32), bias.astype(np.float32)


def run(function: Callable[..., None], geometry: Geometry, planes: Words, *weights: Array) -> Array:
    y = np.full((geometry.images, geometry.out_height, geometry.out_width, geometry.out_channels), np.nan, np.float32)
    arrays = [torch.from_numpy(array.reshape(-1)) for array in (planes, *weights, y)]
    function(*arrays, *sizes_of(geometry).numbers(), 1.0)
    return y


@pytest.mark.parametrize("target", TARGETS)
def test_a_table_holds_the_sum_of_every_pattern(target: str) -> None:
    """One output channel of six inputs with the weights 1, 2, 4...: the result is the pattern as a number."""
    geometry = Geometry.of_linear(64, 6, 1)
    spikes = (np.arange(64)[None, :, None, None] >> np.arange(6)) % 2 == 1
    weight = (2.0 ** np.arange(6)).astype(np.float32)
    y = run(compiled(TARGETS[target], bias=False), geometry, planes_of(geometry, spikes), weight)
    assert y.ravel().tolist() == list(range(64))


@pytest.mark.parametrize("target", TARGETS)
def test_layers_with_and_without_tails(target: str) -> None:
    function, parallel = (compiled(TARGETS[target], parallel=parallel) for parallel in (False, True))
    for seed, (name, geometry) in enumerate(LAYERS.items()):
        spikes, weight, bias = random_layer(geometry, seed)
        planes = planes_of(geometry, spikes)
        y = run(function, geometry, planes, weight, bias)
        np.testing.assert_array_equal(y, reference(geometry, spikes, weight, bias), err_msg=name)
        np.testing.assert_array_equal(run(parallel, geometry, planes, weight, bias), y, err_msg=name)


@pytest.mark.parametrize(("cpu", "lanes"), [("znver4", 16), ("skylake-avx512", 16), ("x86-64-v3", 8), ("x86-64-v2", 0)])
def test_vectors_of_processors(cpu: str, lanes: int) -> None:
    assert lookup_lanes(tvm.target.Target({"kind": "llvm", "mcpu": cpu})) == lanes
