"""Pooling by sums and to one value, and maps squeezed to features: as `from_torch` takes them."""

from __future__ import annotations

import pytest
from torch import Tensor, nn

from compiler.ir.ops import AvgPool2d, Input, Linear, MaxPool2d, Scale
from tests.frontends.step_cells import on_grid
from tests.frontends.step_loops import grid, imported

POOLS = {
    "sums by lp_pool": (nn.LPPool2d(1, 2), [AvgPool2d, Scale]),
    "sums by avg_pool": (nn.AvgPool2d(2, divisor_override=1), [AvgPool2d, Scale]),
    "sums with padding": (nn.AvgPool2d(2, padding=1, divisor_override=2, count_include_pad=False), [AvgPool2d, Scale]),
    "sums of whole windows": (nn.AvgPool2d(2, ceil_mode=True, divisor_override=1), [AvgPool2d, Scale]),
    "global maximum": (nn.AdaptiveMaxPool2d(1), [MaxPool2d]),
    "adaptive maximum": (nn.AdaptiveMaxPool2d((2, 4)), [MaxPool2d]),
}


@pytest.mark.parametrize("form", POOLS)
def test_pooling(form: str) -> None:
    pool, expected = POOLS[form]
    graph = imported(pool, grid(2, 3, 8, 8))
    assert [type(node.op) for node in graph.nodes] == [Input, *expected]


def test_squeezed_maps_are_features() -> None:
    net = nn.Sequential(nn.AdaptiveAvgPool2d(1), Squeeze(), nn.Linear(3, 2))
    graph = imported(on_grid(net), grid(2, 3, 8, 8))
    assert [type(node.op).__name__ for node in graph.nodes] == ["Input", "AvgPool2d", "Flatten", Linear.__name__]


class Squeeze(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.squeeze(-1).squeeze(-1)
