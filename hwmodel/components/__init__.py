"""Constants of area, energy and compared designs: one row each with its unit, its source and how it was obtained."""

from __future__ import annotations

import math
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Annotated, TypeVar, cast, get_origin, get_type_hints

from hwmodel.errors import CompileError, Loc


class Kind(StrEnum):
    """How a constant was obtained."""

    LITERATURE = "literature"
    FITTED = "fitted"  # solved for a published number, which the calibration names
    ASSUMED = "assumed"


@dataclass(frozen=True, slots=True, kw_only=True)
class Component:
    """One constant."""

    value: float
    unit: str
    source: str
    kind: Kind


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibration:
    """The published number that a fitted constant was solved for; `target` is its item, such as table-3.6.area."""

    target: str
    value: float
    definition: str


@dataclass(frozen=True, slots=True, kw_only=True)
class AreaTable:
    """Areas at 28 nm."""

    fp16_add: Annotated[Component, "um2"]
    fp16_mul: Annotated[Component, "um2"]
    register: Annotated[Component, "um2/B"]
    mux_bit: Annotated[Component, "um2"]  # of two inputs
    pe_buffer: Annotated[Component, "um2/B"]
    glb: Annotated[Component, "mm2/MiB"]
    output_finder: Annotated[Component, "um2"]
    input_finder: Annotated[Component, "um2"]
    calibration: Mapping[str, Calibration]


@dataclass(frozen=True, slots=True, kw_only=True)
class EnergyTable:
    """Energies of single operations at 28 nm, and leakage."""

    fp16_add: Annotated[Component, "pJ"]
    fp16_mul: Annotated[Component, "pJ"]
    lut_read_per_entry: Annotated[Component, "pJ"]
    lut_write: Annotated[Component, "pJ"]
    pe_buffer_per_mac: Annotated[Component, "pJ"]
    finder_per_id: Annotated[Component, "pJ"]
    glb_read_8k: Annotated[Component, "pJ/B"]
    glb_read_64k: Annotated[Component, "pJ/B"]
    glb_read_256k: Annotated[Component, "pJ/B"]
    glb_read_512k: Annotated[Component, "pJ/B"]
    glb_write_8k: Annotated[Component, "pJ/B"]
    glb_write_64k: Annotated[Component, "pJ/B"]
    glb_write_256k: Annotated[Component, "pJ/B"]
    glb_write_512k: Annotated[Component, "pJ/B"]
    leakage: Annotated[Component, "W/mm2"]
    calibration: Mapping[str, Calibration]


@dataclass(frozen=True, slots=True, kw_only=True)
class SpinalFlowTable:
    """The SpinalFlow-like Forward Engine."""

    pes: Annotated[Component, "PEs"]
    clock: Annotated[Component, "GHz"]
    weight_bytes: Annotated[Component, "B"]
    filter_buffer: Annotated[Component, "KiB"]
    filter_banks: Annotated[Component, "banks"]
    calibration: Mapping[str, Calibration]


Table = TypeVar("Table", AreaTable, EnergyTable, SpinalFlowTable)


@cache
def area_table() -> AreaTable:
    """The areas of the package."""
    return _packaged("area.toml", AreaTable)


@cache
def energy_table() -> EnergyTable:
    """The energies of the package."""
    return _packaged("energy.toml", EnergyTable)


@cache
def spinalflow_table() -> SpinalFlowTable:
    """The compared design of the package."""
    return _packaged("spinalflow.toml", SpinalFlowTable)


def load_components(path: str, kind: type[Table]) -> Table:
    """A table of constants from a TOML file.

    Raises: CompileError with the path of each faulty field, or why the file cannot be read.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, ValueError) as fault:
        reason = fault.strerror if isinstance(fault, OSError) else str(fault)
        raise CompileError(f"cannot read the components: {reason}", Loc(path)) from fault
    return components_from_text(text, kind, Loc(path))


def components_from_text(text: str, kind: type[Table], loc: Loc) -> Table:
    """A table of constants; every row must be there with its unit, and each fitted one with its calibration.

    Raises: CompileError listing each faulty field by its path.
    """
    try:
        tables: dict[str, object] = tomllib.loads(text)
    except (ValueError, RecursionError) as fault:
        raise CompileError(f"cannot read the components: {fault}", loc) from fault
    faults = [f"{key} is not a table of components" for key in tables if key not in ("rows", "calibration")]
    hints = get_type_hints(kind, include_extras=True)
    units = {name: str(hint.__metadata__[0]) for name, hint in hints.items() if get_origin(hint) is Annotated}
    rows = _rows(_table(tables, "rows", faults), units, faults)
    fitted = {name for name, row in rows.items() if row.kind is Kind.FITTED}
    calibration = _calibration(_table(tables, "calibration", faults), fitted, faults)
    if faults:
        raise CompileError("; ".join(faults), loc)
    return kind(**rows, calibration=calibration)


def _packaged(name: str, kind: type[Table]) -> Table:
    source = resources.files("hwmodel") / "components" / name
    return components_from_text(source.read_text(encoding="utf-8"), kind, Loc(f"hwmodel/components/{name}"))


def _table(parent: Mapping[str, object], path: str, faults: list[str]) -> Mapping[str, object]:
    value = parent.get(path.rpartition(".")[2], {})
    if isinstance(value, Mapping):
        return value
    faults.append(f"{path} is {value!r}, must be a table")
    return {}


def _rows(table: Mapping[str, object], units: Mapping[str, str], faults: list[str]) -> dict[str, Component]:
    faults += [f"rows.{name} is not a component" for name in table if name not in units]
    rows: dict[str, Component] = {}
    for name, unit in units.items():
        if name not in table:
            faults.append(f"rows.{name} is missing")
            continue
        before = len(faults)
        path = f"rows.{name}"
        row = _table(table, path, faults)
        if len(faults) == before:
            _check_keys(row, ("value", "unit", "source", "kind"), path, faults)
            _check_number(row, path, faults)
            _check_text(row, f"{path}.source", faults)
            if "unit" in row and row["unit"] != unit:
                faults.append(f"{path}.unit is {row['unit']!r}, must be {unit!r}")
            if "kind" in row and row["kind"] not in list(Kind):
                faults.append(f"{path}.kind is {row['kind']!r}, must be {' or '.join(map(repr, map(str, Kind)))}")
        if len(faults) == before:
            kind, value = Kind(cast(str, row["kind"])), float(cast(float, row["value"]))
            rows[name] = Component(value=value, unit=unit, source=cast(str, row["source"]), kind=kind)
    return rows


def _calibration(table: Mapping[str, object], fitted: set[str], faults: list[str]) -> dict[str, Calibration]:
    faults += [f"calibration.{name} is missing, rows.{name} is fitted" for name in sorted(fitted - set(table))]
    entries: dict[str, Calibration] = {}
    for name in table:
        before = len(faults)
        path = f"calibration.{name}"
        if name not in fitted:
            faults.append(f"{path} does not name a fitted component")
            continue
        entry = _table(table, path, faults)
        if len(faults) == before:
            _check_keys(entry, ("target", "value", "definition"), path, faults)
            _check_number(entry, path, faults)
            _check_text(entry, f"{path}.target", faults)
            _check_text(entry, f"{path}.definition", faults)
        if len(faults) == before:
            entries[name] = Calibration(
                target=cast(str, entry["target"]),
                value=float(cast(float, entry["value"])),
                definition=cast(str, entry["definition"]),
            )
    return entries


def _check_keys(table: Mapping[str, object], known: tuple[str, ...], path: str, faults: list[str]) -> None:
    faults += [f"{path}.{key} is missing" for key in known if key not in table]
    faults += [f"{path}.{key} is not a field" for key in table if key not in known]


def _check_number(table: Mapping[str, object], path: str, faults: list[str]) -> None:
    value = table.get("value")
    if "value" not in table:
        return
    if isinstance(value, bool) or not isinstance(value, int | float):
        faults.append(f"{path}.value is {value!r}, must be a number")
    elif not (value > 0 and math.isfinite(value)):
        faults.append(f"{path}.value is {value!r}, must be positive and finite")


def _check_text(table: Mapping[str, object], path: str, faults: list[str]) -> None:
    key = path.rpartition(".")[2]
    if key in table and not (isinstance(table[key], str) and table[key]):
        faults.append(f"{path} is {table[key]!r}, must be text")
