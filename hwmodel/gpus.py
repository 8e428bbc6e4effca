"""GPUs as predictions of training see them: peaks of the data sheets, and what software is assumed to make of them."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Annotated, get_origin, get_type_hints

from hwmodel.components import Component, Kind


@dataclass(frozen=True, slots=True, kw_only=True)
class Gpu:
    """One device."""

    name: str
    memory_bandwidth: Annotated[Component, "GB/s"]
    l2_bandwidth: Annotated[Component, "GB/s"]
    l2: Annotated[Component, "MiB"]
    memory: Annotated[Component, "GiB"]
    matrix_multiply: Annotated[Component, "TFLOP/s"]  # a multiply-add is two
    convolution: Annotated[Component, "TFLOP/s"]
    convolution_fraction: Annotated[Component, "1"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Software:
    """What is assumed of torch, cuDNN and cuBLAS, alike for every dataflow."""

    bandwidth_fraction: Annotated[Component, "1"]
    matrix_multiply_fraction: Annotated[Component, "1"]
    launch: Annotated[Component, "us"]  # host
    stage: Annotated[Component, "us"]  # host, both directions, with the launches in it
    kernel_floor: Annotated[Component, "us"]  # device
    workspace: Annotated[Component, "MiB"]


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuTable:
    """The devices by their short names, and the software."""

    gpus: Mapping[str, Gpu]
    software: Software


@cache
def gpu_table() -> GpuTable:
    """The devices of the package."""
    text = (resources.files("hwmodel") / "components" / "gpus.toml").read_text(encoding="utf-8")
    tables = tomllib.loads(text)
    gpus = {short: Gpu(name=str(table["name"]), **_components(table, Gpu)) for short, table in tables["gpu"].items()}
    return GpuTable(gpus=gpus, software=Software(**_components(tables["software"], Software)))


def _components(table: Mapping[str, object], kind: type) -> dict[str, Component]:
    """The rows of a table, each with the unit that its field states."""
    hints = get_type_hints(kind, include_extras=True)
    units = {name: str(hint.__metadata__[0]) for name, hint in hints.items() if get_origin(hint) is Annotated}
    assert set(table) - {"name"} == set(units), f"{kind.__name__}: {sorted(set(table) ^ set(units))}"
    return {name: _component(table[name], unit) for name, unit in units.items()}


def _component(row: object, unit: str) -> Component:
    assert isinstance(row, Mapping)
    assert row["unit"] == unit, f"{row} is not in {unit}"
    value = float(row["value"])
    assert value > 0
    return Component(value=value, unit=unit, source=str(row["source"]), kind=Kind(row["kind"]))
