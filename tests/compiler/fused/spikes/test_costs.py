"""Costs of kernels: lines through measurements, the choice by them, and the file that keeps them."""

from __future__ import annotations

from pathlib import Path

import pytest

from compiler.fused.cache_file import CacheFileWarning
from compiler.fused.spikes.costs import GAIN, Cost, CostCache, LayerCosts, Pass, Way

COSTS = LayerCosts(
    {
        **{(of, Way.DENSE): Cost(((0.1, 10.0),)) for of in Pass},
        (Pass.FORWARD, Way.LOOKUP): Cost(((0.1, 4.0),)),
        (Pass.FORWARD, Way.EVENTS): Cost.of({0.0: 1.0, 0.2: 7.0, 1.0: 31.0}),
        (Pass.INPUT_GRADIENT, Way.MASKED): Cost.of({0.1: 2.0, 0.4: 9.6, 1.0: 20.0}),
    }
)


def test_time_never_falls_with_the_share() -> None:
    cost = Cost.of({0.2: 3.0, 0.02: 5.0, 1.0: 9.0})
    assert cost.at(0.0) == cost.at(0.2) == 5.0
    assert cost.at(0.6) == pytest.approx(7.0)
    assert cost.at(3.0) == 9.0


@pytest.mark.parametrize(
    ("share", "way"),
    [(0.0, Way.EVENTS), (0.09, Way.EVENTS), (0.11, Way.LOOKUP), (1.0, Way.LOOKUP)],
    ids=["none", "few", "more", "all"],
)
def test_the_fastest_way_is_chosen(share: float, way: Way) -> None:
    assert COSTS.choose(Pass.FORWARD, {Way.LOOKUP: share, Way.EVENTS: share}) is way


def test_what_gains_little_or_is_unknown_is_left() -> None:
    assert COSTS.seconds(Pass.INPUT_GRADIENT, Way.MASKED, 0.4) > GAIN * 10.0
    assert COSTS.choose(Pass.INPUT_GRADIENT, {Way.MASKED: 0.4}) is Way.DENSE
    assert COSTS.choose(Pass.INPUT_GRADIENT, {Way.MASKED: 0.3}) is Way.MASKED
    assert COSTS.choose(Pass.INPUT_GRADIENT, {Way.EVENTS: 0.0}) is Way.DENSE  # it has no cost
    assert COSTS.choose(Pass.INPUT_GRADIENT, {}) is Way.DENSE


def test_kept_costs_are_found(tmp_path: Path) -> None:
    cache = CostCache(tmp_path)
    cache.keep("layer", COSTS)
    assert CostCache(tmp_path).find("layer") == COSTS
    assert cache.find("another") is None


@pytest.mark.parametrize(
    "costs",
    [
        '{"forward look-up": [[0.1, 1.0]]}',
        '{"forward dense": [[0.1, -1.0]], "weight_gradient dense": [[0, 1]], "input_gradient dense": [[0, 1]]}',
        '{"forward dense": [], "weight_gradient dense": [[0, 1]], "input_gradient dense": [[0, 1]]}',
        '{"sideways dense": [[0.1, 1.0]]}',
        "[]",
    ],
    ids=["missing", "negative", "empty", "unknown", "list"],
)
def test_damaged_costs_are_measured_again(costs: str, tmp_path: Path) -> None:
    (tmp_path / CostCache.file_name).write_text(f'{{"format": {CostCache.format}, "costs": {{"layer": {costs}}}}}')
    with pytest.warns(CacheFileWarning, match="they are measured again"):
        assert CostCache(tmp_path).find("layer") is None
