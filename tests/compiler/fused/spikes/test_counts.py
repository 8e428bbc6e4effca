"""Which averages are counts, and how their planes are dealt out by costs."""

from __future__ import annotations

import pytest

from compiler.fused.population import Population, Window
from compiler.fused.spikes.costs import Cost, LayerCosts, Pass, Way
from compiler.fused.spikes.counts import Counts, Planes, counts_of, deal, dealt_costs
from compiler.ir.ops import AvgPool2d

COSTS = LayerCosts(
    {
        (Pass.FORWARD, Way.DENSE): Cost(((0.0, 24.0),)),
        (Pass.FORWARD, Way.LOOKUP): Cost(((0.0, 10.0),)),
        (Pass.FORWARD, Way.EVENTS): Cost(((0.0, 2.0), (2.0, 102.0))),
    }
)
ALL = (Way.LOOKUP, Way.EVENTS)


def population(window: Window | None) -> Population:
    return Population(timesteps=2, decay=0.5, threshold=1.0, window=window)


@pytest.mark.parametrize(
    ("window", "pixels"),
    [
        (None, None),
        (Window(kernel=(2, 2), average=False), None),
        (Window(kernel=(2, 2), average=True), 4),
        (Window(kernel=(2, 2), average=True, exact=False, ceil=True), 4),  # 1 or 2 of 4 pixels: their number divides 4
        (Window(kernel=(1, 2), average=True), 2),
        (Window(kernel=(2, 4), average=True), 8),
        (Window(kernel=(4, 4), average=True, exact=False), 16),
        (Window(kernel=(4, 4), average=True, exact=False, ceil=True), None),  # 3 rows of 4: twelfths
        (Window(kernel=(3, 3), average=True), None),
        (Window(kernel=(4, 8), average=True), None),
    ],
    ids=str,
)
def test_averages_over_a_power_of_two_are_counts(window: Window | None, pixels: int | None) -> None:
    assert counts_of(population(window)) == (None if pixels is None else Counts(pixels))


def test_pooling_that_stands_alone_gives_no_counts() -> None:
    assert counts_of(AvgPool2d(kernel=(2, 2), stride=(2, 2))) is None
    assert counts_of(None) is None


@pytest.mark.parametrize("pixels", [1, 2, 4, 8, 16])
def test_planes_hold_every_count_and_factors_sum_to_it(pixels: int) -> None:
    counts = Counts(pixels)
    for k in range(pixels + 1):
        bits = [k >> plane & 1 for plane in range(counts.planes)]
        assert sum(bit * counts.factor(plane) for plane, bit in enumerate(bits)) == k / pixels
    assert pixels >> counts.planes == 0


@pytest.mark.parametrize(
    ("shares", "ways", "planes"),
    [
        ((0.1, 0.01, 0.0), ALL, Planes(0, 3)),  # 2 + 5.5 against 10 + 2.5
        ((0.3, 0.05, 0.0), ALL, Planes(1, 3)),  # 10 + 4.5 against 19.5
        ((0.3, 0.3), ALL, Planes(2, 2)),  # 20 against 10 + 17
        ((0.3, 0.3, 0.3), ALL, None),  # 30, 20 + 17 and more against 24
        ((0.3, 0.05, 0.0), (Way.EVENTS,), Planes(0, 3)),
        ((0.3, 0.05), (Way.LOOKUP,), Planes(2, 2)),
        ((0.1,), (), None),
    ],
)  # fmt: skip
def test_the_cheapest_deal_is_found(shares: tuple[float, ...], ways: tuple[Way, ...], planes: Planes | None) -> None:
    assert deal(COSTS, Pass.FORWARD, shares, ways) == planes


def test_costs_of_all_ways_by_hand() -> None:
    found = dealt_costs(COSTS, Pass.FORWARD, (0.3, 0.05, 0.0), ALL)
    assert found == pytest.approx({Way.DENSE: 24.0, Way.EVENTS: 19.5, Way.BOTH: 14.5, Way.LOOKUP: 30.0})
