"""Gradient tiles with random masks: what they follow from, their means, and the published speedup."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hwmodel.config import Skips, Synchronise, load_config
from hwmodel.errors import CompileError
from hwmodel.timing.masked_tiles import mask_counts
from hwmodel.timing.sampled_tiles import Density, SampledTiles
from hwmodel.timing.tiles import DenseTiles
from tests.hwmodel.timing.grad_tiles import PRESET, backward, grad_tile

QUARTER = {1: Density(inputs=0.25, outputs=0.25)}
ITERATION = grad_tile(nt=10, nn=4)  # of the preset: 40 tiles
SMALL = grad_tile(h=3, w=5, rows=2, cols=3, nt=2, nn=2)


def test_follows_from_seed_and_position_alone() -> None:
    """Any order of questions has the same answers; another position or seed has others."""
    forwards, backwards, other = (SampledTiles(PRESET, QUARTER, seed) for seed in (3, 3, 4))
    tiles = [ITERATION, SMALL]
    want = [forwards.counts(tiles[position % 2], position) for position in range(20)]
    again = [backwards.counts(tiles[position % 2], position) for position in reversed(range(20))]
    assert want == again[::-1]
    assert len({counts.cycles for counts in want[::2]}) > 5
    assert want != [other.counts(tiles[position % 2], position) for position in range(20)]


@given(seed=st.integers(0, 2**32), layer=st.integers(0, 9), bank=st.integers(0, 1), accumulate=st.booleans())
@settings(max_examples=20)
def test_place_of_the_tile_does_not_matter(seed: int, layer: int, bank: int, accumulate: bool) -> None:
    """Banks, sums and the number of the layer change nothing while the densities are the same."""
    tiles = SampledTiles(PRESET, {1: QUARTER[1], layer: QUARTER[1]}, seed, samples_per_shape=4)
    moved = replace(SMALL, layer=layer, src_bank=bank, dst_bank=bank, accumulate=accumulate)
    assert tiles.counts(moved, 7) == tiles.counts(SMALL, 7)


@pytest.mark.parametrize("synchronise", Synchronise)
@pytest.mark.parametrize("run_ahead", [0, 1])
@pytest.mark.parametrize("shared_columns", [1, 4])
@pytest.mark.parametrize("spread", [None, 4.0])
def test_no_zeros_is_dense(synchronise: Synchronise, run_ahead: int, shared_columns: int, spread: float | None) -> None:
    """Density 1, which has no spread either; 15 outputs of one row each take 4 * 9 cycles by 4 PEs.

    The pipeline fills for each of the 4 tiles, or once where PEs run on. Three columns share nothing among 16 lists.
    """
    config = backward(synchronise=synchronise, run_ahead=run_ahead, shared_columns=shared_columns)
    full = SampledTiles(config, {1: Density(inputs=1.0, outputs=1.0)}, 0, samples_per_shape=4, spread=spread)
    fills = 1 if run_ahead or synchronise is Synchronise.ITERATION else 4
    busy = 9 * (4 if shared_columns == 1 else 1)
    dense = DenseTiles(config).counts(SMALL, 0)
    assert dense.cycles == 4 * busy + fills * config.backward.pipe
    assert full.counts(SMALL, 0) == dense


def test_run_ahead_draws_whole_iterations() -> None:
    """The same draws as by iteration, in as many cycles or more; a tenth fewer than by tile, whose draws are others."""
    engines = [backward(), backward(run_ahead=1), backward(synchronise=Synchronise.ITERATION)]
    by_tile, ahead, by_iteration = (SampledTiles(config, QUARTER, 0).counts(ITERATION, 0) for config in engines)
    assert by_iteration.cycles <= ahead.cycles < 0.9 * by_tile.cycles
    assert replace(ahead, cycles=by_iteration.cycles) == by_iteration


@pytest.mark.parametrize(("synchronise", "fills"), [(Synchronise.TILE, 40), (Synchronise.ITERATION, 1)])
def test_nothing_wanted_fills_pipelines(synchronise: Synchronise, fills: int) -> None:
    empty = SampledTiles(backward(synchronise=synchronise), {1: Density(inputs=0.5, outputs=0.0)}, 0)
    found = empty.counts(ITERATION, 0)
    assert (found.cycles, found.macs, found.outputs, found.pe_cycles) == (4 * fills, 0, 0, 0)


def test_outputs_are_all_wanted_without_their_mask() -> None:
    """The tile says whether outputs are skipped, whatever their density."""
    tile = replace(ITERATION, out_sparsity=False)
    found = SampledTiles(PRESET, QUARTER, 0).counts(tile, 0)
    assert found.outputs == 40 * 64 * 64


@pytest.mark.parametrize("spread", [None, 40.0])
@pytest.mark.parametrize("stride", [1, 2])
def test_means_are_those_of_the_densities(stride: int, spread: float | None) -> None:
    """Pairs: p_in * p_out of the dense ones; outputs: p_out.

    Standard errors: a tile of 1,024 outputs varies by 4 %, with a spread by 8 % more (beta of concentration 40 has a
    deviation of 0.07 a channel, a quarter of that over 16); 4,096 tiles drawn from as many by 1.4 / 64 of it. So
    0.1 % and 0.2 %, of which 6 are allowed.
    """
    density = Density(inputs=0.3, outputs=0.4)
    tile = grad_tile(stride_h=stride, stride_w=stride, nt=64, nn=64, cols=16)
    tiles = SampledTiles(PRESET, {1: density}, 0, samples_per_shape=4096, spread=spread)
    found, dense = tiles.counts(tile, 0), DenseTiles(PRESET).counts(tile, 0)
    tolerance = 0.006 if spread is None else 0.012
    assert found.macs == pytest.approx(0.3 * 0.4 * dense.macs, rel=tolerance)
    assert found.outputs == pytest.approx(0.4 * dense.outputs, rel=tolerance)


@pytest.mark.parametrize("synchronise", Synchronise)
def test_cycles_are_those_of_fresh_masks(synchronise: Synchronise) -> None:
    """The second path draws whole instructions; 6 standard errors of the two means."""
    config = backward(synchronise=synchronise)
    rng = np.random.default_rng(1)
    fresh = []
    for _ in range(24):
        inputs, outputs = rng.random((40, 10, 10, 16)) < 0.25, rng.random((40, 8, 8, 64)) < 0.25
        fresh.append(mask_counts(inputs, outputs, ITERATION, config).cycles)
    tiles = SampledTiles(config, QUARTER, 0, samples_per_shape=1024 if synchronise is Synchronise.TILE else 192)
    drawn = [tiles.counts(ITERATION, position).cycles for position in range(100)]
    error = np.std(fresh, ddof=1) * (1 / 24 + 1 / 24) ** 0.5  # a pool has the tiles of 24 instructions or more
    assert abs(np.mean(fresh) - np.mean(drawn)) < 6 * error


def test_uneven_channels_wait_for_the_fullest() -> None:
    """The same mean density, the more uneven the slower; running on from tile to tile does not help there."""
    cycles = {
        (spread, synchronise): np.mean(
            [
                SampledTiles(backward(synchronise=synchronise), QUARTER, 0, spread=spread).counts(ITERATION, i).cycles
                for i in range(4)
            ]
        )
        for spread in (None, 100.0, 16.0, 4.0)
        for synchronise in Synchronise
    }
    for synchronise in Synchronise:
        by_spread = [cycles[spread, synchronise] for spread in (None, 100.0, 16.0, 4.0)]
        assert by_spread == sorted(by_spread)
    for spread in (None, 100.0, 16.0, 4.0):
        assert cycles[spread, Synchronise.ITERATION] < cycles[spread, Synchronise.TILE]


@pytest.mark.parametrize(
    ("skips", "low", "high"), [(Skips.BOTH, 5.0, 5.4), (Skips.INPUTS, 2.3, 2.6), (Skips.OUTPUTS, 2.2, 2.5)]
)
def test_speedup_inside_a_map(skips: Skips, low: float, high: float) -> None:
    """75 % zeros of either kind: section 3.2.3 prints 5.19 for both, and calls one kind alone similar to the other."""
    tiles = SampledTiles(backward(skips=skips), QUARTER, 0, samples_per_shape=512)
    cycles = np.mean([tiles.counts(ITERATION, position).cycles for position in range(50)])
    assert low < DenseTiles(PRESET).counts(ITERATION, 0).cycles / cycles < high


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: SampledTiles(PRESET, {1: Density(inputs=1.5, outputs=0.5)}, 0), "has densities 1.5 and 0.5"),
        (lambda: SampledTiles(PRESET, {1: Density(inputs=0.5, outputs=float("nan"))}, 0), "0.5 and nan"),
        (lambda: SampledTiles(PRESET, QUARTER, 0, spread=0.0), "the spread is 0.0, must be positive"),
        (lambda: SampledTiles(PRESET, QUARTER, 0, samples_per_shape=0), "0 samples per shape, must be at least 1"),
        (lambda: SampledTiles(PRESET, QUARTER, 0).counts(grad_tile(layer=2), 0), "layer 2 has no densities, .* are 1"),
    ],
)  # fmt: skip
def test_refusals(make: object, message: str) -> None:
    assert callable(make)
    with pytest.raises(CompileError, match=message):
        make()


@pytest.mark.parametrize(("spread", "least"), [(None, 1.8), (16.0, 1.7), (4.0, 1.6)])
def test_pes_of_the_balanced_preset_wait_less(spread: float | None, least: float) -> None:
    """A quarter valid: the same work in a little more than half the cycles, however much channels differ."""
    published, balanced = (
        [SampledTiles(load_config(name), QUARTER, 0, 16, spread).counts(ITERATION, position) for position in range(8)]
        for name in ("h2learn", "h2learn_balanced")
    )
    before, after = (sum(counts.cycles for counts in found) for found in (published, balanced))
    assert before > least * after
    assert sum(counts.pe_cycles for counts in balanced) <= after * 16 * 64 * 4
