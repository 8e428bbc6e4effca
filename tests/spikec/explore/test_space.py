"""Axes, points and space files: what a space holds, and one message that names each faulty field."""

from __future__ import annotations

from itertools import product
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hwmodel.config import load_config
from hwmodel.errors import CompileError
from spikec.explore.space import AXES, Axis, Space, configured, default_space, load_space, values_of
from tests.spikec.explore.studies import SIZE, space_file

PRESET = load_config("h2learn")
SMALL = Space(
    axes=(
        Axis(path="forward.rows", values=(32, 64)),
        Axis(path="tile", values=(4, 8, 16)),
        Axis(path="sub_batch", values=(4,)),
    )
)


def test_values_run_through_the_product() -> None:
    paths = [axis.path for axis in SMALL.axes]
    combinations = product(*(axis.values for axis in SMALL.axes))
    assert [SMALL.values(index) for index in range(SMALL.size)] == [
        dict(zip(paths, values, strict=True)) for values in combinations
    ]


def test_a_whole_grid_begins_with_the_base_and_has_it_once() -> None:
    points = SMALL.points(0, 0, PRESET)
    assert [point.number for point in points] == list(range(6))
    assert [point.changes for point in points] == [
        {},
        {"forward.rows": 32, "tile": 4},
        {"forward.rows": 32},
        {"forward.rows": 32, "tile": 16},
        {"tile": 4},
        {"tile": 16},
    ]
    assert SMALL.points(6, 1, PRESET) == points


@given(st.integers(1, 300), st.integers(0, 1 << 32))
def test_a_sample_is_distinct_and_follows_the_seed(count: int, seed: int) -> None:
    space = default_space()
    points = space.points(count, seed, PRESET)
    assert points == space.points(count, seed, PRESET)
    designs = [tuple(point.changes.items()) for point in points]
    assert len(set(designs)) == len(designs)
    assert len(points) in (count, count + 1)  # one fewer where the base itself is drawn
    assert [point.number for point in points] == list(range(len(points)))


def test_another_seed_is_another_sample() -> None:
    assert default_space().points(50, 0, PRESET) != default_space().points(50, 1, PRESET)


def test_the_preset_lies_in_the_default_space() -> None:
    own = values_of(PRESET, tuple(axis.path for axis in default_space().axes))
    assert all(own[axis.path] in axis.values for axis in default_space().axes)


def test_changes_reach_their_fields() -> None:
    config = configured(
        PRESET,
        {
            "forward.rows": 32,
            "forward.sub_luts": 2,
            "weight_update.sub_luts": 8,
            "backward.pe_group": 8,
            "tile": 16,
            "sub_batch": 2,
            "memory.bytes_per_cycle": 80.5,
        },
    )
    assert (config.forward.rows, config.forward.sub_luts, config.forward.lut_entries) == (32, 2, 32)  # 9 taps: 5 and 4
    assert (config.weight_update.lut_entries, config.weight_update.program_cycles) == (2, 0)  # a register for each tap
    assert (config.backward.pe_group, config.backward.id_buffers) == (8, 8)
    assert (config.tile.h, config.tile.w, config.sub_batch, config.memory.bytes_per_cycle) == (16, 16, 2, 80.5)
    assert configured(PRESET, {}) == PRESET
    assert configured(PRESET, {"forward.sub_luts": 2, "forward.lut_entries": 64}).forward.lut_entries == 64


def test_every_axis_can_be_changed() -> None:
    for path in AXES:
        changed = configured(PRESET, {path: 2})
        assert values_of(changed, (path,)) == {path: 2}


def test_a_tile_that_is_no_square_has_a_name() -> None:
    assert values_of(configured(PRESET, {"tile.w": 16}), ("tile",)) == {"tile": "8x16"}


def test_a_file(tmp_path: Path) -> None:
    space = load_space(str(space_file(tmp_path)))
    assert space.size == SIZE
    assert [axis.path for axis in space.axes] == [
        "tile",
        "sub_batch",
        "forward.rows",
        "forward.sub_luts",
        "backward.cols",
        "memory.bytes_per_cycle",
    ]
    assert space.axes[-1].values == (80.5, 160)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[forward]\ndepth = [1]", "forward.depth is no axis"),
        ("rows = [1]", "rows is no axis"),
        ("", "names no axis"),
        ("[forward]\nrows = []", "forward.rows has no values"),
        ("[forward]\nrows = 64", "forward.rows is 64, must be a list of values"),
        ("[forward]\nrows = [32, 'x']", "forward.rows[1] is 'x', must be int"),
        ("[forward]\nrows = [32.0]", "forward.rows[0] is 32.0, must be int"),
        ("[forward]\nrows = [true]", "forward.rows[0] is True, must be int"),
        ("[forward]\nrows = [[32]]", "forward.rows[0] is a list, must be int"),
        ("[forward]\nrows = [0]", "forward.rows[0] is 0, must be positive and at most 9007199254740992"),
        ("sub_batch = [-1]", "sub_batch[0] is -1, must be positive and at most 9007199254740992"),
        ("[memory]\nbytes_per_cycle = ['a']", "memory.bytes_per_cycle[0] is 'a', must be a number"),
        ("[memory]\nbytes_per_cycle = [nan]", "memory.bytes_per_cycle[0] is nan, must be positive"),
        ("[memory]\nbytes_per_cycle = [inf]", "memory.bytes_per_cycle[0] is inf, must be positive"),
        ("[forward]\nrows = [32, 64, 32]", "forward.rows names 32 twice"),
        ("tile = [", "cannot read the space: "),
        ("[forward]\nrows = []\ncols = ['x']", "forward.rows has no values; forward.cols[0] is 'x', must be int"),
    ],
)
def test_a_faulty_file_names_the_field(tmp_path: Path, text: str, message: str) -> None:
    path = space_file(tmp_path, text)
    with pytest.raises(CompileError) as fault:
        load_space(str(path))
    assert str(fault.value).startswith(f"{path}: error: {message}")


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(CompileError, match="cannot read the space: No such file"):
        load_space(str(tmp_path / "none.toml"))


def test_a_space_without_end_is_refused() -> None:
    wide = Space(axes=tuple(Axis(path=path, values=tuple(range(1, 1000))) for path in AXES))
    with pytest.raises(CompileError, match="has more than 9223372036854775807 combinations"):
        wide.points(10, 0, PRESET)
    with pytest.raises(CompileError, match="--points: error: 8,503,056 points are too many\n  hint: --points up to"):
        default_space().points(0, 0, PRESET)


def test_more_sub_luts_than_taps() -> None:
    with pytest.raises(CompileError, match=r"weight_update\.sub_luts is 9, a PE has 8 taps"):
        configured(PRESET, {"weight_update.sub_luts": 9})
