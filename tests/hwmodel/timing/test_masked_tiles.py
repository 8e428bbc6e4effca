"""Counts of gradient tiles from their masks, against PEs walked one after the other."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from hwmodel.config import BackwardConfig, H2LearnConfig, Skips, Synchronise
from hwmodel.isa import GradConvTile
from hwmodel.timing.masked_tiles import (
    Mask,
    mask_counts,
    output_groups,
    source_size,
    tile_counts,
    window_sums,
)
from hwmodel.timing.tiles import DenseTiles, TileCounts, run_ahead_cycles
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
        cols=draw(st.integers(1, 5)),
        out_sparsity=draw(st.booleans()),
    )
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    images, region = tile.nt * tile.nn, (draw(st.integers(1, 9)), draw(st.integers(1, 9)))
    inputs, outputs = (
        (rng.random(shape) < draw(st.sampled_from([0.0, 0.1, 0.3, 0.7, 1.0]))).astype(np.uint8)
        for shape in ((images, *region, tile.rows), (images, tile.h, tile.w, tile.cols))
    )
    shared = draw(st.integers(1, 3))
    config = backward(
        cols=shared * draw(st.integers(-(-tile.cols // shared), 6)),
        shared_columns=shared,
        run_ahead=draw(st.integers(0, 3)),
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
    images, group = tile.nt * tile.nn, engine.pe_group * engine.shared_columns
    lists = [output_lists(case, image) for image in range(images)]
    pes = [(r, number, g) for r in range(tile.rows) for number in range(len(lists[0])) for g in range(group)]
    work = [{pe: [0, 0] for pe in pes} for _ in range(images)]  # cycles, pairs
    for image in range(images):
        for number, entries in enumerate(lists[image]):
            for rank, (y, x) in enumerate(entries):
                for r in range(tile.rows):
                    pairs = window(case, image, r, y, x)
                    pe = work[image][r, number, rank % group]
                    pe[0] += max(1, pairs)
                    pe[1] += pairs
    every = [counts for image in work for counts in image.values()]
    return TileCounts(
        cycles=clock([{pe: busy for pe, (busy, _) in image.items()} for image in work], engine),
        macs=sum(pairs for _, pairs in every),
        outputs=sum(len(entries) for image in lists for entries in image),
        pe_cycles=sum(busy for busy, _ in every),
    )


def clock(work: list[dict[tuple[int, int, int], int]], engine: BackwardConfig) -> int:
    """PEs cycle by cycle, until all have done all tiles.

    A PE begins its tile when all others have done those before the last `most`. It fills its pipeline where it could
    not begin at once, at the very first tile, and at each tile where nobody may be ahead.
    """
    most = len(work) if engine.synchronise is Synchronise.ITERATION else engine.run_ahead
    done, left = dict.fromkeys(work[0], 0), dict.fromkeys(work[0], 0)
    waiting = set(work[0])
    stalled = set(work[0])
    now = 0
    while True:
        changed = True
        while changed:
            changed = False
            for pe in work[0]:
                if pe not in waiting and left[pe] == 0:
                    done[pe] += 1
                    waiting.add(pe)
                    changed = True
            for pe in sorted(waiting):
                if done[pe] < len(work) and min(done.values()) >= done[pe] - most:
                    left[pe] = work[done[pe]][pe] + engine.pipe * (pe in stalled or most == 0)
                    waiting.discard(pe)
                    stalled.discard(pe)
                    changed = True
        if min(done.values()) == len(work):
            return now
        stalled |= waiting
        now += 1
        left = {pe: cycles - (pe not in waiting) for pe, cycles in left.items()}


def output_lists(case: Case, image: int) -> list[list[tuple[int, int]]]:
    """The outputs of each list of IDs: of one column, or of those of its place among shared columns."""
    engine, cols = case.config.backward, case.tile.cols
    valid = [valid_outputs(case, image, c) for c in range(cols)]
    lists = min(engine.cols // engine.shared_columns, cols)
    places = [(y, x) for y in range(case.tile.h) for x in range(case.tile.w)]
    return [
        [place for place in places for c in range(number, cols, lists) if place in valid[c]] for number in range(lists)
    ]


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


@given(
    work=st.integers(1, 4).flatmap(
        lambda pes: st.lists(st.lists(st.integers(0, 9), min_size=pes, max_size=pes), min_size=1, max_size=7)
    ),
    most=st.integers(1, 3),
    pipe=st.integers(0, 5),
)
@settings(max_examples=300)
@example(work=[[9, 1], [1, 1], [1, 9]], most=1, pipe=0)  # the third tile is the first that waits
def test_running_ahead_is_that_of_a_clock(work: list[list[int]], most: int, pipe: int) -> None:
    by_name = [{(0, 0, pe): cycles for pe, cycles in enumerate(image)} for image in work]
    want = clock(by_name, backward(run_ahead=most, pipe=pipe).backward)
    assert run_ahead_cycles(np.array(work, np.float64), len(work), most, pipe) == want


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
    dense = replace(case.config, backward=replace(case.config.backward, skips=Skips.NONE))
    want = DenseTiles(dense).counts(case.tile, 0)
    assert mask_counts(case.inputs, case.outputs, case.tile, dense) == want
    assert (
        mask_counts(None, None, case.tile, replace(dense, backward=replace(dense.backward, skips=Skips.BOTH))) == want
    )


@given(case=cases(), skips=st.sampled_from(Skips))
@settings(max_examples=50)
def test_zeros_save_work(case: Case, skips: Skips) -> None:
    """With a stride, neighbours in scan order have unlike windows, and dealing out fewer may be less even."""
    engine = replace(case.config.backward, skips=skips, synchronise=Synchronise.TILE, run_ahead=0)
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


def test_a_pe_runs_ahead_by_hand() -> None:
    """One output, two rows, kernel 1 x 3, four samples; row 0 finds 3, 3, 1, 1 inputs, row 1 finds 1, 1, 3, 3.

    One tile ahead, row 1 does its first two tiles at 4 + 1 + 1, may begin the third when row 0 has done the first at
    4 + 3 = 7, and fills its pipeline: 7 + 4 + 3 + 3 = 17. Row 0 never waits: 4 + 3 + 3 + 1 + 1. By tile it is
    4 * (3 + 4), by iteration 3 + 3 + 1 + 1 + 4.
    """
    tile = grad_tile(kernel_h=1, kernel_w=3, h=1, w=1, top=0, left=2, rows=2, cols=1, nn=4)
    inputs = np.zeros((4, 1, 3, 2), np.uint8)
    inputs[:2, 0, :, 0] = inputs[2:, 0, :, 1] = 1
    inputs[:, 0, 0] = 1
    outputs = np.ones((4, 1, 1, 1), np.uint8)
    ahead, by_tile = (mask_counts(inputs, outputs, tile, backward(run_ahead=most)) for most in (1, 0))
    by_iteration = mask_counts(inputs, outputs, tile, backward(synchronise=Synchronise.ITERATION))
    assert (ahead.cycles, by_tile.cycles, by_iteration.cycles) == (17, 28, 12)
    assert ahead.pe_cycles == by_tile.pe_cycles == 16


def test_shared_columns_by_hand() -> None:
    """Two columns of four outputs, one of them empty: two PEs have two outputs each, shared four PEs have one.

    All inputs are valid, so that an output takes 9 cycles.
    """
    tile = grad_tile(h=2, w=2, rows=1, cols=2)
    inputs, outputs = np.ones((1, 4, 4, 1), np.uint8), np.zeros((1, 2, 2, 2), np.uint8)
    outputs[..., 1] = 1
    own, shared = (
        mask_counts(inputs, outputs, tile, backward(cols=2, pe_group=2, shared_columns=count)) for count in (1, 2)
    )
    assert (own.cycles, shared.cycles) == (2 * 9 + 4, 9 + 4)
    assert replace(own, cycles=shared.cycles) == shared


@given(case=cases())
@settings(max_examples=50)
def test_running_ahead_lies_between_tile_and_iteration(case: Case) -> None:
    """Without a pipeline to fill: the more tiles ahead the fewer cycles, and all tiles ahead is the iteration."""
    engine = replace(case.config.backward, pipe=0, synchronise=Synchronise.TILE)
    tiles = case.tile.nt * case.tile.nn
    engines = [replace(engine, run_ahead=most) for most in range(tiles)]
    engines.append(replace(engine, synchronise=Synchronise.ITERATION))
    cycles = [
        mask_counts(case.inputs, case.outputs, case.tile, replace(case.config, backward=one)).cycles for one in engines
    ]
    assert cycles == sorted(cycles, reverse=True)
    assert cycles[tiles - 1] == cycles[tiles]


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
