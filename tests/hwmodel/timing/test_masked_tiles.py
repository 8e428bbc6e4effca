"""Counts of gradient tiles from their masks, against PEs walked one after the other."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from hwmodel.config import H2LearnConfig, Skips, Synchronise
from hwmodel.isa import GradConvTile
from hwmodel.timing.masked_tiles import (
    Mask,
    mask_counts,
    output_groups,
    source_size,
    tile_counts,
    window_sums,
)
from hwmodel.timing.tiles import DenseTiles, TileCounts
from tests.hwmodel.timing.grad_tiles import PRESET, backward, grad_tile


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """A tile with its masks."""

    tile: GradConvTile
    inputs: Mask
    outputs: Mask
    config: H2LearnConfig


@st.composite
def cases(draw: st.DrawFn) -> Case:
    small = st.integers(1, 3)
    tile = grad_tile(
        kernel_h=draw(st.integers(1, 5)),
        kernel_w=draw(st.integers(1, 5)),
        stride_h=draw(st.integers(1, 2)),
        stride_w=draw(st.integers(1, 2)),
        h=draw(st.integers(1, 7)),
        w=draw(st.integers(1, 7)),
        top=draw(st.integers(-2, 6)),
        left=draw(st.integers(-2, 6)),
        nt=draw(small),
        nn=draw(small),
        rows=draw(small),
        cols=draw(small),
        out_sparsity=draw(st.booleans()),
    )
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    images, region = tile.nt * tile.nn, (draw(st.integers(1, 9)), draw(st.integers(1, 9)))
    inputs, outputs = (
        (rng.random(shape) < draw(st.sampled_from([0.0, 0.1, 0.3, 0.7, 1.0]))).astype(np.uint8)
        for shape in ((images, *region, tile.rows), (images, tile.h, tile.w, tile.cols))
    )
    config = backward(
        pe_group=draw(st.integers(1, 5)),
        pipe=draw(st.integers(0, 4)),
        skips=draw(st.sampled_from(Skips)),
        synchronise=draw(st.sampled_from(Synchronise)),
    )
    return Case(tile=tile, inputs=inputs, outputs=outputs, config=config)


# -- PEs walked in plain Python ---------------------------------------------------------------------------------------


def walked(case: Case) -> TileCounts:
    """Every PE of every tile: its outputs by rank, of each the taps of its window."""
    tile, engine = case.tile, case.config.backward
    images, group = tile.nt * tile.nn, engine.pe_group
    work = {
        (image, r, c, g): [0, 0]  # cycles, pairs
        for image in range(images)
        for r in range(tile.rows)
        for c in range(tile.cols)
        for g in range(group)
    }
    found = 0
    for image in range(images):
        for c in range(tile.cols):
            valid = valid_outputs(case, image, c)
            found += len(valid)
            for rank, (y, x) in enumerate(valid):
                for r in range(tile.rows):
                    pairs = window(case, image, r, y, x)
                    pe = work[image, r, c, rank % group]
                    pe[0] += max(1, pairs)
                    pe[1] += pairs
    pes = {key[1:] for key in work}
    if engine.synchronise is Synchronise.TILE:
        slowest = [max(work[image, *pe][0] for pe in pes) + engine.pipe for image in range(images)]
        cycles = sum(slowest)
    else:
        cycles = max(sum(work[image, *pe][0] for image in range(images)) for pe in pes) + engine.pipe
    return TileCounts(
        cycles=cycles,
        macs=sum(pairs for _, pairs in work.values()),
        outputs=found,
        pe_cycles=sum(busy for busy, _ in work.values()),
    )


def valid_outputs(case: Case, image: int, c: int) -> list[tuple[int, int]]:
    skips = case.tile.out_sparsity and case.config.backward.skips in (Skips.BOTH, Skips.OUTPUTS)
    places = [(y, x) for y in range(case.tile.h) for x in range(case.tile.w)]
    return [(y, x) for y, x in places if not skips or case.outputs[image, y, x, c]]


def window(case: Case, image: int, r: int, y: int, x: int) -> int:
    """Taps of an output that count, for one channel of gradients."""
    tile, (_, height, width, _) = case.tile, case.inputs.shape
    skips = case.config.backward.skips in (Skips.BOTH, Skips.INPUTS)
    pairs = 0
    for ky in range(tile.kernel_h):
        for kx in range(tile.kernel_w):
            row, row_left = divmod(y + tile.top - ky, tile.stride_h)
            column, column_left = divmod(x + tile.left - kx, tile.stride_w)
            if row_left or column_left:
                continue
            inside = 0 <= row < height and 0 <= column < width
            pairs += not skips or bool(inside and case.inputs[image, row, column, r])
    return pairs


@given(case=cases())
@settings(max_examples=150)
def test_counts_are_those_of_walked_pes(case: Case) -> None:
    assert mask_counts(case.inputs, case.outputs, case.tile, case.config) == walked(case)


@given(case=cases())
@settings(max_examples=50)
def test_finders_serve_any_number_of_instructions(case: Case) -> None:
    """Booleans count as bytes, and what is known of the masks is not used up."""
    sums = window_sums(case.inputs.astype(np.bool_), case.tile, case.config)
    groups = output_groups(case.outputs.astype(np.bool_), case.tile, case.config)
    want = mask_counts(case.inputs, case.outputs, case.tile, case.config)
    assert [tile_counts(sums, groups, case.tile, case.config) for _ in range(2)] == [want, want]


@given(case=cases())
@settings(max_examples=50)
def test_all_valid_is_dense(case: Case) -> None:
    """Nothing skipped, or masks that are not known."""
    dense = backward(pe_group=case.config.backward.pe_group, skips=Skips.NONE)
    want = DenseTiles(dense).counts(case.tile, 0)
    assert mask_counts(case.inputs, case.outputs, case.tile, dense) == want
    assert (
        mask_counts(None, None, case.tile, replace(dense, backward=replace(dense.backward, skips=Skips.BOTH))) == want
    )


@given(case=cases(), skips=st.sampled_from(Skips))
@settings(max_examples=50)
def test_zeros_save_work(case: Case, skips: Skips) -> None:
    """With a stride, neighbours in scan order have unlike windows, and dealing out fewer may be less even."""
    engine = replace(case.config.backward, skips=skips, synchronise=Synchronise.TILE)
    dense, sparse = (
        mask_counts(case.inputs, case.outputs, case.tile, replace(case.config, backward=replace(engine, skips=mode)))
        for mode in (Skips.NONE, skips)
    )
    assert sparse.macs <= dense.macs
    assert sparse.outputs <= dense.outputs
    assert sparse.pe_cycles <= dense.pe_cycles
    assert sparse.cycles <= dense.cycles or (case.tile.stride_h, case.tile.stride_w) != (1, 1)


# -- by hand ----------------------------------------------------------------------------------------------------------


def test_by_hand() -> None:
    """1 x 4 outputs, one row, one column, kernel 1 x 2: output x sees source x and x + 1 (left = 1).

    Source 1 1 0 0 0: windows find 2, 1, 0, 0. Outputs 1 0 1 1, two buffers: ranks 0, 2 are outputs 0, 3 and rank 1 is
    output 2. PE 0: 2 + max(1, 0) = 3, PE 1: max(1, 0) = 1 cycles; three cycles and the pipe of 4.
    """
    tile = grad_tile(kernel_h=1, kernel_w=2, h=1, w=4, top=0, left=1, rows=1, cols=1)
    inputs = np.array([1, 1, 0, 0, 0], np.uint8).reshape(1, 1, 5, 1)
    outputs = np.array([1, 0, 1, 1], np.uint8).reshape(1, 1, 4, 1)
    found = mask_counts(inputs, outputs, tile, backward(pe_group=2))
    assert found == TileCounts(cycles=3 + 4, macs=2, outputs=3, pe_cycles=3 + 1)


def test_pes_run_on_within_an_iteration() -> None:
    """One output of one column, two rows, kernel 1 x 3: each sample has three valid inputs, all in one row.

    A PE takes 3 cycles for the sample with inputs and 1 for that without. By tile 3 + 4 twice, by iteration 3 + 1 + 4.
    """
    tile = grad_tile(kernel_h=1, kernel_w=3, h=1, w=1, top=0, left=2, rows=2, cols=1, nn=2)
    inputs = np.zeros((2, 1, 3, 2), np.uint8)
    inputs[0, 0, :, 0] = 1
    inputs[1, 0, :, 1] = 1
    outputs = np.ones((2, 1, 1, 1), np.uint8)
    by_tile = mask_counts(inputs, outputs, tile, PRESET)
    by_iteration = mask_counts(inputs, outputs, tile, backward(synchronise=Synchronise.ITERATION))
    assert by_tile.cycles == (3 + 4) + (3 + 4)
    assert by_iteration.cycles == (3 + 1) + 4
    assert by_tile.pe_cycles == by_iteration.pe_cycles == 3 + 1 + 1 + 3


@given(
    size=st.integers(1, 9),
    start=st.integers(0, 9),
    kernel=st.integers(1, 5),
    stride=st.integers(1, 3),
    pad=st.integers(0, 4),
)
@example(size=8, start=8, kernel=3, stride=1, pad=1)
def test_source_size_is_the_region_that_outputs_meet(size: int, start: int, kernel: int, stride: int, pad: int) -> None:
    """Rows from the first to the last that any tap of any output takes, by enumeration."""
    taken = [at + pad - tap for at in range(start, start + size) for tap in range(kernel)]
    rows = [row // stride for row in taken if row % stride == 0]
    assume(rows)
    top = start + pad - stride * min(rows)
    assert source_size(size, top, stride) >= max(rows) - min(rows) + 1
    assert source_size(size, top, stride) == max((start + size - 1 + pad) // stride - min(rows) + 1, 1)


# -- the published speedup --------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_speedup_of_a_layer_with_its_borders() -> None:
    """256 x 256 channels, 56 x 56, 4 samples of 10 steps, 75 % zeros of either kind, independent of each other.

    Section 3.2.3 prints 5.19 for both. The halo at the rim of the map is zeros.
    """
    speedups = layer_speedups(channels=256, extent=56, images=40, density=0.25)
    assert 5.0 < speedups[Skips.BOTH] < 5.4
    assert 2.3 < speedups[Skips.INPUTS] < 2.6
    assert 2.2 < speedups[Skips.OUTPUTS] < 2.5


def layer_speedups(*, channels: int, extent: int, images: int, density: float) -> dict[Skips, float]:
    """Dense cycles over those of each mode, for one layer's gradient."""
    rng = np.random.default_rng(0)
    padded = np.zeros((images, extent + 2, extent + 2, channels), np.bool_)
    padded[:, 1:-1, 1:-1] = rng.random((images, extent, extent, channels), np.float32) < density
    wanted = rng.random((images, extent, extent, channels), np.float32) < density
    configs = {skips: backward(skips=skips) for skips in (Skips.BOTH, Skips.INPUTS, Skips.OUTPUTS)}
    tile = grad_tile(nt=images)
    total, dense = dict.fromkeys(configs, 0.0), 0.0
    for skips, config in configs.items():
        for y in range(0, extent, 8):
            for x in range(0, extent, 8):
                sums = [
                    window_sums(padded[:, y : y + 10, x : x + 10, r : r + 16], tile, config)
                    for r in range(0, channels, 16)
                ]
                for c in range(0, channels, 64):
                    groups = output_groups(wanted[:, y : y + 8, x : x + 8, c : c + 64], tile, config)
                    total[skips] += sum(tile_counts(one, groups, tile, config).cycles for one in sums)
    instructions = (extent // 8) ** 2 * (channels // 16) * (channels // 64)
    dense = instructions * DenseTiles(PRESET).counts(tile, 0).cycles
    return {skips: dense / cycles for skips, cycles in total.items()}
