"""Buffers derived from the structure: the preset's own at its structure, monotone, and enough for what is compiled."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from compiler.h2learn.compile_training import compile_training
from compiler.losses import Loss
from compiler.passes import FoldBatchNorm
from hwmodel.config import H2LearnConfig, config_from_mapping, load_config
from hwmodel.errors import CompileError, Loc
from hwmodel.isa import ConvTile, GradConvTile, Queue, UpdateTile
from hwmodel.sizing import PATHS, check_room, sized
from spikec.models import load_model

PRESET = load_config("h2learn")
STRUCTURE = {
    "forward.rows": st.sampled_from([1, 2, 16, 64, 256]),
    "forward.cols": st.integers(1, 200),
    "backward.rows": st.sampled_from([1, 4, 16, 32]),
    "backward.cols": st.integers(1, 200),
    "weight_update.rows": st.integers(1, 40),
    "weight_update.cols": st.integers(1, 300),
    "tile.h": st.integers(1, 32),
    "tile.w": st.integers(1, 32),
    "sub_batch": st.integers(1, 32),
}


def changed(base: H2LearnConfig, values: dict[str, int]) -> H2LearnConfig:
    for path, value in values.items():
        part, _, name = path.rpartition(".")
        change: dict[str, Any] = {name: value}
        base = replace(base, **{part: replace(getattr(base, part), **change)} if part else change)
    return base


def sizes(config: H2LearnConfig) -> list[int]:
    backward = config.backward
    return [*map(config.bank_bytes, PATHS), backward.pe_tile_bytes, backward.pe_psum_bytes]


@pytest.mark.parametrize("name", ["h2learn", "h2learn_balanced"])
def test_a_presets_structure_gives_the_preset(name: str) -> None:
    assert sized(load_config(name), 10) == load_config(name)


def test_hand_computed() -> None:
    # 20 steps of 8 samples are 160 maps; 16 x 16 outputs have a source of 18 x 18
    config = sized(changed(PRESET, {"tile.h": 16, "tile.w": 16, "sub_batch": 8, "backward.cols": 32}), 20)
    forward, backward, update = config.forward.buffers_kb, config.backward.buffers_kb, config.weight_update.buffers_kb
    assert forward.s_in == 2 * 64 * 160 * 18 * 18 / 8 / 1024
    assert forward.psum == 2 * 160 * 256 * 16 * 2 * 5 / 4 / 1024
    assert forward.w == 37  # 12 channels of 7 x 7, in 6 pieces each, touch a block of 64 rows: 36.75 KiB
    assert backward.gm_in == 3443  # 2 x 16 x 160 x 18 x 18 x 2.125 = 3,525,120 B = 3,442.5 KiB
    assert backward.neuron == 4  # 2 x 36 x 32 B = 2.25 KiB
    assert update.gm == 2 * 10 * 256 * 128 * 2 / 1024  # ten of the steps at once, one sample
    assert update.gw_psum == PRESET.weight_update.buffers_kb.gw_psum
    assert (config.backward.pe_tile_bytes, config.backward.pe_psum_bytes) == (2 * 18 * 18 * 2, 256 // 4 * 2)


@settings(deadline=None)
@given(st.fixed_dictionaries(STRUCTURE), st.sampled_from(sorted(STRUCTURE)), st.integers(1, 60), st.data())
def test_more_of_anything_needs_no_less(values: dict[str, int], path: str, timesteps: int, data: st.DataObject) -> None:
    small = sized(changed(PRESET, values), timesteps)
    more = data.draw(STRUCTURE[path].filter(lambda value: value >= values[path]))
    large = sized(changed(PRESET, {**values, path: more}), timesteps)
    longer = sized(changed(PRESET, values), timesteps + data.draw(st.integers(0, 20)))
    for other in (large, longer):
        assert all(less <= size for less, size in zip(sizes(small), sizes(other), strict=True))


@given(st.integers(1, 32), st.integers(1, 32), st.integers(1, 20))
def test_a_larger_group_shares_the_sums_of_a_tile(h: int, w: int, group: int) -> None:
    tile = {"tile.h": h, "tile.w": w}
    small, large = (sized(changed(PRESET, {**tile, "backward.pe_group": n}), 10).backward for n in (group, group + 1))
    assert large.pe_psum_bytes <= small.pe_psum_bytes
    assert h * w * 2 <= small.pe_psum_bytes * group < (h * w + group) * 2


def test_running_ahead_takes_another_bank_of_sums() -> None:
    assert sized(changed(PRESET, {"backward.run_ahead": 1}), 10).backward.pe_psum_bytes == 64


@settings(deadline=None)
@given(st.fixed_dictionaries({**STRUCTURE, "backward.pe_group": st.integers(1, 20)}), st.integers(1, 60))
def test_every_size_is_a_sound_configuration(values: dict[str, int], timesteps: int) -> None:
    config = sized(changed(PRESET, values), timesteps)
    assert config_from_mapping(config.as_mapping(), Loc("sized")) == config
    check_room(config, Loc("sized"))
    assert sized(config, timesteps) == config


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"forward.rows": 16, "forward.cols": 4, "backward.cols": 8, "weight_update.cols": 8},
        {"tile.h": 4, "tile.w": 4, "sub_batch": 2, "backward.pe_group": 8},
        {"tile.h": 8, "tile.w": 16, "sub_batch": 8, "backward.rows": 4, "weight_update.rows": 4},
    ],
)
def test_the_compiler_cuts_nothing(values: dict[str, int]) -> None:
    """Each grid iteration holds whole tiles of all samples and steps, and all rows and columns."""
    timesteps = 6
    config = sized(changed(PRESET, values), timesteps)
    graph = FoldBatchNorm()(load_model("zoo:digits-conv", timesteps=timesteps).graph)  # 1 to 16 to 32 channels, 8 x 8
    program = compile_training(graph, config, loss=Loss.MSE).program
    by_queue = [
        (queue, step) for streams in program.phases.values() for queue, steps in streams.items() for step in steps
    ]
    h, w = min(8, config.tile.h), min(8, config.tile.w)
    forward = {(s.nt, s.nn, s.h, s.w, s.rows, s.cols) for q, s in by_queue if q is Queue.FE and isinstance(s, ConvTile)}
    images = (timesteps, config.sub_batch, h, w)
    assert forward == {(*images, min(16, config.forward.rows), min(32, config.forward.cols))}
    backward = {(s.nt, s.nn, s.h, s.w, s.rows, s.cols) for _, s in by_queue if isinstance(s, GradConvTile)}
    assert backward == {(*images, min(32, config.backward.rows), min(16, config.backward.cols))}
    updates = {(s.h, s.w, s.channels, s.cols) for _, s in by_queue if isinstance(s, UpdateTile)}
    assert updates == {(h, w, 16, min(32, config.weight_update.cols))}
    steps = {s.nt for _, s in by_queue if isinstance(s, UpdateTile)}
    assert max(steps) == min(timesteps, config.weight_update.rows)


def test_room_names_each_field_that_is_too_small() -> None:
    backward = replace(PRESET.backward, pe_tile_bytes=399, pe_psum_bytes=31)
    backward = replace(backward, buffers_kb=replace(backward.buffers_kb, gm_in=1.0))
    update = replace(PRESET.weight_update, buffers_kb=replace(PRESET.weight_update.buffers_kb, gm=1.0))
    with pytest.raises(CompileError) as fault:
        check_room(replace(PRESET, backward=backward, weight_update=update), Loc("small.toml"))
    assert str(fault.value) == (
        "small.toml: error: "
        "backward.buffers_kb.gm_in gives a bank of 512 bytes, one tile needs 3400; "  # 16 x 100 x 2.125
        "weight_update.buffers_kb.gm gives a bank of 512 bytes, one tile needs 16384; "  # 64 x 128 x 2
        "backward.pe_tile_bytes is 399, one tile needs 400; "
        "backward.pe_psum_bytes is 31, one tile needs 32\n"
        "  hint: a smaller tile, fewer rows or columns, or larger buffers"
    )


def test_paths_are_fields() -> None:
    for buffer, path in PATHS.items():
        place: object = PRESET
        for name in path.split("."):
            place = getattr(place, name)
        assert isinstance(place, float)
        assert PRESET.bank_bytes(buffer) == int(place * 512)
    assert len(set(PATHS.values())) == len(PATHS)
