"""Averages of pooled spikes to planes of words and back, and planes as channels beside each other."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from compiler.fused.spikes.counts import Counts
from hwmodel.errors import CompileError
from runtime.fused.spikes.counts import expand_counts as expand
from runtime.fused.spikes.counts import pack_counts, stacked
from tests.runtime.fused.spikes.spike_maps import take

SHAPE = st.tuples(st.integers(1, 2), st.integers(1, 3), st.integers(1, 4), st.integers(1, 4), st.integers(1, 70))


@settings(max_examples=40)
@given(SHAPE, st.sampled_from([2, 4]), st.integers(0, 2**16))
def test_averages_come_back_exactly(shape: tuple[int, ...], pixels: int, seed: int) -> None:
    counts = Counts(pixels)
    numbers = torch.randint(pixels + 1, shape, generator=torch.Generator().manual_seed(seed))
    words = torch.full((counts.planes, *shape[:-1], -(-shape[-1] // 32)), -1, dtype=torch.int32)
    ones = pack_counts(counts, numbers / pixels, words, take)
    assert ones == tuple(int((numbers >> plane & 1).sum()) for plane in range(counts.planes))
    again = torch.full(shape, torch.nan)
    expand(counts, words, again)
    assert torch.equal(again, numbers / pixels)


@pytest.mark.parametrize("threads", [1, 2])
def test_a_large_map(threads: int) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        counts, shape = Counts(4), (4, 3, 32, 32, 64)
        numbers = torch.randint(5, shape, generator=torch.Generator().manual_seed(1))
        words = torch.empty((3, *shape[:-1], 2), dtype=torch.int32)
        assert sum(n << plane for plane, n in enumerate(pack_counts(counts, numbers / 4, words, take))) == numbers.sum()
        again = torch.full(shape, torch.nan)
        expand(counts, words, again)
        assert torch.equal(again, numbers / 4)
    finally:
        torch.set_num_threads(before)


def test_other_values_than_averages_are_refused() -> None:
    values = torch.zeros(1, 2, 3, 3, 5)
    values[0, 1, 2, 0, 3] = 1 / 3
    with pytest.raises(CompileError) as refused:
        pack_counts(Counts(4), values, torch.empty(3, 1, 2, 3, 3, 1, dtype=torch.int32), take, "pool")
    assert str(refused.value) == (
        "pool: error: the input holds other values than averages of 4 spikes\n  hint: fuse it with spike_kernels='off'"
    )


def test_planes_of_a_group_stand_together() -> None:
    words = torch.arange(3 * 4, dtype=torch.int32).view(3, 1, 1, 1, 1, 4)  # planes, 2 groups of 2 words
    assert stacked(words, groups=2).flatten().tolist() == [0, 1, 4, 5, 8, 9, 2, 3, 6, 7, 10, 11]
    assert stacked(words, groups=2).is_contiguous()
