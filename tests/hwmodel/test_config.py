"""The configuration: the preset's values, files that change some, and one message that names each faulty field."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import cast

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hwmodel.config import H2LearnConfig, config_from_mapping, load_config
from hwmodel.errors import CompileError, Loc
from hwmodel.isa import Buffer

LOC = Loc("test.toml")
PRESET = {
    "name": "h2learn",
    "clock_ghz": 0.8,
    "sub_batch": 4,
    "timesteps": 10,
    "memory": {"count": 3, "bytes_per_cycle": 160.0, "capacity_bytes": 4 << 30},
    "tile": {"h": 8, "w": 8},
    "forward": {
        "rows": 64,
        "cols": 16,
        "lanes": 4,
        "sub_luts": 3,
        "lut_entries": 8,
        "taps_per_pe": 9,
        "program_cycles": 10,
        "buffers_kb": {
            "s_in": 62.5,
            "w": 37.0,
            "psum": 200.0,
            "s_out": 20.0,
            "mask": 23.0,
            "neuron": 2.0,
            "state": 20.0,
        },
    },
    "backward": {
        "rows": 16,
        "cols": 64,
        "pe_group": 4,
        "id_buffers": 4,
        "pipe": 4,
        "pe_tile_bytes": 400,
        "pe_psum_bytes": 32,
        "skips": "both",
        "synchronise": "tile",
        "run_ahead": 0,
        "shared_columns": 1,
        "buffers_kb": {
            "gm_in": 266.0,
            "w": 36.0,
            "psum": 800.0,
            "s_out": 80.0,
            "mask": 130.0,
            "m": 800.0,
            "neuron": 8.0,
            "state": 80.0,
            "grad": 64.0,
        },
    },
    "weight_update": {
        "rows": 10,
        "cols": 128,
        "lanes": 4,
        "sub_luts": 2,
        "lut_entries": 16,
        "window": 8,
        "program_cycles": 8,
        "buffers_kb": {
            "gm": 320.0,
            "s_in": 62.5,
            "gw_psum": 1153.0,
            "grad": 64.0,
            "weight": 64.0,
            "momentum": 64.0,
        },
    },
    "timing": {
        "m_write": "compressed",
        "spike_halo": "refetched",
        "gradient_halo": "kept",
        "update_memory": "shared",
        "dma_channels": "one",
        "encoding": "apart",
        "batch_group": 16,
    },
}
Table = dict[str, object]


def table() -> Table:
    return load_config("h2learn").as_mapping()


def changed(path: str, value: object) -> Table:
    """The preset's table with one field set."""
    return _edited(table(), path.split("."), value)


def _edited(node: Table, path: list[str], value: object) -> Table:
    inner = _edited(cast(Table, node[path[0]]), path[1:], value) if len(path) > 1 else value
    return {**node, path[0]: inner}


def fields(node: Table, prefix: str = "") -> Iterator[tuple[str, object]]:
    """Every field of the preset with its path."""
    for key, value in node.items():
        if isinstance(value, dict):
            yield from fields(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


FIELDS = dict(fields(PRESET))
INTEGERS = [path for path, value in FIELDS.items() if isinstance(value, int)]
FLOATS = [path for path, value in FIELDS.items() if isinstance(value, float)]
MAY_BE_ZERO = {"forward.program_cycles", "backward.pipe", "weight_update.program_cycles", "backward.run_ahead"}


def refusal(source: Table) -> str:
    with pytest.raises(CompileError) as fault:
        config_from_mapping(source, LOC)
    assert fault.value.loc == LOC
    return fault.value.message


def file(folder: Path, text: str) -> str:
    path = folder / "machine.toml"
    path.write_text(text, encoding="utf-8")
    return str(path)


def test_the_preset_holds_the_printed_values() -> None:
    assert table() == PRESET
    assert config_from_mapping(PRESET, LOC) == load_config("h2learn")


@pytest.mark.parametrize(
    ("buffer", "size"),
    [
        (Buffer.S_IN, 32_000),
        (Buffer.W, 18_944),
        (Buffer.PSUM, 102_400),
        (Buffer.MASK, 11_776),
        (Buffer.BE_IN, 136_192),
        (Buffer.BE_PSUM, 409_600),
        (Buffer.BE_MASK, 66_560),
        (Buffer.BE_M, 409_600),
        (Buffer.BE_STATE, 40_960),
        (Buffer.BE_GRAD, 32_768),
        (Buffer.WU_IN, 32_000),
        (Buffer.WU_GM, 163_840),
        (Buffer.WU_PSUM, 590_336),
        (Buffer.WU_GRAD, 32_768),
        (Buffer.WU_WEIGHT, 32_768),
        (Buffer.WU_MOMENTUM, 32_768),
    ],
)
def test_a_bank_is_half_of_its_buffer(buffer: Buffer, size: int) -> None:
    assert load_config("h2learn").bank_bytes(buffer) == size


def test_every_buffer_has_banks() -> None:
    assert all(load_config("h2learn").bank_bytes(buffer) > 0 for buffer in Buffer)


def test_a_file_states_what_differs_from_its_base(tmp_path: Path) -> None:
    text = 'base = "h2learn"\nname = "slow"\nclock_ghz = 1\n[forward]\nrows = 32\n[forward.buffers_kb]\npsum = 80\n'
    config = load_config(file(tmp_path, text))
    expected = changed("forward.buffers_kb.psum", 80.0)
    expected = _edited(_edited(expected, ["name"], "slow"), ["forward", "rows"], 32) | {"clock_ghz": 1.0}
    assert config.as_mapping() == expected
    assert isinstance(config.clock_ghz, float)


def test_a_file_without_base_must_state_all(tmp_path: Path) -> None:
    with pytest.raises(CompileError) as fault:
        load_config(file(tmp_path, 'name = "mine"\n[tile]\nh = 8\n'))
    parts = fault.value.message.split("; ")
    assert parts == [
        "backward is missing",
        "clock_ghz is missing",
        "forward is missing",
        "memory is missing",
        "sub_batch is missing",
        "tile.w is missing",
        "timesteps is missing",
        "timing is missing",
        "weight_update is missing",
    ]


def test_an_unknown_preset_names_the_known_ones() -> None:
    with pytest.raises(
        CompileError, match=r"no preset 'h3learn'\n  hint: presets: h2learn, h2learn_balanced, or FILE.toml"
    ):
        load_config("h3learn")


@pytest.mark.parametrize("path", FIELDS)
@pytest.mark.parametrize("value", [True, [1], {"a": 1}, 1 << 20_000, -(1 << 20_000)], ids=lambda v: type(v).__name__)
def test_another_type_is_refused(path: str, value: object) -> None:
    message = refusal(changed(path, value))
    assert message.startswith(f"{path} is ")
    assert ";" not in message


@pytest.mark.parametrize("path", INTEGERS + FLOATS)
@pytest.mark.parametrize("value", ["8", ""])
def test_text_is_no_number(path: str, value: str) -> None:
    assert refusal(changed(path, value)).startswith(f"{path} is {value!r}, must be ")


@pytest.mark.parametrize("path", INTEGERS)
@pytest.mark.parametrize("value", [0, -1, 2.0, math.nan])
def test_an_integer_is_at_least_one(path: str, value: float) -> None:
    if path in MAY_BE_ZERO and value == 0:
        assert config_from_mapping(changed(path, 0), LOC)
        return
    least = int(path not in MAY_BE_ZERO)
    wanted = "int" if isinstance(value, float) else f"at least {least}"
    assert refusal(changed(path, value)) == f"{path} is {value!r}, must be {wanted}"


@pytest.mark.parametrize("path", FLOATS)
@pytest.mark.parametrize("value", [0, 0.0, -0.5, -math.inf, math.nan])
def test_a_number_is_positive(path: str, value: float) -> None:
    assert refusal(changed(path, value)) == f"{path} is {value!r}, must be positive"


@pytest.mark.parametrize("path", FLOATS)
@pytest.mark.parametrize("value", [math.inf, 1e300, 10**400], ids=["inf", "1e300", "10**400"])
def test_a_number_is_finite(path: str, value: float) -> None:
    assert refusal(changed(path, value)) == f"{path} is too large, must be finite and at most {1 << 53}"


@pytest.mark.parametrize("path", FIELDS)
def test_a_missing_field_is_refused(path: str) -> None:
    *parents, name = path.split(".")
    source = table()
    node = source
    for parent in parents:
        node = cast(Table, node[parent])
    del node[name]
    assert refusal(source) == f"{path} is missing"


@pytest.mark.parametrize("path", ["colour", "tile.depth", "forward.buffers_kb.s_inn"])
def test_an_unknown_field_is_refused(path: str) -> None:
    assert refusal(changed(path, 1)) == f"{path} is not a field of the configuration"


@pytest.mark.parametrize("path", ["memory", "forward.buffers_kb"])
def test_a_table_may_not_be_a_value(path: str) -> None:
    assert refusal(changed(path, 5)) == f"{path} is 5, must be a table"


def test_all_faults_are_told_at_once() -> None:
    source = _edited(changed("forward.rows", 0), ["memory", "bytes_per_cycle"], 0) | {"colour": 1}
    message = refusal(source)
    assert "forward.rows is 0" in message
    assert "memory.bytes_per_cycle is 0, must be positive" in message
    assert "colour is not a field" in message


BANKS = {
    "forward.buffers_kb.s_in": (0.1, 51, 72),  # 64 channels of 3 x 3 bits
    "forward.buffers_kb.w": (35.9, 18_380, 18_432),  # 64 PEs x 9 taps x 16 columns
    "forward.buffers_kb.psum": (3.9, 1_996, 2_048),  # 8 x 8 x 16 columns
    "forward.buffers_kb.s_out": (0.2, 102, 128),
    "forward.buffers_kb.neuron": (1.0, 512, 576),  # two stages x 9 numbers x 16 columns
    "forward.buffers_kb.state": (3.9, 1_996, 2_048),
    "backward.buffers_kb.psum": (15.9, 8_140, 8_192),
    "backward.buffers_kb.s_out": (0.9, 460, 512),
    "backward.buffers_kb.neuron": (4.0, 2_048, 2_304),
    "backward.buffers_kb.state": (15.9, 8_140, 8_192),
}


@pytest.mark.parametrize("path", BANKS)
def test_a_buffer_smaller_than_a_tile_is_refused(path: str) -> None:
    size_kb, bank, needed = BANKS[path]
    assert refusal(changed(path, size_kb)) == f"{path} gives a bank of {bank} bytes, one tile needs {needed}"


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("forward.rows", 48, "forward.rows is 48, must be a power of two, as the adder tree of a column"),
        ("backward.rows", 12, "backward.rows is 12, must be a power of two, as the adder tree of a column"),
        ("memory.count", 2, "memory.count is 2, the engines use 3"),
        ("forward.taps_per_pe", 10, "forward.sub_luts x lut_entries is 3 x 8, which serves 9 taps of forward.taps"),
        ("forward.lut_entries", 12, "forward.lut_entries is 12, must be a power of two from 2"),
        ("weight_update.sub_luts", 1, "weight_update.sub_luts x lut_entries is 1 x 16, which serves 4 taps"),
    ],
)
def test_sizes_that_the_engines_do_not_have_are_refused(path: str, value: int, message: str) -> None:
    source = changed(path, value)
    if path == "forward.rows":
        source = _edited(source, ["forward", "buffers_kb", "w"], 72.0)
    assert refusal(source).startswith(message)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"shared_columns": 3}, "backward.shared_columns is 3, must divide backward.cols 64"),
        ({"run_ahead": 1}, "backward.pe_psum_bytes is 32, needs 64 for backward.run_ahead 1"),
        (
            {"run_ahead": 2, "pe_psum_bytes": 96},
            "backward.run_ahead is 2, must be at most 1: a PE's tile buffer has two banks",
        ),
        (
            {"run_ahead": 1, "pe_psum_bytes": 64, "synchronise": "iteration"},
            "backward.run_ahead is 1, must be 0 where backward.synchronise is 'iteration'",
        ),
    ],
)
def test_a_balance_that_the_engine_cannot_keep_is_refused(changes: Table, message: str) -> None:
    source = table()
    for name, value in changes.items():
        source = _edited(source, ["backward", name], value)
    assert refusal(source) == message


def test_the_balanced_preset_differs_in_its_backward_engine() -> None:
    source = table() | {"name": "h2learn_balanced"}
    for name, value in {"run_ahead": 1, "shared_columns": 4, "pe_psum_bytes": 64}.items():
        source = _edited(source, ["backward", name], value)
    assert load_config("h2learn_balanced").as_mapping() == source


@pytest.mark.parametrize(("path", "value"), [("forward.rows", 1), ("backward.rows", 64), ("backward.cols", 100)])
def test_sizes_that_the_engines_have_are_taken(path: str, value: int) -> None:
    source = _edited(changed(path, value), ["backward", "buffers_kb", "neuron"], 16.0)
    assert dict(fields(config_from_mapping(source, LOC).as_mapping()))[path] == value


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("rows = = 3", "cannot read the configuration: Invalid value"),
        ("x = " + "9" * 5000, "cannot read the configuration: Exceeds the limit"),
        ("x = " + "[" * 100_000, "cannot read the configuration: maximum recursion depth"),
        ("base = 7", "base is 7, must name a preset"),
        ('base = "other.toml"', "base is 'other.toml', must name a preset"),
        ('base = "nothing"', "no preset 'nothing'"),
        ('base = "h2learn"\nforward = 3', "forward is 3, must be a table"),
        ('base = "h2learn"\n[forward]\nrows = nan', "forward.rows is nan, must be int"),
        ('base = "h2learn"\nclock_ghz = 1e999', "clock_ghz is too large, must be finite"),
        ('base = "h2learn"\nname = 1979-05-27', "name is a date, must be str"),
    ],
)
def test_a_faulty_file_is_refused(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(CompileError) as fault:
        load_config(file(tmp_path, text))
    assert fault.value.message.startswith(message)


def test_a_file_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    (tmp_path / "folder.toml").mkdir()
    (tmp_path / "bytes.toml").write_bytes(b"\xff\xfe\x00")
    for name in ("absent.toml", "folder.toml", "bytes.toml", "nul\0.toml", "x" * 300 + ".toml"):
        with pytest.raises(CompileError, match="cannot read the configuration"):
            load_config(str(tmp_path / name))


VALUES = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3) | st.just(1 << 2000)
TREES = st.recursive(
    VALUES, lambda inner: st.dictionaries(st.sampled_from(["rows", "h", "x"]), inner, max_size=2), max_leaves=3
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(path=st.sampled_from([*FIELDS, "memory", "forward", "tile", "weight_update.buffers_kb"]), value=TREES)
def test_any_value_is_taken_as_it_is_or_refused_by_name(path: str, value: object) -> None:
    source = changed(path, value)
    try:
        config = config_from_mapping(source, LOC)
    except CompileError as fault:
        message = fault.message
    else:
        assert isinstance(config, H2LearnConfig)
        assert config.as_mapping() == source
        assert all(config.bank_bytes(buffer) >= 0 for buffer in Buffer)
        return
    # a tile or an array of another size is refused where it does not fit the buffers
    assert path.rpartition(".")[2] in message or " gives a bank of " in message
