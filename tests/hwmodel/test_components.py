"""Tables of constants: what the package ships, and one message that names each faulty field."""

from __future__ import annotations

import tomllib
from importlib import resources
from pathlib import Path

import pytest

from hwmodel.components import (
    AreaTable,
    Kind,
    SpinalFlowTable,
    area_table,
    components_from_text,
    energy_table,
    load_components,
    spinalflow_table,
)
from hwmodel.errors import CompileError, Loc

LOC = Loc("test.toml")
ROW = 'value = {value}\nunit = "{unit}"\nsource = "a data sheet"\nkind = "{kind}"\n'
UNITS = {"pes": "PEs", "clock": "GHz", "weight_bytes": "B", "filter_buffer": "KiB", "filter_banks": "banks"}
GOOD = "".join(f"[rows.{name}]\n{ROW.format(value=2.0, unit=unit, kind='assumed')}" for name, unit in UNITS.items())
CALIBRATION = '[calibration.pes]\ntarget = "a.b"\nvalue = 1.0\ndefinition = "how"\n'
FITTED = GOOD.replace('kind = "assumed"', 'kind = "fitted"', 1)


def refusal(text: str) -> str:
    with pytest.raises(CompileError) as fault:
        components_from_text(text, SpinalFlowTable, LOC)
    assert fault.value.loc == LOC
    return fault.value.message


def test_a_good_file_loads() -> None:
    table = components_from_text(FITTED + CALIBRATION, SpinalFlowTable, LOC)
    assert table.clock.value == 2.0
    assert table.pes.kind is Kind.FITTED
    assert table.calibration["pes"].target == "a.b"


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("[rows.clock]", "[rows.clocks]", "rows.clocks is not a component; rows.clock is missing"),
        ("value = 2.0", "value = -1.0", "rows.pes.value is -1.0, must be positive and finite"),
        ("value = 2.0", "value = 0", "rows.pes.value is 0, must be positive and finite"),
        ("value = 2.0", "value = nan", "rows.pes.value is nan, must be positive and finite"),
        ("value = 2.0", "value = inf", "rows.pes.value is inf, must be positive and finite"),
        ("value = 2.0", "value = true", "rows.pes.value is True, must be a number"),
        ("value = 2.0", 'value = "2"', "rows.pes.value is '2', must be a number"),
        ("value = 2.0", "", "rows.pes.value is missing"),
        ("value = 2.0", "value = 2.0\nnote = 1", "rows.pes.note is not a field"),
        ('unit = "PEs"', 'unit = "pJ"', "rows.pes.unit is 'pJ', must be 'PEs'"),
        ('source = "a data sheet"', 'source = ""', "rows.pes.source is '', must be text"),
        ('"assumed"', '"guess"', "rows.pes.kind is 'guess', must be 'literature' or 'fitted' or 'assumed'"),
        ('kind = "assumed"', 'kind = "fitted"', "calibration.pes is missing, rows.pes is fitted"),
        ("[rows.pes]", "[more]\n[rows.pes]", "more is not a table of components"),
    ],
)  # fmt: skip
def test_a_faulty_file_is_refused_by_field(old: str, new: str, message: str) -> None:
    assert refusal(GOOD.replace(old, new, 1)) == message


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (GOOD + CALIBRATION, "calibration.pes does not name a fitted component"),
        (FITTED + CALIBRATION.replace("1.0", "nan"), "calibration.pes.value is nan, must be positive and finite"),
        (FITTED + CALIBRATION.replace('target = "a.b"', "target = 3"), "calibration.pes.target is 3, must be text"),
        (FITTED + "[calibration]\npes = 1\n", "calibration.pes is 1, must be a table"),
        ("rows = 3\n", "rows is 3, must be a table; " + "; ".join(f"rows.{name} is missing" for name in UNITS)),
        (GOOD.replace("2.0", "-2.0"), "; ".join(f"rows.{n}.value is -2.0, must be positive and finite" for n in UNITS)),
    ],
)
def test_calibration_and_several_faults(text: str, message: str) -> None:
    assert refusal(text) == message


def test_a_file_that_is_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CompileError, match="cannot read the components: No such file"):
        load_components(str(tmp_path / "none.toml"), AreaTable)
    broken = tmp_path / "broken.toml"
    broken.write_bytes(b"[rows\xff")
    with pytest.raises(CompileError, match="cannot read the components"):
        load_components(str(broken), AreaTable)
    broken.write_text("[rows")
    with pytest.raises(CompileError, match="cannot read the components"):
        load_components(str(broken), AreaTable)


def test_few_constants_are_fitted() -> None:
    """Each fitted constant is one number less that the model predicts."""
    assert set(area_table().calibration) == {"mux_bit", "pe_buffer"}
    assert set(energy_table().calibration) == {"fp16_add", "lut_read_per_entry", "leakage"}
    assert not spinalflow_table().calibration


def test_targets_are_published_numbers() -> None:
    """Each fitted constant names an item of the list that `spikec reproduce` compares, with its value."""
    published = tomllib.loads((resources.files("spikec.reproduce") / "published.toml").read_text(encoding="utf-8"))
    calibrations = [*area_table().calibration.values(), *energy_table().calibration.values()]
    assert len(calibrations) == 5
    for calibration in calibrations:
        group, _, name = calibration.target.rpartition(".")
        assert name in published[group], calibration.target
        assert published[group][name]["value"] == pytest.approx(calibration.value), calibration.target
