"""Spikes to words and back, over random layers, against NumPy's packbits."""

from __future__ import annotations

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from compiler.fused.spikes.geometry import Geometry
from hwmodel.errors import CompileError
from runtime.fused.spikes.words import count, expand, pack, word_shape
from tests.runtime.fused.spikes.spike_maps import geometries, random_spikes, take, words_of

GROUPED = Geometry(images=2, height=3, width=4, channels=64, out_channels=4, groups=4)  # each group half a word
LARGE = Geometry(images=10, height=32, width=32, channels=64, out_channels=1)  # enough for more than one thread


@settings(max_examples=60)
@given(geometries(), st.floats(0, 1), st.sampled_from([torch.float32, torch.bfloat16]), st.integers(0, 2**16))
@example(GROUPED, 0.4, torch.float32, 0)
def test_words_are_those_of_numpy_and_expand_to_the_spikes(
    geometry: Geometry, density: float, dtype: torch.dtype, seed: int
) -> None:
    spikes = random_spikes(geometry, density, seed)
    words = torch.full(word_shape(geometry), -1, dtype=torch.int32)
    assert pack(geometry, spikes.to(dtype), words, take) == spikes.sum()
    assert torch.equal(words, words_of(geometry, spikes))
    assert count(words, take) == spikes.sum()
    again = torch.full_like(spikes, torch.nan, dtype=dtype)
    expand(geometry, words, again)
    assert torch.equal(again, spikes.to(dtype))


@pytest.mark.parametrize("threads", [1, 2])
def test_a_large_map(threads: int) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        spikes = random_spikes(LARGE, 0.2, seed=3)
        words = torch.full(word_shape(LARGE), -1, dtype=torch.int32)
        assert pack(LARGE, spikes, words, take) == spikes.sum()
        assert torch.equal(words, words_of(LARGE, spikes))
        again = torch.full_like(spikes, torch.nan)
        expand(LARGE, words, again)
        assert torch.equal(again, spikes)
        many = words.repeat(10, 1, 1, 1)
        assert count(many, take) == 10 * spikes.sum()
    finally:
        torch.set_num_threads(before)


def test_other_values_than_spikes_are_refused() -> None:
    geometry = Geometry(images=2, height=3, width=3, channels=5, out_channels=1)
    values = random_spikes(geometry, 0.5, seed=4)
    values[1, 2, 0, 3] = 0.25
    with pytest.raises(CompileError) as refused:
        pack(geometry, values, torch.empty(word_shape(geometry), dtype=torch.int32), take, "hidden")
    assert str(refused.value) == (
        "hidden: error: the input holds values beside 0 and 1, but the network was fused for spikes\n"
        "  hint: fuse it with an example that is real-valued too"
    )


def test_a_linear_layer_has_a_row_of_words_for_each_sample() -> None:
    geometry = Geometry.of_linear(rows=6, features=40, out_features=3)
    spikes = random_spikes(geometry, 0.5, seed=5)
    words = torch.empty(word_shape(geometry), dtype=torch.int32)
    pack(geometry, spikes, words, take)
    assert words.shape == (1, 1, 6, 2)
    assert torch.equal(words, words_of(geometry, spikes))
