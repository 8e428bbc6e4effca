"""Program files: what is saved comes back, and a damaged or foreign file is refused, never half-read."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.numpy import save

from hwmodel.checker import check
from hwmodel.errors import CompileError
from hwmodel.isa import Halt
from hwmodel.program import Program
from hwmodel.program_file import load_program, save_program
from tests.hwmodel.programs import deep_program, linear_program

KEY = "spikec.h2l"
NOT_WHOLE = "is not an .h2l file: "
Arrays = dict[str, npt.NDArray[np.generic]]
Json = Any  # a parsed header, changed by a test
FILE_PER_EXAMPLE = [HealthCheck.function_scoped_fixture]


def assert_equal(left: Program, right: Program) -> None:
    assert left.constants.keys() == right.constants.keys()
    for name, values in left.constants.items():
        assert values.shape == right.constants[name].shape
        assert values.tobytes() == right.constants[name].tobytes()
    for field in fields(Program):
        if field.name != "constants":
            assert getattr(left, field.name) == getattr(right, field.name), field.name


def saved(program: Program, folder: Path) -> Path:
    path = folder / "program.h2l"
    save_program(program, path)
    return path


def content(path: Path) -> tuple[Json, Arrays]:
    with safe_open(path, "numpy") as file:
        return json.loads(file.metadata()[KEY]), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


def write(path: Path, header: Json, arrays: Arrays) -> Path:
    path.write_bytes(save(arrays, {KEY: header if isinstance(header, str) else json.dumps(header)}))
    return path


def refusal(path: Path) -> str:
    with pytest.raises(CompileError) as fault:
        load_program(path)
    assert fault.value.loc.file == str(path)
    return fault.value.message


def is_sound(path: Path) -> bool:
    """Whether a file loads and passes the checker; anything but a CompileError is a failure of the test."""
    try:
        check(load_program(path))
    except CompileError:
        return False
    return True


@pytest.mark.parametrize("make", [linear_program, deep_program])
def test_what_is_saved_comes_back(make: Callable[[], Program], tmp_path: Path) -> None:
    program = make()
    path = saved(program, tmp_path)
    assert os.listdir(tmp_path) == ["program.h2l"]
    loaded = load_program(path)
    assert_equal(loaded, program)
    check(loaded)
    other = tmp_path / "again.h2l"
    save_program(loaded, other)
    assert other.read_bytes() == path.read_bytes()


def test_the_same_program_gives_the_same_bytes(tmp_path: Path) -> None:
    # safetensors writes several metadata keys in random order: eight files would agree by chance 1 time in 128
    files = [saved(linear_program(), tmp_path).read_bytes() for _ in range(8)]
    assert len(set(files)) == 1


def test_meta_and_special_names_come_back(tmp_path: Path) -> None:
    program = replace(linear_program(), name='Zürich "7"\n\\', meta={"graph": "", "ключ": "値"})
    assert_equal(load_program(saved(program, tmp_path)), program)


def test_saving_replaces_a_file_whole(tmp_path: Path) -> None:
    path = tmp_path / "program.h2l"
    path.write_bytes(b"old")
    assert_equal(load_program(saved(linear_program(), tmp_path)), linear_program())


@pytest.mark.parametrize(
    "target",
    ["absent/program.h2l", "file/program.h2l", "folder", "nul\0.h2l", "x" * 300 + ".h2l", "..", "folder/.."],
)
def test_a_target_that_cannot_be_written_is_refused(tmp_path: Path, target: str) -> None:
    (tmp_path / "file").write_bytes(b"kept")
    (tmp_path / "folder").mkdir()
    with pytest.raises(CompileError, match=r"cannot be written: |is a folder or device"):
        save_program(linear_program(), tmp_path / target)
    assert sorted(os.listdir(tmp_path)) == ["file", "folder"]
    assert os.listdir(tmp_path / "folder") == []
    assert (tmp_path / "file").read_bytes() == b"kept"


def test_a_disk_that_fills_up_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(path: Path, data: bytes) -> int:
        with path.open("wb") as file:
            file.write(data[:100])
        raise OSError(28, "No space left on device")

    kept = saved(linear_program(), tmp_path).read_bytes()
    monkeypatch.setattr(Path, "write_bytes", fail)
    with pytest.raises(CompileError, match="cannot be written: No space left on device"):
        saved(deep_program(), tmp_path)
    assert os.listdir(tmp_path) == ["program.h2l"]
    assert (tmp_path / "program.h2l").read_bytes() == kept


@pytest.mark.skipif(os.geteuid() == 0, reason="the superuser may write to any folder")
def test_a_read_only_folder_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir(mode=0o500)
    with pytest.raises(CompileError, match="cannot be written: Permission denied"):
        saved(linear_program(), folder)
    assert os.listdir(folder) == []


def test_a_value_that_no_field_holds_is_refused_before_writing(tmp_path: Path) -> None:
    program = linear_program()
    streams = {queue: (*stream[:-1], Halt(layer=1024)) for queue, stream in program.streams.items()}
    with pytest.raises(CompileError, match="halt: layer is 1024, its field holds 0 to 1023"):
        saved(replace(program, streams=streams), tmp_path)
    assert os.listdir(tmp_path) == []


def test_a_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    for name in ("absent.h2l", "absent/program.h2l", "nul\0.h2l", "x" * 300):
        assert refusal(tmp_path / name).startswith("cannot read the program: ")
    assert refusal(tmp_path) == "is a folder, not a program"


def test_a_truncated_file_is_refused(tmp_path: Path) -> None:
    path = saved(linear_program(), tmp_path)
    whole = path.read_bytes()
    header = 8 + int.from_bytes(whole[:8], "little")
    for size in [*range(12), *range(12, len(whole), 97), header - 1, header, header + 1, len(whole) - 1]:
        path.write_bytes(whole[:size])
        assert refusal(path).startswith(NOT_WHOLE)


def test_surplus_bytes_are_refused(tmp_path: Path) -> None:
    path = saved(linear_program(), tmp_path)
    path.write_bytes(path.read_bytes() + b"\0")
    assert refusal(path).startswith(NOT_WHOLE)


@settings(max_examples=60, deadline=None, suppress_health_check=FILE_PER_EXAMPLE)
@given(st.binary(max_size=200))
def test_random_bytes_are_refused(tmp_path: Path, noise: bytes) -> None:
    path = tmp_path / "program.h2l"
    for text in (noise, len(noise).to_bytes(8, "little") + noise):
        path.write_bytes(text)
        assert refusal(path).startswith((NOT_WHOLE, "is no H2Learn program"))


@pytest.fixture(scope="module")
def linear_bytes(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The content of a small file."""
    return saved(linear_program(), tmp_path_factory.mktemp("linear")).read_bytes()


@settings(max_examples=250, deadline=None, suppress_health_check=FILE_PER_EXAMPLE)
@given(data=st.data())
def test_flipped_bits_are_refused_or_harmless(tmp_path: Path, linear_bytes: bytes, data: st.DataObject) -> None:
    path = tmp_path / "damaged.h2l"
    damaged = bytearray(linear_bytes)
    for bit in data.draw(st.lists(st.integers(0, 8 * len(damaged) - 1), min_size=1, max_size=3, unique=True)):
        damaged[bit // 8] ^= 1 << bit % 8
    path.write_bytes(damaged)
    is_sound(path)


@pytest.fixture(scope="module")
def deep_parts(tmp_path_factory: pytest.TempPathFactory) -> tuple[Json, Arrays]:
    """Header and arrays of the larger program."""
    return content(saved(deep_program(), tmp_path_factory.mktemp("deep")))


@settings(max_examples=100, deadline=None, suppress_health_check=FILE_PER_EXAMPLE)
@given(data=st.data())
def test_flipped_bits_of_instructions_are_refused_or_harmless(
    tmp_path: Path, deep_parts: tuple[Json, Arrays], data: st.DataObject
) -> None:
    header, arrays = deep_parts
    name = data.draw(st.sampled_from([name for name in arrays if name.startswith("stream.")]))
    words = arrays[name].copy()
    row = data.draw(st.integers(0, len(words) - 1))
    for bit in data.draw(st.lists(st.integers(0, 224), min_size=1, max_size=2, unique=True)):
        words[row, bit // 8] ^= 1 << bit % 8
    is_sound(write(tmp_path / "damaged.h2l", header, arrays | {name: words}))


def test_a_foreign_safetensors_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    for metadata in (None, {}, {"format": "pt"}):
        path.write_bytes(save({"weight": np.zeros((2, 2), np.float32)}, metadata))
        with pytest.raises(CompileError, match=r"is no H2Learn program\n  hint: make one with: spikec compile"):
            load_program(path)


@pytest.fixture
def parts(tmp_path: Path) -> tuple[Json, Arrays]:
    """Header and arrays of a valid file."""
    return content(saved(linear_program(), tmp_path))


@pytest.mark.parametrize("version", ["0", "2", "4", 3, None])
def test_another_version_is_refused(tmp_path: Path, parts: tuple[Json, Arrays], version: object) -> None:
    path = write(tmp_path / "other.h2l", parts[0] | {"version": version}, parts[1])
    assert refusal(path) == f"format version {version!r}, this spikec reads 3"


@pytest.mark.parametrize(
    "header", ["", "7", "null", "[]", "{", '{"version": "3"}', "[" * 100_000, "9" * 5000, '"\\ud800"', "NaN"]
)
def test_a_header_that_is_none_is_refused(tmp_path: Path, parts: tuple[Json, Arrays], header: str) -> None:
    assert refusal(write(tmp_path / "other.h2l", header, parts[1])).startswith("the program's header is inconsistent")


def edited(node: Json, path: tuple[str | int, ...], value: object) -> Json:
    """A copy of a header with one value set."""
    copy = node.copy()
    copy[path[0]] = edited(node[path[0]], path[1:], value) if len(path) > 1 else value
    return copy


def places(node: Json, path: tuple[str | int, ...] = ()) -> list[tuple[str | int, ...]]:
    """Every value of a header, the tables and lists among them."""
    items = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    return [path for path in [path] if path] + [p for key, value in items for p in places(value, (*path, key))]


JSON_VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-2, 40)
    | st.sampled_from([1 << 31, 1 << 63, 1 << 64, 10**30, -(10**30), 0.5, 1e300, "", "fp16", "s1", "input", "\ud800"]),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.sampled_from(["name", "shape"]), inner, max_size=2),
    max_leaves=5,
)


@settings(max_examples=250, deadline=None, suppress_health_check=FILE_PER_EXAMPLE)
@given(data=st.data(), value=JSON_VALUES)
def test_a_wild_header_value_is_refused_or_harmless(
    tmp_path: Path, parts: tuple[Json, Arrays], data: st.DataObject, value: object
) -> None:
    header, arrays = parts
    place = data.draw(st.sampled_from(places(header)))
    path = write(tmp_path / "other.h2l", edited(header, place, value), arrays)
    if is_sound(path):
        assert save_and_load(load_program(path), tmp_path)


def save_and_load(program: Program, folder: Path) -> bool:
    """A program that was taken must be one that can be written too."""
    assert_equal(load_program(saved(program, folder)), program)
    return True


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        (("timesteps",), 0, "a count of 0"),
        (("timesteps",), True, "True is no natural number"),
        (("timesteps",), 4, "does not fit tensor (3, 2, 1, 1, 5)"),
        (("batch",), 3, "does not fit tensor (3, 2, 1, 1, 5)"),
        (("name",), 7, "7 is no text"),
        (("name",), "\ud800", "surrogates not allowed"),
        (("meta",), {"graph": 7}, "7 is no text"),
        (("config", "forward", "rows"), 0, "forward.rows is 0, must be at least 1"),
        (("config", "clock_ghz"), float("nan"), "clock_ghz is nan, must be positive"),
        (("tensors", 0, "colour"), 1, "Tensor has no fields ['colour']"),
        (("tensors", 0, "role"), "secret", "'secret' is not a valid Role"),
        (("tensors", 0, "role"), "output", "needs one input and one output tensor"),
        (("tensors", 0, "shape"), [1, 2, 3], "tensor shape (1, 2, 3)"),
        (("tensors", 1, "name"), "input", "two tensors have the same name"),
        (("tensors", 2, "name"), "other", "constants ['0.weights', 'other'] do not match the table"),
        (("tensors", 2, "shape"), [1 << 32, 1 << 32, 1, 5, 6], "constant 0.weights has 30 values, not"),
        (("tensors", 1, "view_of"), 7, "7 is no text"),
        (("training",), {"colour": 1}, "Training has no fields ['colour']"),
        (("training",), {"loss": "hinge"}, "'hinge' is not one of"),
        (("layers",), [], "instruction of layer 0, there are 0"),
        (("layers", 0, "kind"), "lstm", "'lstm' is not one of"),
        (("layers", 0, "engine"), "gpu", "'gpu' is not a valid Queue"),
        (("host", "input_shape"), [5, 1], "neither (C,) nor (C, H, W)"),
        (("host", "input_shape"), [5, 2, 1], "does not fit tensor (3, 2, 1, 1, 5)"),
        (("host", "encoding"), "phase", "'phase' is not one of"),
    ],
)
def test_an_inconsistent_header_is_refused(
    tmp_path: Path, parts: tuple[Json, Arrays], place: tuple[str | int, ...], value: object, message: str
) -> None:
    assert message in refusal(write(tmp_path / "other.h2l", edited(parts[0], place, value), parts[1]))


def test_arrays_that_do_not_fit_the_header_are_refused(tmp_path: Path, parts: tuple[Json, Arrays]) -> None:
    header, arrays = parts
    weights, stream = arrays["constant.0.weights"], arrays["stream.run.fe"]
    cases: list[tuple[str, npt.NDArray[np.generic], str]] = [
        ("constant.0.weights", weights.astype(np.float32), "constant.0.weights is float32, must be FP16"),
        ("constant.0.weights", weights[:, :4], "constant 0.weights has 24 values"),
        ("constant.0.weights", np.full_like(weights, np.inf), "constant 0.weights holds a NaN or infinite value"),
        ("constant.extra", weights, "constants ['extra'] do not match the table"),
        ("extra", weights, "'extra' is neither a stream nor a constant"),
        ("stream.run.gpu", stream, "'gpu' is not a valid Queue"),
        ("stream.fe", stream, "'fe' is not a valid Phase"),
        ("stream.run.fe", stream[:, :31], "is not made of 32-byte words"),
        ("stream.run.fe", stream.astype(np.int32), "is not made of 32-byte words"),
        ("stream.run.fe", np.zeros_like(stream), "instruction 0: unknown opcode 0"),
    ]
    for name, array, message in cases:
        path = write(tmp_path / "other.h2l", header, arrays | {name: np.ascontiguousarray(array)})
        assert message in refusal(path)


def test_a_tensor_that_claims_more_than_the_file_holds_is_refused(tmp_path: Path) -> None:
    claim = {"x": {"dtype": "F16", "shape": [1 << 40], "data_offsets": [0, 1 << 41]}, "__metadata__": {KEY: "{}"}}
    for shape, end in (([1 << 40], 1 << 41), ([1 << 62, 1 << 62], 0), ([-1], 2)):
        claim["x"] = {"dtype": "F16", "shape": shape, "data_offsets": [0, end]}
        text = json.dumps(claim).encode()
        path = tmp_path / "program.h2l"
        path.write_bytes(len(text).to_bytes(8, "little") + text)
        assert refusal(path).startswith(NOT_WHOLE)
    path.write_bytes((1 << 62).to_bytes(8, "little") + b"{}")
    assert refusal(path).startswith(NOT_WHOLE)


@pytest.mark.parametrize("dtype", ["BF16", "F8_E4M3", "F8_E5M2", "C64", "F4", "F6_E2M3", "U16", "BOOL"])
def test_element_types_that_are_not_ours_are_refused(tmp_path: Path, dtype: str) -> None:
    bytes_of = {"C64": 8, "U16": 2, "BF16": 2}.get(dtype, 1)
    claim = {
        "x": {"dtype": dtype, "shape": [16], "data_offsets": [0, 16 * bytes_of]},
        "__metadata__": {KEY: "{}"},
    }
    text = json.dumps(claim).encode()
    path = tmp_path / "program.h2l"
    path.write_bytes(len(text).to_bytes(8, "little") + text + bytes(16 * bytes_of))
    assert refusal(path).startswith((NOT_WHOLE, "the program"))
