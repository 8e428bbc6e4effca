"""The results file of an exploration: a line for every point."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import ClassVar

from hwmodel.components import AreaTable, Component, EnergyTable, area_table, energy_table
from spikec import __version__
from spikec.explore.points import PointResult, Study
from spikec.explore.space import Space
from spikec.record_file import Header, RecordFile, digest_of

FORMAT = 1


def header_of(study: Study, space: Space, *, network: str, densities: str, points: int, seed: int) -> Header:
    """What the results rest on; the digest covers layers, configuration and the tables of components too."""
    shown: dict[str, object] = {
        "format": FORMAT,
        "version": __version__,
        "network": network,
        "mode": str(study.mode),
        "densities": densities,
        "timesteps": study.timesteps,
        "samples_between_updates": study.batch,
        "base": study.base.name,
        "points": points,
        "seed": seed,
        "axes": {axis.path: list(axis.values) for axis in space.axes},
    }
    everything = {**shown, "study": asdict(study), "area": _values(area_table()), "energy": _values(energy_table())}
    return {ResultsFile.kind: digest_of(everything), **shown}


def _values(table: AreaTable | EnergyTable) -> dict[str, float]:
    rows = ((field.name, getattr(table, field.name)) for field in fields(table))
    return {name: row.value for name, row in rows if isinstance(row, Component)}


@dataclass(frozen=True, slots=True, kw_only=True)
class ResultsFile(RecordFile[PointResult]):
    """The file of one exploration."""

    kind: ClassVar[str] = "exploration"
    record: ClassVar[str] = "result of a point"
    unnamed: ClassVar[str] = "the network's layers, the configuration or the component tables"

    def parsed(self, line: str) -> PointResult:
        return PointResult.from_json(line)

    def written(self, record: PointResult) -> str:
        return record.as_json()

    def number(self, record: PointResult) -> int:
        return record.number
