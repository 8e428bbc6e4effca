"""Published numbers and ours: every number has a row, and rows are as close as their kind promises."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import pytest

from hwmodel.config import load_config
from hwmodel.errors import CompileError
from spikec.reproduce.collect import collect_rows
from spikec.reproduce.facts import Kind, Row, load_facts
from spikec.reproduce.networks import TRAINED, Published, time_of, v100_seconds_per_sample
from tests.spikec.command import refusal, result, spikec

CONFIG = load_config("h2learn")


@cache
def rows() -> tuple[Row, ...]:
    return collect_rows(CONFIG, simulated=False)


def main_rows() -> dict[str, Row]:
    """The row of each number at the documented default."""
    return {row.item: row for row in rows() if not row.variant}


def test_every_published_number_has_a_row() -> None:
    assert {row.item for row in rows()} == set(load_facts().by_item)


def test_every_row_says_what_it_rests_on() -> None:
    for row in rows():
        assert row.assumption, row.item
        assert row.ours is not None or row.kind in (Kind.LOST, Kind.GIVEN), row.item


def test_exact_rows_are_equal() -> None:
    exact = [row for row in rows() if row.kind is Kind.EXACT]
    assert len(exact) >= 10
    for row in exact:
        assert row.ours == row.published, row.item


TOLERANCES = {
    "figure-3.12.speedup": 0.02,
    "figure-3.12.energy_saving": 0.05,
    "figure-3.11.forward_area_saving": 0.05,
    "figure-3.11.forward_energy_saving": 0.05,
    "figure-3.11.weight_update_area_saving": 0.05,
    "figure-3.11.weight_update_energy_saving": 0.05,
    "table-3.7.loihi_net_latency": 0.1,
    "table-3.7.loihi_net_energy": 0.1,
    "table-3.7.loihi_speedup": 0.1,
    "table-3.7.loihi_energy_ratio": 0.1,
    "table-3.7.fpga_net_latency": 0.1,
    "table-3.7.fpga_net_energy": 0.1,
    "table-3.7.fpga_speedup": 0.1,
    "table-3.7.fpga_energy_ratio": 0.1,
    "figure-3.15.speedup_low": 0.1,
    "figure-3.15.speedup_high": 0.1,
    "table-3.6.power": 0.15,
    "table-3.6.area": 0.001,
    "table-3.6.area_ratio": 0.001,
}


@pytest.mark.parametrize(("item", "tolerance"), TOLERANCES.items())
def test_numbers_are_as_close_as_they_are_said_to_be(item: str, tolerance: float) -> None:
    ratio = main_rows()[item].ratio
    assert ratio is not None
    assert abs(ratio - 1) <= tolerance


def test_claims_that_hold_and_claims_that_do_not() -> None:
    """The model contradicts print in five claims; it says so."""
    modelled = [row for row in main_rows().values() if row.item.partition("-")[2].startswith("3.")]
    claims = {row.item: row.ours for row in modelled if isinstance(row.published, bool)}
    assert len(claims) == 25
    assert {item for item, holds in claims.items() if not holds} == {
        "figure-3.12.claim_input_only_array",
        "figure-3.12.claim_leakage",
        "figure-3.13.backward_parallelism_halved",
        "figure-3.13.forward_columns_doubled",
        "figure-3.14.claim_energy",
    }
    dense = {row.item for row in rows() if row.variant == "m_write = dense" and not row.ours}
    assert dense == {"figure-3.13.backward_parallelism_halved", "figure-3.13.backward_columns_doubled"}


def test_speedups_are_epoch_latencies_over_ours() -> None:
    """By hand: 138.55 s over 60,000 samples, and cycles of the closed form at 0.8 GHz."""
    facts = load_facts()
    assert v100_seconds_per_sample(facts, "mnist") == 138.55 / 60_000
    time = time_of(facts, "mnist", CONFIG)
    cycles = time.period_cycles + (time.fill_cycles + time.descent_cycles) / 16
    bars = {row.variant: row.ours for row in rows() if row.item == "figure-3.15.bars"}
    assert bars["mnist"] == pytest.approx(138.55 / 60_000 / (cycles / 4 / 0.8e9), rel=1e-12)
    assert set(bars) == set(TRAINED)


def test_densities_are_one_minus_the_sparsities_in_print() -> None:
    densities = Published.of(load_facts(), "cifar10").densities
    assert len(densities) == 5
    assert densities[0].outputs == pytest.approx(1 - 0.5406)
    assert densities[4].inputs == pytest.approx(1 - 0.8439)


def test_one_item_alone() -> None:
    assert {row.item for row in collect_rows(CONFIG, "table-3.6.area")} == {"table-3.6.area"}
    groups = {row.item.rsplit(".", 1)[0] for row in collect_rows(CONFIG, "table-3.7")}
    assert groups == {"table-3.7"}


def test_an_unknown_item_names_the_known_ones() -> None:
    with pytest.raises(CompileError, match="is no published item") as fault:
        collect_rows(CONFIG, "table-9.9")
    assert "table-3.7" in str(fault.value)


def test_the_command_prints_rows_with_stable_keys() -> None:
    found = result("reproduce", "table-3.6")["rows"]
    keys = {"item", "published", "ours", "ratio", "kind", "assumption", "unit", "variant"}
    assert all(set(row) == keys for row in found)
    assert {row["item"] for row in found} >= {"table-3.6.area", "table-3.6.power"}


def test_figures_are_drawn_the_same_twice(tmp_path: Path) -> None:
    for folder in ("one", "two"):
        done = spikec("reproduce", "figure-3.11", "--figures", tmp_path / folder)
        assert done.code == 0, done.err
    one, two = ((tmp_path / folder / "figure-3.11.svg").read_bytes() for folder in ("one", "two"))
    assert one == two
    assert one.startswith(b"<?xml")


def test_a_folder_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    assert "cannot write" in refusal("reproduce", "figure-3.11", "--figures", tmp_path / "file" / "figures")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.slow
def test_simulated_programs_are_slower_than_the_closed_form() -> None:
    """The compiled programs obey buffers and program order; with endless memories they come closer."""
    found = collect_rows(CONFIG, "figure-3.15")
    by_variant = {row.variant: row.ours for row in found if row.item == "figure-3.15.speedup_low"}
    simulated = {name: value for name, value in by_variant.items() if "simulated" in name}
    assert len(simulated) == 3
    in_order, channels, endless = simulated.values()
    assert isinstance(in_order, float)
    assert isinstance(channels, float)
    assert isinstance(endless, float)
    assert in_order < channels < endless
    assert in_order < by_variant[""]  # type: ignore[operator]  # a number
