"""Area: structure by hand, the published totals and ratios, and how area grows."""

from __future__ import annotations

from dataclasses import astuple, fields, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hwmodel.area import (
    BUFFERS,
    ENGINES,
    adder_count,
    buffer_engine,
    chip_area,
    engine_area,
    glb_bytes,
    has_luts,
    lut_bytes,
    multiplier_count,
    peak_tflops,
)
from hwmodel.baselines import with_partition, with_skips, without_luts
from hwmodel.components import AreaTable, area_table
from hwmodel.config import KIB, H2LearnConfig, Skips, load_config
from hwmodel.isa import Buffer, Queue

CONFIG = load_config("h2learn")
FORWARD_SAVING, UPDATE_SAVING = 2.35, 2.56  # figure 3.11
CHIP_MM2 = 110.46  # table 3.6


def forward(**changes: int) -> H2LearnConfig:
    return replace(CONFIG, forward=replace(CONFIG.forward, **changes))


def test_published_counts_are_exact() -> None:
    """Sections 3.3.1 and 3.3.2: adders without LUTs, sub-LUTs; table 3.6: 27.85 TFLOPS."""
    assert adder_count(without_luts(CONFIG, Queue.FE), Queue.FE) == 36_864
    assert adder_count(without_luts(CONFIG, Queue.WUE), Queue.WUE) == 40_960
    assert lut_bytes(CONFIG, Queue.FE) == 48 * KIB
    assert lut_bytes(CONFIG, Queue.WUE) == 80 * KIB
    assert adder_count(CONFIG, Queue.FE) == 64 * 16 * 3 * 4
    assert adder_count(CONFIG, Queue.WUE) == 10 * 128 * 2 * 4
    assert adder_count(CONFIG, Queue.BE) == 2 * multiplier_count(CONFIG) == 2 * 16 * 64 * 4
    assert peak_tflops(CONFIG) == pytest.approx((12_288 + 10_240 + 3 * 4096) * 0.8e9 / 1e12)
    assert round(peak_tflops(CONFIG), 2) == 27.85


def test_global_buffers_are_those_of_the_configuration() -> None:
    """Each engine's buffers, summed as the tables of the configuration state them."""
    tables = {
        Queue.FE: CONFIG.forward.buffers_kb,
        Queue.BE: CONFIG.backward.buffers_kb,
        Queue.WUE: CONFIG.weight_update.buffers_kb,
    }
    for engine, table in tables.items():
        assert glb_bytes(CONFIG, engine) == sum(astuple(table)) * KIB
        assert len(fields(table)) == len(BUFFERS[engine])
    assert sorted(buffer for buffers in BUFFERS.values() for buffer in buffers) == sorted(Buffer)
    assert buffer_engine(Buffer.PSUM) is Queue.FE
    assert buffer_engine(Buffer.BE_M) is Queue.BE
    assert buffer_engine(Buffer.WU_GM) is Queue.WUE


def test_engines_by_hand() -> None:
    """800 um2 an adder, 960 a multiplier, 20 a register byte, 1.375 a multiplexer bit, 36.18 a PE buffer byte."""
    one = engine_area(CONFIG, Queue.FE)
    assert one.adders == pytest.approx(12_288 * 800e-6)
    assert one.luts == pytest.approx((49_152 * 20 + 1024 * 3 * 4 * 16 * 7 * 1.375) * 1e-6)
    assert one.glb == pytest.approx(glb_bytes(CONFIG, Queue.FE) / KIB / KIB * 1.75)
    assert one.soma == pytest.approx(64 * (2 * 800 + 960) * 1e-6)
    back = engine_area(CONFIG, Queue.BE)
    assert back.multipliers == pytest.approx(4096 * 960e-6)
    assert back.pe_buffers == pytest.approx(4096 * 432 * 36.18e-6)
    assert back.finders == pytest.approx((64 * 4 * 500 + 4096 * 300) * 1e-6)
    assert back.pe_array + back.soma + back.glb == pytest.approx(back.total)


def test_chip_meets_the_published_area() -> None:
    """The residual is fitted, so this only shows that the constant belongs to this structure."""
    assert chip_area(CONFIG).total == pytest.approx(CHIP_MM2, rel=1e-3)
    assert chip_area(CONFIG).total == pytest.approx(sum(chip_area(CONFIG).engine(e).total for e in ENGINES))


def saving(engine: Queue, table: AreaTable) -> float:
    return engine_area(without_luts(CONFIG, engine), engine, table).pe_array / (
        engine_area(CONFIG, engine, table).pe_array
    )


def test_lut_area_savings() -> None:
    """The Forward Engine's fits one constant, the Weight Update Engine's follows within 2 %."""
    assert saving(Queue.FE, area_table()) == pytest.approx(FORWARD_SAVING, rel=1e-3)
    assert saving(Queue.WUE, area_table()) == pytest.approx(UPDATE_SAVING, rel=0.02)


@given(add=st.floats(500, 1200), register=st.floats(10, 30))
def test_second_saving_does_not_hang_on_the_adder(add: float, register: float) -> None:
    """With the multiplexer solved for 2.35 at any adder and register, the other ratio stays within 5 % of 2.56."""
    table = area_table()
    baseline = 36_864 * add + 18 * KIB * register
    multiplexers = 1024 * 3 * 4 * 16 * 7
    mux = (baseline / FORWARD_SAVING - 12_288 * add - 48 * KIB * register) / multiplexers
    table = replace(
        table,
        fp16_add=replace(table.fp16_add, value=add),
        register=replace(table.register, value=register),
        mux_bit=replace(table.mux_bit, value=mux),
    )
    assert saving(Queue.FE, table) == pytest.approx(FORWARD_SAVING)
    assert saving(Queue.WUE, table) == pytest.approx(UPDATE_SAVING, rel=0.05)


@pytest.mark.parametrize("engine", [Queue.FE, Queue.WUE])
def test_without_luts_registers_stand_in_their_place(engine: Queue) -> None:
    baseline = engine_area(without_luts(CONFIG, engine), engine)
    assert (baseline.luts, engine_area(CONFIG, engine).registers) == (0, 0)
    assert baseline.registers == pytest.approx({Queue.FE: 18, Queue.WUE: 20}[engine] * KIB * 20e-6)
    assert not has_luts(without_luts(CONFIG, engine), engine)


def test_backward_engine_has_no_luts_and_a_dense_one_no_finders() -> None:
    with pytest.raises(ValueError, match="has no LUTs"):
        has_luts(CONFIG, Queue.BE)
    dense = engine_area(with_skips(CONFIG, Skips.NONE), Queue.BE)
    assert dense.finders == 0
    assert engine_area(with_skips(CONFIG, Skips.INPUTS), Queue.BE).finders > 0
    assert dense.total == pytest.approx(engine_area(CONFIG, Queue.BE).total - engine_area(CONFIG, Queue.BE).finders)


@given(rows=st.integers(1, 200), cols=st.integers(1, 200), more=st.integers(1, 50))
def test_area_grows_with_the_array(rows: int, cols: int, more: int) -> None:
    small = engine_area(forward(rows=rows, cols=cols), Queue.FE)
    assert engine_area(forward(rows=rows + more, cols=cols), Queue.FE).total > small.total
    assert engine_area(forward(rows=rows, cols=cols + more), Queue.FE).total > small.total
    assert engine_area(forward(rows=2 * rows, cols=cols), Queue.FE).pe_array == pytest.approx(2 * small.pe_array)


@given(lanes=st.integers(1, 16))
def test_lanes_copy_adders_but_not_storage(lanes: int) -> None:
    """Section 3.3.2: registers grow with a slower slope, since lanes only add read ports."""
    one, two = (engine_area(forward(lanes=n), Queue.FE) for n in (lanes, 2 * lanes))
    assert two.adders == pytest.approx(2 * one.adders)
    assert one.luts < two.luts < 2 * one.luts


@pytest.mark.parametrize(
    ("engine", "sub_luts", "adders", "kib"),
    [(Queue.FE, 1, 4096, 1024), (Queue.FE, 5, 20_480, 40), (Queue.WUE, 1, 5120, 640), (Queue.WUE, 4, 20_480, 40)],
)
def test_partitions_trade_adders_for_storage(engine: Queue, sub_luts: int, adders: int, kib: int) -> None:
    one = with_partition(CONFIG, engine, sub_luts)
    assert (adder_count(one, engine), lut_bytes(one, engine)) == (adders, kib * KIB)


def test_shared_columns_cost_their_selectors() -> None:
    """4,096 PEs select among 36 weights instead of 9: 27 x 16 bits of a multiplexer each."""
    preset, balanced = (load_config(name) for name in ("h2learn", "h2learn_balanced"))
    plain = replace(balanced, backward=replace(balanced.backward, shared_columns=1))
    selectors = 4096 * 27 * 16 * area_table().mux_bit.value / 1e6
    assert chip_area(balanced).total - chip_area(plain).total == pytest.approx(selectors, rel=1e-9)
    assert chip_area(preset).total < chip_area(balanced).total < 1.1 * chip_area(preset).total
