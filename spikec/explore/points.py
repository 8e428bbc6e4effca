"""Evaluates one point of the space; plain data in and out, so that any process can do it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields

from hwmodel.config import H2LearnConfig, TileConfig, config_from_mapping
from hwmodel.errors import CompileError, Loc
from hwmodel.estimate import Estimate, Mode, estimate
from hwmodel.program import Layer
from hwmodel.sizing import sized
from hwmodel.timing.passes import Setting
from hwmodel.timing.sampled_tiles import Density, SampledTiles
from hwmodel.timing.tiles import DenseTiles
from spikec.explore.space import Point, Value, Values, configured

_NUMBERS = tuple(field.name for field in fields(Estimate) if field.name != "bound_by")
_DERIVED = ("energy_j_per_sample", "power_w")


@dataclass(frozen=True, slots=True, kw_only=True)
class TiledNetwork:
    """The network's layers for one size of tile, and their densities by number, None for dense.

    fault: why the accelerator cannot run it with such tiles, "" where it can.
    """

    tile: TileConfig
    layers: tuple[Layer, ...]
    densities: Mapping[int, Density] | None
    fault: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Study:
    """What all points share. `batch` counts the samples between two updates of the weights."""

    base: H2LearnConfig
    mode: Mode
    timesteps: int
    batch: int
    seed: int
    networks: tuple[TiledNetwork, ...]

    def network(self, tile: TileConfig) -> TiledNetwork:
        """The layers for a tile."""
        return next(network for network in self.networks if network.tile == tile)


@dataclass(frozen=True, slots=True, kw_only=True)
class PointResult:
    """A point and what came of it: an estimate, or why it was refused."""

    number: int
    changes: Values
    estimate: Estimate | None = None
    refused: str = ""

    def as_json(self) -> str:
        """One line of the results file, without its end."""
        head = {"point": self.number, "changes": self.changes}
        if self.estimate is None:
            return json.dumps({**head, "refused": self.refused})
        derived = {name: getattr(self.estimate, name) for name in _DERIVED}
        return json.dumps({**head, **derived, **asdict(self.estimate)})

    @classmethod
    def from_json(cls, line: str) -> PointResult:
        """What such a line says.

        Raises: ValueError, KeyError or TypeError for any other text.
        """
        record = json.loads(line)
        number, changes = int(record["point"]), _changes(record["changes"])
        if "refused" in record:
            return cls(number=number, changes=changes, refused=str(record["refused"]))
        numbers = {name: _number(record[name]) for name in _NUMBERS}
        bounds = {str(layer): str(bound) for layer, bound in record["bound_by"].items()}
        return cls(number=number, changes=changes, estimate=Estimate(**numbers, bound_by=bounds))


def evaluate(study: Study, point: Point) -> PointResult:
    """Size the buffers, check the configuration, estimate; a fault of the design is a result."""
    try:
        found = _estimate(study, point)
    except CompileError as fault:
        return PointResult(number=point.number, changes=point.changes, refused=fault.message)
    return PointResult(number=point.number, changes=point.changes, estimate=found)


def _estimate(study: Study, point: Point) -> Estimate:
    loc = Loc(f"point {point.number}")
    config = sized(configured(study.base, point.changes), study.timesteps)
    config_from_mapping(config.as_mapping(), loc)
    outputs, group = config.tile.h * config.tile.w, config.backward.pe_group
    if group > outputs:
        raise CompileError(f"backward.pe_group is {group}, a tile has {outputs} outputs", loc)
    if study.mode is Mode.TRAIN and study.batch % config.sub_batch:
        raise CompileError(
            f"sub_batch is {config.sub_batch}, does not divide the {study.batch} samples between two updates", loc
        )
    network = study.network(config.tile)
    if network.fault:
        raise CompileError(network.fault, loc)
    densities = network.densities
    setting = Setting(
        config=config,
        timesteps=study.timesteps,
        batch=config.sub_batch,
        tiles=DenseTiles(config) if densities is None else SampledTiles(config, densities, study.seed),
        window_density={number: density.outputs for number, density in (densities or {}).items()},
    )
    return estimate(network.layers, setting, study.mode, study.batch // config.sub_batch)


def _changes(table: Mapping[str, object]) -> Values:
    return {str(path): _number(value) for path, value in table.items()}


def _number(value: object) -> Value:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"{value!r} is no number")
    return value
