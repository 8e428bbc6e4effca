"""Lines of the relaxations against the functions that they bound, at every kind of point."""

from __future__ import annotations

from itertools import product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from compiler.certify.relaxation import Maximum, Neurons, Relaxation, intercept, maximum, neurons, relax
from compiler.ir import Compare, Reset

CELLS = 64
ROUNDING = 1e-9  # of sums of a few f64 terms below 1e4


def uniform(generator: torch.Generator, *shape: int, grid: bool) -> Tensor:
    """Values in [-1, 1]; on a grid of eighths, bounds and thresholds often meet."""
    values = 2 * torch.rand(shape, dtype=torch.float64, generator=generator) - 1
    return (values * 8).round() / 8 if grid else values


def cells(seed: int, reset: Reset, compare: Compare, *, grid: bool) -> Neurons:
    generator = torch.Generator().manual_seed(seed)
    ends = uniform(generator, 2, CELLS, grid=grid).sort(0).values
    threshold, reset_value = (uniform(generator, CELLS, grid=grid) for _ in range(2))
    return neurons(ends[0], ends[1], threshold, reset, reset_value, compare)


def points(own: Neurons, generator: torch.Generator) -> Tensor:
    """Membrane potentials within the bounds: both ends, the threshold, and some between."""
    share = torch.rand(7, CELLS, dtype=torch.float64, generator=generator)
    at = torch.cat([own.lower + share * (own.upper - own.lower), own.lower[None], own.upper[None], own.threshold[None]])
    return at.clamp(own.lower, own.upper)


def worst(own: Neurons, compare: Compare, form: tuple[Tensor, Tensor], line: tuple[Tensor, Tensor], m: Tensor) -> float:
    """The least of form - line over the points, with the threshold taken on both sides where it is unstable."""
    lowest = torch.inf
    for is_at in (True, False):
        fires = m >= own.threshold if is_at else m > own.threshold
        allowed = own.unstable | (torch.tensor(is_at == (compare is Compare.GE)))
        z = torch.where(fires, own.keep * m + own.shift, m)
        slack = form[0] * fires + form[1] * z - line[0] * m - line[1]
        lowest = min(lowest, float(slack.masked_fill(~allowed, torch.inf).min()))
    return lowest


@pytest.mark.parametrize(("reset", "compare"), [*product(Reset, Compare)], ids=str)
@settings(max_examples=12, deadline=None)  # of 64 neurons each
@given(seed=st.integers(0, 2**20), grid=st.booleans(), is_free=st.booleans())
def test_lines_hold(seed: int, reset: Reset, compare: Compare, grid: bool, is_free: bool) -> None:
    own = cells(seed, reset, compare, grid=grid)
    generator = torch.Generator().manual_seed(seed + 1)
    form = (uniform(generator, CELLS, grid=grid) * 3, uniform(generator, CELLS, grid=grid))
    free = torch.rand(CELLS, dtype=torch.float64, generator=generator) if is_free else None
    m = points(own, generator)
    for relaxation in Relaxation:
        line = relax(relaxation, own, *form, free)
        assert torch.isfinite(torch.stack(line)).all()
        assert worst(own, compare, form, line, m) >= -ROUNDING
    slope = uniform(generator, CELLS, grid=False) * 4
    sound = (slope, intercept(own, *form, slope))
    assert worst(own, compare, form, sound, m) >= -ROUNDING


@pytest.mark.parametrize("reset", Reset, ids=str)
@settings(max_examples=12, deadline=None)
@given(seed=st.integers(0, 2**20), grid=st.booleans())
def test_no_line_is_above_the_hull_in_the_middle(seed: int, reset: Reset, grid: bool) -> None:
    own = cells(seed, reset, Compare.GT if seed % 2 else Compare.GE, grid=grid)
    generator = torch.Generator().manual_seed(seed + 1)
    form = (uniform(generator, CELLS, grid=grid) * 3, uniform(generator, CELLS, grid=grid))
    middle = (own.lower + own.upper) / 2

    def height(line: tuple[Tensor, Tensor]) -> Tensor:
        return line[0] * middle + line[1]

    highest = height(relax(Relaxation.HULL, own, *form))
    free = torch.rand(5, CELLS, dtype=torch.float64, generator=generator)
    others = [height(relax(Relaxation.PAPER, own, *form, share)) for share in (None, *free)]
    others += [height(relax(Relaxation.HULL, own, *form, share)) for share in free]
    slopes = 10 * torch.randn(20, CELLS, dtype=torch.float64, generator=generator)
    others += [height((slope, intercept(own, *form, slope))).where(own.unstable, -torch.inf) for slope in slopes]
    assert (torch.stack(others) <= highest + ROUNDING).all()


def test_the_hull_beats_the_paper_strictly_somewhere() -> None:
    own = cells(3, Reset.HARD, Compare.GE, grid=False)
    generator = torch.Generator().manual_seed(4)
    form = (uniform(generator, CELLS, grid=False) * 3, uniform(generator, CELLS, grid=False))
    middle = (own.lower + own.upper) / 2
    (a, b), (c, d) = (relax(kind, own, *form) for kind in (Relaxation.HULL, Relaxation.PAPER))
    gain = ((a - c) * middle + b - d)[own.unstable]
    assert (gain > 0.01).double().mean() > 0.4


def test_a_spike_alone_has_the_lines_of_equation_6_5() -> None:
    """Bounds (-1, 1) around a threshold of 0.5: s <= (m + 1) / 1.5 and s >= 0; around 0: s >= m and s <= 1."""
    ends = torch.tensor([-1.0, -1.0], dtype=torch.float64), torch.tensor([1.0, 1.0], dtype=torch.float64)
    own = neurons(*ends, torch.tensor([0.5, 0.0]), Reset.HARD, torch.zeros(()), Compare.GE)
    zero = torch.zeros(2, dtype=torch.float64)
    slope, constant = relax(Relaxation.PAPER, own, torch.tensor([[1.0], [-1.0]], dtype=torch.float64), zero)
    torch.testing.assert_close(slope, torch.tensor([[0.0, 1.0], [-1 / 1.5, 0.0]], dtype=torch.float64))
    torch.testing.assert_close(constant, torch.tensor([[0.0, 0.0], [-1 / 1.5, -1.0]], dtype=torch.float64))


def maxima(seed: int) -> tuple[Maximum, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    lower, upper = uniform(generator, 2, 4, CELLS, grid=bool(seed % 2)).sort(0).values
    absent = torch.rand(4, CELLS, generator=generator) < 0.2
    absent[0] = False
    lower, upper = (ends.masked_fill(absent, -torch.inf) for ends in (lower, upper))
    share = torch.rand(50, 4, CELLS, dtype=torch.float64, generator=generator).round(decimals=1)
    x = torch.where(absent, -torch.inf, (lower + share * (upper - lower)))
    return maximum(lower, upper), x, absent


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**20))
def test_lines_of_a_maximum_hold(seed: int) -> None:
    own, x, absent = maxima(seed)
    generator = torch.Generator().manual_seed(seed + 1)
    form = uniform(generator, 6, CELLS, grid=False)
    line, constant = own.lower(form)
    bounds = (line[:, None] * x.masked_fill(absent, 0.0)).sum(2) + constant[:, None]
    assert ((form[:, None] * x.amax(1)) >= bounds - ROUNDING).all()


def test_every_kind_of_maximum_occurs() -> None:
    own, _, _ = maxima(5)
    for kind in (own.exact, own.summed, ~own.exact & ~own.summed):
        assert kind.any()
