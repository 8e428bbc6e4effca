"""The weights as rows for the input's gradient by events, against NumPy indexing."""

from __future__ import annotations

import functools
from collections.abc import Callable

import numpy as np
import pytest
import torch

from compiler.fused.cpu import vector_lanes
from compiler.fused.spikes.event_sums import slot, slots
from compiler.fused.spikes.forward_events import RowSizes
from compiler.fused.spikes.input_events import input_rows_kernel
from compiler.tvm_setup import host_target, tvm

VECTORS = 2
KERNEL = (2, 3)


@functools.cache
def compiled(stride: int) -> Callable[..., None]:
    function = input_rows_kernel("rows", lanes=vector_lanes(), vectors=VECTORS, stride=stride, parallel=True)
    kernel: Callable[..., None] = tvm.compile(function, target=host_target())["rows"]
    return kernel


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize(("channels", "outputs"), [(3, 5), (32, 32), (75, 70)])
def test_input_rows(channels: int, outputs: int, stride: int) -> None:
    groups, width, chunk = 2, VECTORS * vector_lanes(), 32
    blocks, chunks = -(-channels // width), -(-outputs // chunk)
    weight = torch.randn(groups, outputs, *KERNEL, channels, generator=torch.Generator().manual_seed(0))
    rows = torch.full((groups, blocks, chunks, KERNEL[0], slots(KERNEL[1], stride), chunk, width), torch.nan)
    sizes = RowSizes(groups, channels, outputs, *KERNEL, blocks, chunks, chunk)
    compiled(stride)(*sizes, weight.view(-1), rows.view(-1))
    padded = torch.nn.functional.pad(weight, (0, blocks * width - channels))
    for group, block, part, column in np.ndindex(groups, blocks, chunks, KERNEL[1]):
        found = rows[group, block, part][:, slot(column, KERNEL[1], stride)]
        some = padded[group, part * chunk : (part + 1) * chunk, :, column, block * width : (block + 1) * width]
        torch.testing.assert_close(found[:, : some.shape[0]], some.permute(1, 0, 2), rtol=0, atol=0)
        assert found[:, some.shape[0] :].isnan().all()
