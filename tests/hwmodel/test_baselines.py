"""Designs that H2Learn is compared with: valid configurations, and a SpinalFlow-like engine counted spike by spike."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hwmodel.baselines import (
    FORWARD_PARTITIONS,
    UPDATE_PARTITIONS,
    ConvFacts,
    SpinalFlow,
    spinalflow_layer,
    with_partition,
    with_skips,
    without_luts,
)
from hwmodel.config import H2LearnConfig, Skips, config_from_mapping, load_config
from hwmodel.engine_study import forward_work, lut_partitions
from hwmodel.errors import Loc
from hwmodel.isa import Queue

CONFIG = load_config("h2learn")
STUDY = ConvFacts(batch=4, c_in=256, c_out=256, out_h=56, out_w=56, kernel_h=3, kernel_w=3)


def reloaded(config: H2LearnConfig) -> H2LearnConfig:
    """Through the checks of a configuration file."""
    return config_from_mapping(config.as_mapping(), Loc("baseline"))


@pytest.mark.parametrize(("sub_luts", "entries"), [(1, 512), (2, 32), (3, 8), (5, 4), (9, 2)])
def test_forward_partitions(sub_luts: int, entries: int) -> None:
    one = with_partition(CONFIG, Queue.FE, sub_luts)
    assert (one.forward.sub_luts, one.forward.lut_entries) == (sub_luts, entries)
    assert one.weight_update == CONFIG.weight_update
    assert reloaded(one) == one
    assert sub_luts in FORWARD_PARTITIONS


@pytest.mark.parametrize(("sub_luts", "entries"), [(1, 256), (2, 16), (4, 4), (8, 2)])
def test_update_partitions(sub_luts: int, entries: int) -> None:
    one = with_partition(CONFIG, Queue.WUE, sub_luts)
    assert (one.weight_update.sub_luts, one.weight_update.lut_entries) == (sub_luts, entries)
    assert one.forward == CONFIG.forward
    assert reloaded(one) == one
    assert sub_luts in UPDATE_PARTITIONS


def test_the_preset_is_one_of_the_partitions() -> None:
    assert with_partition(CONFIG, Queue.FE, 3) == CONFIG
    assert with_partition(CONFIG, Queue.WUE, 2) == CONFIG


def test_without_luts_is_the_finest_partition() -> None:
    """Nothing is programmed: 2,038,400 cycles of 650 a grid iteration lose ten each."""
    baseline = without_luts(CONFIG, Queue.FE)
    assert baseline == with_partition(CONFIG, Queue.FE, 9)
    assert baseline.forward.program_cycles == 0
    assert forward_work(CONFIG).cycles - forward_work(baseline).cycles == 4 * 16 * 49 * 10


@pytest.mark.parametrize("sub_luts", [0, 10])
def test_impossible_partitions(sub_luts: int) -> None:
    with pytest.raises(ValueError, match=f"{sub_luts} sub-LUTs, a PE of fe has 9 taps"):
        with_partition(CONFIG, Queue.FE, sub_luts)
    with pytest.raises(ValueError, match="be has no LUTs"):
        without_luts(CONFIG, Queue.BE)


@pytest.mark.parametrize("skips", list(Skips))
def test_skips(skips: Skips) -> None:
    one = with_skips(CONFIG, skips)
    assert one.backward.skips is skips
    assert with_skips(one, CONFIG.backward.skips) == CONFIG
    assert reloaded(one) == one


def test_spinalflow_spike_by_spike() -> None:
    """A small layer: for every output position and spike in its window a cycle for each 128 output channels."""
    rng = np.random.default_rng(3)
    steps, batch, c_in, size, kernel, c_out = 3, 2, 5, 6, 3, 200
    spikes = rng.random((steps, batch, c_in, size, size)) < 0.3
    out = size - kernel + 1
    windows = np.lib.stride_tricks.sliding_window_view(spikes, (kernel, kernel), axis=(3, 4))
    in_windows = int(windows.sum())
    layer = ConvFacts(batch=batch, c_in=c_in, c_out=c_out, out_h=out, out_w=out, kernel_h=kernel, kernel_w=kernel)
    got = spinalflow_layer(layer, SpinalFlow.of(), in_windows / windows.size, steps)
    assert got.cycles == pytest.approx(in_windows * 2)
    assert got.adds == pytest.approx(in_windows * c_out)
    assert got.weight_bytes_read == pytest.approx(in_windows * 2 * 128 * 2)
    assert got.on_chip_weight_bytes == 9 * c_in * 128 * 2
    assert layer.macs == batch * out * out * c_out * 9 * c_in


def test_spinalflow_keeps_the_weights_of_all_its_channels() -> None:
    """512 input channels in FP16 take 1.2 MB, more than the original buffer."""
    wide = ConvFacts(batch=1, c_in=512, c_out=512, out_h=4, out_w=4, kernel_h=3, kernel_w=3)
    got = spinalflow_layer(wide, SpinalFlow.of(), 0.1, 10)
    assert got.on_chip_weight_bytes == 1_179_648
    assert not got.fits
    assert spinalflow_layer(STUDY, SpinalFlow.of(), 0.1, 10).fits


@given(rate=st.floats(0, 0.5))
def test_spinalflow_costs_grow_with_spikes(rate: float) -> None:
    one, two = (spinalflow_layer(STUDY, SpinalFlow.of(), r, 10) for r in (rate, 2 * rate))
    assert two.cycles == pytest.approx(2 * one.cycles)
    assert two.energy_pj == pytest.approx(2 * one.energy_pj)
    assert two.area_mm2 == one.area_mm2


def test_h2learn_against_spinalflow() -> None:
    """For its throughput H2Learn's PE array is smaller; its energy is below SpinalFlow's from a rate of 1/8."""
    ours = lut_partitions(CONFIG, Queue.FE)[2]
    seconds = forward_work(CONFIG).cycles / 0.8e9
    sparse, dense = (spinalflow_layer(STUDY, SpinalFlow.of(), rate, 10) for rate in (0.11, 0.14))
    assert sparse.energy_pj < ours.energy_mj * 1e9 < dense.energy_pj
    assert ours.area_mm2 * seconds < sparse.area_mm2 * sparse.seconds


@pytest.mark.parametrize("rate", [-0.1, 1.1, float("nan")])
def test_impossible_rates(rate: float) -> None:
    with pytest.raises(ValueError, match="not inside"):
        spinalflow_layer(STUDY, SpinalFlow.of(), rate, 10)
