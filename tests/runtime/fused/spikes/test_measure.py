"""Costs of a layer as a clock tells them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from compiler.fused.program import Layer
from compiler.fused.spikes.costs import WAYS, CostCache, LayerCosts, Pass, Way
from compiler.fused.spikes.counts import Counts
from compiler.fused.spikes.geometry import Geometry
from runtime.fused.spikes import measure as measure_module
from runtime.fused.spikes.counts_layer import CountsLayer
from runtime.fused.spikes.layer import SpikeLayer
from runtime.fused.spikes.measure import BitLayer, cache_key, costs_of, measure

LAYER = SpikeLayer(
    Layer(convolution=True, bias=True, padding=(1, 1)),
    Geometry(images=2, height=5, width=5, channels=8, out_channels=16, kernel=(3, 3), padding=(1, 1)),
)


def replaced(images: int) -> SpikeLayer:
    return SpikeLayer(LAYER.layer, replace(LAYER.geometry, images=images))


class Clock:
    """Each call takes a second longer than the one before."""

    def __init__(self) -> None:
        self.now, self.step = 0.0, 0.0

    def __call__(self) -> float:
        self.step += 0.5
        self.now += self.step
        return self.now


@pytest.mark.parametrize("layer", [LAYER, CountsLayer(LAYER, Counts(4))], ids=["spikes", "averages"])
def test_each_way_that_computes_a_pass_gets_its_cost(layer: BitLayer) -> None:
    for of in Pass:
        costs = measure(layer, of, clock=Clock())
        ways = tuple(way for way in WAYS[of] if layer.supports(of, way))
        assert costs.ways(of) == ways
        assert len(ways) >= 2
        assert all(costs.seconds(of, way, 0.1) > 0 for way in ways)
        assert len(costs.costs[of, Way.EVENTS].points) == 3
        assert len(costs.costs[of, Way.DENSE].points) == 1


def test_costs_are_measured_once_and_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def measured(layer: BitLayer, of: Pass) -> LayerCosts:
        asked.append((layer, of))
        return measure(layer, of, clock=Clock())

    monkeypatch.setenv("SPIKEC_CACHE", str(tmp_path))
    monkeypatch.setattr(measure_module, "_FOUND", {})
    monkeypatch.setattr(measure_module, "measure", measured)
    first = costs_of(LAYER, Pass.FORWARD)
    assert costs_of(LAYER, Pass.FORWARD) is first
    monkeypatch.setattr(measure_module, "_FOUND", {})
    assert costs_of(LAYER, Pass.FORWARD) == first
    assert asked == [(LAYER, Pass.FORWARD)]
    assert CostCache(tmp_path).find(cache_key(LAYER, Pass.FORWARD)) == first
    larger = replaced(5)  # taken to be 4 images, and 5 / 4 as long
    assert costs_of(larger, Pass.FORWARD) == measured(replaced(4), Pass.FORWARD).scaled(1.25)
    assert asked[1] == asked[2] == (replaced(4), Pass.FORWARD)


def test_keys_tell_layers_and_threads_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    keys = {cache_key(LAYER, Pass.FORWARD), cache_key(CountsLayer(LAYER, Counts(4)), Pass.FORWARD)}
    monkeypatch.setattr(torch, "get_num_threads", lambda: 99)
    assert len(keys | {cache_key(LAYER, Pass.FORWARD)}) == 3
