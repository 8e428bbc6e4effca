"""The kernel for open places on one layer, for this CPU and for one of eight lanes, against sums by NumPy."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest

from compiler.fused.cpu import vector_lanes
from compiler.fused.spikes.geometry import BITS, Geometry
from compiler.fused.spikes.input_masked import input_masked_kernel
from compiler.fused.spikes.masked_plan import masked_calls
from compiler.fused.spikes.masked_weights import masked_weights_kernel
from compiler.tvm_setup import host_target, tvm

Array = npt.NDArray[np.float32]
AVX2 = tvm.target.Target({"kind": "llvm", "mcpu": "x86-64-v3"})
TARGETS = {"sixteen": (host_target(), 16), "eight": (host_target(), 8), "avx2": (AVX2, 8)}
LAYER = Geometry(
    images=2, height=6, width=7, channels=37, out_channels=45, kernel=(3, 5), stride=(2, 1), padding=(1, 2)
)


def gradient(geometry: Geometry, grad: Array, weight: Array) -> Array:
    """Scattered from each output, in f64."""
    (ph, pw), (sy, sx) = geometry.padding, geometry.stride
    shape = geometry.images, geometry.height + 2 * ph, geometry.width + 2 * pw, geometry.channels
    total = np.zeros(shape)
    for oy in range(geometry.out_height):
        for ox in range(geometry.out_width):
            seen = np.einsum("no,okxc->nkxc", grad[:, oy, ox].astype(float), weight)
            total[:, oy * sy : oy * sy + geometry.kernel[0], ox * sx : ox * sx + geometry.kernel[1]] += seen
    return total[:, ph : ph + geometry.height, pw : pw + geometry.width].astype(np.float32)


@pytest.mark.parametrize("name", TARGETS)
def test_open_places_get_the_gradient(name: str) -> None:
    target, lanes = TARGETS[name]
    if name == "avx2" and vector_lanes() < 8:
        pytest.skip("the processor has no vectors of eight")
    rng = np.random.default_rng(2)
    grad = rng.integers(-9, 9, (2, LAYER.out_height, LAYER.out_width, 45)).astype(np.float32)
    weight = rng.integers(-9, 9, (45, 3, 5, 37)).astype(np.float32)
    mask = rng.random((2, 6, 7, 37)) < 0.4
    bits = np.zeros((2, 6, 7, LAYER.words * BITS), bool)
    bits[..., :37] = mask
    words = np.packbits(bits, axis=3, bitorder="little").view(np.int32)
    grad_x = np.full(mask.shape, np.nan, np.float32)
    for call in masked_calls(LAYER, lanes):
        sizes, packed = np.array(call.sizes, np.int64), np.empty(call.packed, np.float32)
        pack = tvm.compile(masked_weights_kernel(call.taps, False), target)["masked_weights"]
        pack(sizes, weight.reshape(-1), packed)
        dtypes = (np.float32, np.int32, np.float32, np.float32, np.int32)
        memory = [np.full((2, length), -77, dtype) for length, dtype in zip(call.memory, dtypes, strict=True)]
        run = tvm.compile(input_masked_kernel(call.taps, False), target)["input_masked"]
        run(sizes, words.reshape(-1), grad.reshape(-1), packed, grad_x.reshape(-1), *memory)
    np.testing.assert_array_equal(grad_x, np.where(mask, gradient(LAYER, grad, weight), 0))
