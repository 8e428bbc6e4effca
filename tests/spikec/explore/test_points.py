"""One point: what it hands to the estimate, what it refuses, and its line of the file."""

from __future__ import annotations

import json
import pickle
from dataclasses import replace

import pytest

from compiler.h2learn.facts import network_layers
from hwmodel.config import H2LearnConfig, TileConfig, load_config
from hwmodel.estimate import Mode, estimate
from hwmodel.sizing import sized
from hwmodel.timing.passes import Setting
from hwmodel.timing.sampled_tiles import Density, SampledTiles
from spikec.explore.points import PointResult, Study, TiledNetwork, evaluate
from spikec.explore.space import Point, Values, configured
from spikec.models import load_model

PRESET = load_config("h2learn")
GRAPH = load_model("zoo:digits-conv", timesteps=4).graph
DENSITIES = {0: Density(inputs=0.2, outputs=0.3)}


def study(mode: Mode = Mode.TRAIN, base: H2LearnConfig = PRESET) -> Study:
    tiles = [base.tile, TileConfig(h=4, w=4), TileConfig(h=16, w=16)]
    networks = [
        TiledNetwork(tile=tile, layers=network_layers(GRAPH, replace(base, tile=tile)), densities=DENSITIES)
        for tile in tiles[:2]
    ]
    refused = TiledNetwork(tile=tiles[2], layers=(), densities=None, fault="does not fit")
    return Study(base=base, mode=mode, timesteps=4, batch=64, seed=3, networks=(*networks, refused))


def point(**changes: float) -> Point:
    return Point(number=5, changes={path.replace("__", "."): value for path, value in changes.items()})


@pytest.mark.parametrize("mode", list(Mode))
@pytest.mark.parametrize("changes", [{}, {"tile": 4, "sub_batch": 8}, {"forward.rows": 32, "backward.cols": 16}])
def test_a_point_is_the_estimate_of_its_sized_configuration(mode: Mode, changes: Values) -> None:
    config = sized(configured(PRESET, changes), 4)
    setting = Setting(
        config=config,
        timesteps=4,
        batch=config.sub_batch,
        tiles=SampledTiles(config, DENSITIES, 3),
        window_density={0: 0.3},
    )
    want = estimate(network_layers(GRAPH, config), setting, mode, 64 // config.sub_batch)
    assert evaluate(study(mode), Point(number=1, changes=changes)).estimate == want


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"forward.rows": 48}, "forward.rows is 48, must be a power of two, as the adder tree of a column"),
        ({"forward.sub_luts": 10}, "forward.sub_luts is 10, a PE has 9 taps"),
        ({"forward.sub_luts": 3, "forward.lut_entries": 4}, "forward.sub_luts x lut_entries is 3 x 4, which serves"),
        ({"sub_batch": 5}, "sub_batch is 5, does not divide the 64 samples between two updates"),
        ({"tile": 16}, "does not fit"),
        ({"tile": 4, "backward.pe_group": 17}, "backward.pe_group is 17, a tile has 16 outputs"),
    ],
)
def test_a_refused_point_says_why(changes: Values, message: str) -> None:
    found = evaluate(study(), Point(number=2, changes=changes))
    assert (found.number, found.changes, found.estimate) == (2, changes, None)
    assert found.refused.startswith(message)


def test_inference_takes_any_sub_batch() -> None:
    assert evaluate(study(Mode.INFER), point(sub_batch=5)).estimate is not None


@pytest.mark.parametrize("changes", [{"forward.rows": 32, "memory.bytes_per_cycle": 80.5}, {"forward.rows": 48}])
def test_a_line_keeps_everything(changes: Values) -> None:
    found = evaluate(study(), Point(number=9, changes=changes))
    line = found.as_json()
    assert PointResult.from_json(line) == found
    assert PointResult.from_json(line).as_json() == line
    assert "\n" not in line


def test_keys_of_a_line() -> None:
    keys = set(json.loads(evaluate(study(), point()).as_json()))
    assert keys == {
        "point",
        "changes",
        "samples_per_second",
        "energy_j_per_sample",
        "dynamic_j_per_sample",
        "leakage_j_per_sample",
        "area_mm2",
        "power_w",
        "period_cycles",
        "bound_by",
    }


@pytest.mark.parametrize(
    "line",
    [
        "{}",
        "[]",
        "x",
        '{"point": 1, "changes": {}}',
        '{"point": 1, "changes": {"tile": "x"}, "refused": ""}',
    ],
)
def test_other_lines_are_no_results(line: str) -> None:
    with pytest.raises((ValueError, KeyError, TypeError)):
        PointResult.from_json(line)


def test_everything_can_be_sent_to_another_process() -> None:
    sent = pickle.loads(pickle.dumps((study(), point(forward__cols=8))))
    assert evaluate(*sent) == evaluate(study(), point(forward__cols=8))
