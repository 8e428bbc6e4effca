"""Spikes to bits and back, against NumPy's packbits."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tvm.ir import IRModule

from compiler.fused.pack import BITS, BLOCK, PackName, pack_kernel
from compiler.fused.population import Activation
from compiler.tvm_setup import host_target, tvm


@lru_cache
def compiled(activation: Activation) -> tvm.runtime.Executable:
    functions = {str(name): pack_kernel(name, activation) for name in PackName}
    return tvm.compile(IRModule(functions), target=host_target())


COUNTS = st.one_of(st.integers(1, 40), st.integers(1, 4 * BITS * BLOCK), st.just(300 * BITS * BLOCK + 5))


@settings(max_examples=60)
@given(COUNTS, st.floats(0, 1), st.sampled_from(Activation), st.integers(0, 2**16))
def test_bits_are_those_of_numpy_and_expand_to_the_spikes(
    count: int, rate: float, activation: Activation, seed: int
) -> None:
    kernels = compiled(activation)
    spikes = (torch.rand(count, generator=torch.Generator().manual_seed(seed)) < rate).float()
    dense = spikes.to(getattr(torch, str(activation)))
    bits = torch.full((-(-count // BITS),), 0xFF, dtype=torch.uint8)
    kernels["pack"](dense, bits)
    np.testing.assert_array_equal(bits.numpy(), np.packbits(spikes.numpy() > 0, bitorder="little"))
    again = torch.full_like(dense, torch.nan)
    kernels["expand"](bits, again)
    assert torch.equal(again, dense)
