"""The order of weights for open places, against NumPy's."""

from __future__ import annotations

import numpy as np
import pytest

from compiler.fused.spikes.geometry import Geometry
from compiler.fused.spikes.masked_plan import Size, masked_calls
from compiler.fused.spikes.masked_weights import masked_weights_kernel
from compiler.tvm_setup import host_target, tvm


@pytest.mark.parametrize("lanes", [8, 16])
@pytest.mark.parametrize("side", [3, 5])
def test_order(lanes: int, side: int) -> None:
    """Two groups, output channels that fill no block, input channels that fill vectors and leave some over."""
    geometry = Geometry(
        images=1, height=9, width=9, channels=2 * 37, out_channels=2 * 41, kernel=(side, side), stride=(1, 2), groups=2
    )
    weight = np.random.default_rng(1).normal(size=(2, 41, side, side, 37)).astype(np.float32)
    for call in masked_calls(geometry, lanes):
        taps, size = call.taps, call.sizes
        packed = np.full(call.packed, np.nan, np.float32)
        tvm.compile(masked_weights_kernel(taps, False), host_target())["masked_weights"](
            np.array(size, np.int64), weight.reshape(-1), packed
        )
        of_phase = weight[:, :, size[Size.PHASE_Y] :, size[Size.PHASE_X] :: 2]
        absent = -of_phase.shape[1] % taps.block
        full = np.pad(of_phase, ((0, 0), (0, absent), (0, 0), (0, 0), (0, 0)))
        parts = full.reshape(2, -1, taps.vectors, lanes, taps.turns, taps.rows_at_once, taps.columns, 37)
        # group, block, turn, c, row of taps, column, vector, lane
        np.testing.assert_array_equal(packed, parts.transpose(0, 1, 4, 7, 5, 6, 2, 3).reshape(-1))
