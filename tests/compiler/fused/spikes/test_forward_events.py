"""The weights as rows for the forward pass by events, against NumPy indexing."""

from __future__ import annotations

import functools
from collections.abc import Callable

import numpy as np
import pytest
import torch

from compiler.fused.cpu import vector_lanes
from compiler.fused.spikes.forward_events import RowSizes, forward_rows_kernel
from compiler.tvm_setup import host_target, tvm

VECTORS = 2
KERNEL = (2, 3)


@functools.cache
def compiled() -> Callable[..., None]:
    function = forward_rows_kernel("rows", lanes=vector_lanes(), vectors=VECTORS, parallel=True)
    kernel: Callable[..., None] = tvm.compile(function, target=host_target())["rows"]
    return kernel


@pytest.mark.parametrize(("channels", "outputs"), [(3, 5), (16, 32), (75, 70), (64, 33)])
def test_forward_rows(channels: int, outputs: int) -> None:
    groups, width, chunk = 2, VECTORS * vector_lanes(), 32
    blocks, chunks = -(-outputs // width), -(-channels // chunk)
    weight = torch.randn(groups * outputs, *KERNEL, channels, generator=torch.Generator().manual_seed(0))
    rows = torch.full((groups, blocks, chunks, *KERNEL, chunk, width), torch.nan)
    sizes = RowSizes(groups, channels, outputs, *KERNEL, blocks, chunks, chunk)
    compiled()(*sizes, weight.view(-1), rows.view(-1))
    for group, block, part in np.ndindex(groups, blocks, chunks):
        some = np.minimum(block * width + np.arange(width), outputs - 1) + group * outputs
        want = weight[some, :, :, part * chunk : (part + 1) * chunk].permute(1, 2, 3, 0)
        torch.testing.assert_close(rows[group, block, part][:, :, : want.shape[2]], want, rtol=0, atol=0)
        assert rows[group, block, part][:, :, want.shape[2] :].isnan().all()
