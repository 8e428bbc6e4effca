"""The finishing kernels of a batch norm against their formulas in f64."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from compiler.fused.population import Norm, Population
from tests.compiler.fused.build import GROUPS, compiled
from tests.compiler.fused.reference import U

STEPS = 7
POPULATION = Population(timesteps=STEPS, decay=0.5, threshold=1.0, norm=Norm.BATCH)


@settings(max_examples=30)
@given(st.integers(1, 200), st.sampled_from((1, 3, 16, 37)), st.sampled_from((0.0, 1e4, -3e6)), st.integers(0, 2**16))
def test_moments_of_inputs_with_any_mean(pixels: int, channels: int, mean: float, seed: int) -> None:
    kernels = compiled(POPULATION, tail=True)
    x = torch.randn(STEPS, pixels, channels, generator=torch.Generator().manual_seed(seed)) + mean
    sums = torch.full((GROUPS, 2, channels), torch.nan, dtype=torch.float64)
    moments = torch.full((2, channels), torch.nan, dtype=torch.float64)
    kernels["statistics"](x, sums)
    kernels["moments"](x, sums, moments)
    exact, shifted = x.double().flatten(0, 1), (x.double() - x[0, 0].double()).flatten(0, 1)
    # x - x[0] rounds, and f32 sums over the steps round at most as often as there are steps; all else is f64
    rounding = (STEPS + 3) * U
    absolute, square = shifted.abs().mean(0), shifted.square().mean(0)
    mean_error = rounding * absolute
    assert ((moments[0] - exact.mean(0)).abs() <= mean_error + 2.0**-50 * abs(mean)).all()
    var_error = rounding * square + 2 * shifted.mean(0).abs() * mean_error + 2.0**-45 * square
    assert ((moments[1] - exact.var(0, correction=0)).abs() <= 2 * var_error).all()


@pytest.mark.parametrize("seed", range(5))
def test_table_and_gradients(seed: int) -> None:
    kernels = compiled(POPULATION, tail=True)
    generator, channels, eps, count = torch.Generator().manual_seed(seed), 37, 1e-3, 250.0
    moments = torch.rand(2, channels, generator=generator, dtype=torch.float64) * 3
    weight, bias, scale, leak = torch.rand(4, channels, generator=generator)
    own, everywhere = torch.randn(2, 2, channels, generator=generator, dtype=torch.float64)
    table = torch.full((len(POPULATION.rows), channels), torch.nan)
    reciprocal, grad_weight, grad_bias = torch.zeros(channels, dtype=torch.float64), *torch.zeros(2, channels)
    kernels["table"](moments, weight, bias, scale, leak, table, reciprocal, eps)
    kernels["gradients"](own, everywhere, reciprocal, scale, table, grad_weight, grad_bias, count)
    rstd = 1 / (moments[1] + eps).sqrt()
    want = {
        "shift": moments[0],
        "gain": weight * rstd * scale,
        "offset": bias.double() * scale + leak,
        "mean_grad": everywhere[0] / count,
        "mean_grad_x": rstd**2 * everywhere[1] / count,
    }
    # computed in f64, rounded to f32 once; f64 roundings may move a value across a tie
    for name, row in want.items():
        torch.testing.assert_close(table[POPULATION.rows.index(name)].double(), row, rtol=1.01 * U, atol=1e-30)
    torch.testing.assert_close(grad_weight.double(), scale * rstd * own[1], rtol=1.01 * U, atol=1e-30)
    torch.testing.assert_close(grad_bias.double(), scale * own[0], rtol=1.01 * U, atol=1e-30)


def test_totals_add_all_groups() -> None:
    kernels = compiled(POPULATION, tail=True)
    sums = torch.arange(GROUPS * 2 * 37, dtype=torch.float64).view(GROUPS, 2, 37)
    totals = torch.full((2, 37), torch.nan, dtype=torch.float64)
    kernels["totals"](sums, totals)
    assert torch.equal(totals, sums.sum(0))
