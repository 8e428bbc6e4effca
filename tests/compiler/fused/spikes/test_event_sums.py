"""How sums of rows are cut. The sums themselves are compared with torch's layers where the runtime calls them."""

from __future__ import annotations

import itertools

import pytest

from compiler.fused.spikes.event_sums import chunk_channels, most_chunked, row_vectors, slot, slots


@pytest.mark.parametrize(
    ("channels", "lanes", "want"),
    [(10, 16, 1), (64, 16, 4), (96, 16, 6), (112, 16, 4), (160, 16, 5), (512, 16, 4), (64, 8, 8), (5, 8, 1)],
)
def test_row_vectors(channels: int, lanes: int, want: int) -> None:
    """112 channels are 7 vectors: two blocks of 4, not seven of 1."""
    assert row_vectors(channels, lanes) == want


@pytest.mark.parametrize("channels", [1, 32, 33, 100, 512, 3000])
@pytest.mark.parametrize("density", [0.0, 0.01, 0.1, 0.5, 1.0])
def test_chunks_are_whole_words_and_cover_the_channels(channels: int, density: float) -> None:
    chunk = chunk_channels(channels, 3, density)
    words = -(-channels // 32)
    assert chunk % 32 == 0
    assert 32 <= chunk <= words * 32
    assert -(-channels // chunk) * chunk - channels < chunk


@pytest.mark.parametrize("channels", [1, 33, 100, 512, 1120])
def test_memory_for_the_most_serves_every_density(channels: int) -> None:
    for density in (0.0, 0.005, 0.01, 0.02, 0.05, 0.1, 0.3, 1.0):
        chunk = chunk_channels(channels, 3, density)
        chunks = -(-channels // chunk)
        assert chunks * chunk <= most_chunked(channels, 32 * -(-channels // 32))
        assert chunks * min(chunk, channels) <= most_chunked(channels, channels)


def test_chunk_depends_on_density() -> None:
    """Three columns of 128 channels at 10 % hold 38 events; of 512 channels at 2 % 31."""
    assert chunk_channels(512, 3, 0.1) == 128
    assert chunk_channels(512, 3, 0.02) == 512
    assert chunk_channels(512, 3, 0.9) == 32


@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("kernel", [1, 2, 3, 5, 7])
def test_slots_follow_the_outputs_that_meet_an_input(kernel: int, stride: int) -> None:
    """Input x meets output o by column x - o * stride; with o rising by 1, so must the slot."""
    columns = [slot(column, kernel, stride) for column in range(kernel)]
    assert len(set(columns)) == kernel
    assert 0 <= min(columns) <= max(columns) < slots(kernel, stride)
    for x in range(kernel, kernel + stride):
        met = [columns[x - o * stride] for o in range(x + 1) if 0 <= x - o * stride < kernel]
        assert all(after == before + 1 for before, after in itertools.pairwise(met))
