"""Files of training programs: what is saved comes back, and a damaged one is refused, never half-read."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hwmodel.checker import check
from hwmodel.errors import CompileError
from hwmodel.program import Program
from hwmodel.program_file import load_program, save_program
from runtime.training_session import TrainingSession
from tests.hwmodel.test_program_file import (
    FILE_PER_EXAMPLE,
    JSON_VALUES,
    NOT_WHOLE,
    Arrays,
    Json,
    assert_equal,
    content,
    edited,
    is_sound,
    places,
    refusal,
    saved,
    write,
)
from tests.hwmodel.training_programs import PROGRAMS, digits_program, pooled_program
from tests.hwmodel.training_runs import engines_of

Place = tuple[str | int, ...]


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> tuple[Json, Arrays]:
    """Header and arrays of a valid file."""
    return content(saved(digits_program(), tmp_path_factory.mktemp("digits")))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The bytes of a valid file."""
    return saved(pooled_program(), tmp_path_factory.mktemp("pooled")).read_bytes()


@pytest.mark.parametrize("make", PROGRAMS)
def test_what_is_saved_comes_back(make: Callable[[], Program], tmp_path: Path) -> None:
    program = make()
    path = saved(program, tmp_path)
    loaded = load_program(path)
    assert_equal(loaded, program)
    check(loaded)
    other = tmp_path / "again.h2l"
    save_program(loaded, other)
    assert other.read_bytes() == path.read_bytes()


FIELDS: list[Place] = [
    *(("training", name) for name in ("loss", "loss_scale", "batch_group", "machines", "learning_rate", "momentum")),
    *(("training", name) for name in ("weight_decay", "master_weights", "parameters", "masks")),
    *(
        ("training", "parameters", 1, name)
        for name in ("parameter", "shape", "positions", "tensor", "gradient", "momentum", "is_bias", "layer")
    ),
    *(("training", "masks", 0, name) for name in ("layer", "kind", "inputs", "outputs")),
]
NUMBERS = ("loss_scale", "learning_rate", "momentum", "weight_decay")
COUNTS = ("batch_group", "machines", "positions", "layer")
FLAGS = ("master_weights", "is_bias")
LISTS = ("parameters", "masks", "shape")


def field_name(place: Place) -> str:
    return str(place[-1])


def test_every_field_of_the_header_is_here(parts: tuple[Json, Arrays]) -> None:
    training = parts[0]["training"]
    assert {field_name(place) for place in FIELDS if len(place) == 2} == set(training)
    for table in ("parameters", "masks"):
        found = {field_name(place) for place in FIELDS if place[1] == table and len(place) == 4}
        assert found == set(training[table][0])


@pytest.mark.parametrize("place", FIELDS, ids=lambda place: ".".join(map(str, place)))
def test_a_field_that_is_missing_is_refused(tmp_path: Path, parts: tuple[Json, Arrays], place: Place) -> None:
    header = edited(parts[0], place, None)
    table = header
    for step in place[:-1]:
        table = table[step]
    del table[place[-1]]
    assert repr(place[-1]) in refusal(write(tmp_path / "other.h2l", header, parts[1]))


def wrong_values(place: Place) -> list[object]:
    """What a field cannot be, whatever its value."""
    name = field_name(place)
    values: list[object] = [None, {"a": 1}]
    values += [] if name in LISTS else [[], [1], {}]
    values += [] if name in FLAGS else [True]
    if name in NUMBERS:
        return [*values, "0.5", float("nan"), float("inf"), -float("inf"), 10**400]
    if name in COUNTS and place[1] != "masks":
        return [*values, "1", -1, 0.5, 1.0, float("nan"), 10**400]
    if name in FLAGS:
        return [*values, 0, 1, "true"]
    if name in LISTS:
        return [*values, 1, "text", "", {}, [None], [[]], [-1], [{"a": 1}]]
    return [*values, 1, -1, 0.5, "\ud800"]


@pytest.mark.parametrize("place", FIELDS, ids=lambda place: ".".join(map(str, place)))
def test_a_field_of_a_wrong_type_is_refused(tmp_path: Path, parts: tuple[Json, Arrays], place: Place) -> None:
    for value in wrong_values(place):
        path = write(tmp_path / "other.h2l", edited(parts[0], place, value), parts[1])
        assert not is_sound(path), value


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        (("training", "loss"), "hinge", "'hinge' is not one of"),
        (("training", "loss_scale"), 0, "the loss scale is 0, must be positive"),
        (("training", "loss_scale"), -8, "the loss scale is -8, must be positive"),
        (("training", "batch_group"), 0, "a count of 0"),
        (("training", "machines"), 0, "a count of 0"),
        (("training", "colour"), 1, "Training has no fields ['colour']"),
        (("training", "parameters", 0, "colour"), 1, "Trained has no fields ['colour']"),
        (("training", "masks", 0, "colour"), 1, "LayerMasks has no fields ['colour']"),
        (("training", "parameters", 0, "tensor"), "nothing", "w4: 'nothing' is no tensor of the program for it"),
        (("training", "parameters", 0, "gradient"), "3.gradient", "w4: '3.gradient' is no tensor of the program"),
        (("training", "parameters", 0, "momentum"), "3.weights", "w4: '3.weights' is no tensor of the program"),
        (("training", "parameters", 0, "shape"), [3, 7], "w4 (3, 7) does not fit its tensors"),
        (("training", "parameters", 0, "shape"), [3, 0], "a count of 0"),
        (("training", "parameters", 0, "positions"), 0, "a count of 0"),
        (("training", "parameters", 0, "layer"), 99, "w4 (3, 6) does not fit its tensors"),
        (("training", "masks", 0, "kind"), "pool", "'pool' is not one of"),
        (("training", "masks", 0, "inputs"), "nothing", "'nothing' is no tensor of the program"),
        (("training", "masks", 0, "outputs"), "nothing", "'nothing' is no tensor of the program"),
        (("training", "parameters"), {}, "the program's header is inconsistent: TypeError('{} is no list')"),
        (("training", "masks"), {}, "the program's header is inconsistent: TypeError('{} is no list')"),
        (("training", "masks"), "", "'' is no list"),
        (("training", "parameters", 0, "shape"), "", "'' is no list"),
        (("training",), 7, "the program's header is inconsistent"),
        (("training",), [], "the program's header is inconsistent"),
        (("training",), {}, "'loss'"),
        (("training",), None, "has streams of phase backward, which this kind of program does not have"),
        (("tensors", 0, "view_of"), "input", "the program needs one input"),
    ],
)
def test_an_inconsistent_header_is_refused(
    tmp_path: Path, parts: tuple[Json, Arrays], place: Place, value: object, message: str
) -> None:
    assert message in refusal(write(tmp_path / "other.h2l", edited(parts[0], place, value), parts[1]))


def test_streams_of_other_phases_are_refused(tmp_path: Path, parts: tuple[Json, Arrays]) -> None:
    header, arrays = parts
    stream = arrays["stream.forward.fe"]
    cases = [
        ("stream.retrain.fe", "'retrain' is not a valid Phase"),
        ("stream.forward.gpu", "'gpu' is not a valid Queue"),
        ("stream.forward", "is not a valid Queue"),
        ("stream.run.fe", "has streams of phase run, which this kind of program does not have"),
    ]
    for name, message in cases:
        assert message in refusal(write(tmp_path / "other.h2l", header, arrays | {name: stream}))


@pytest.mark.parametrize("phase", ["forward", "overlap", "backward", "update"])
def test_a_phase_that_is_missing_is_reported_by_the_checker(
    tmp_path: Path, parts: tuple[Json, Arrays], phase: str
) -> None:
    header, arrays = parts
    rest = {name: array for name, array in arrays.items() if not name.startswith(f"stream.{phase}.")}
    program = load_program(write(tmp_path / "other.h2l", header, rest))
    with pytest.raises(CompileError, match=r"is not written completely|reads what was not written"):
        check(program)


@settings(max_examples=100, deadline=None, suppress_health_check=FILE_PER_EXAMPLE)
@given(data=st.data())
def test_flipped_bits_are_refused_or_harmless(tmp_path: Path, whole: bytes, data: st.DataObject) -> None:
    damaged = bytearray(whole)
    for bit in data.draw(st.lists(st.integers(0, 8 * len(damaged) - 1), min_size=1, max_size=3, unique=True)):
        damaged[bit // 8] ^= 1 << bit % 8
    path = tmp_path / "damaged.h2l"
    path.write_bytes(damaged)
    is_sound(path)


@settings(max_examples=40, deadline=None, suppress_health_check=FILE_PER_EXAMPLE)
@given(data=st.data())
def test_flipped_bits_of_instructions_are_refused_or_harmless(
    tmp_path: Path, parts: tuple[Json, Arrays], data: st.DataObject
) -> None:
    header, arrays = parts
    name = data.draw(st.sampled_from([name for name in arrays if name.startswith("stream.")]))
    words = arrays[name].copy()
    row = data.draw(st.integers(0, len(words) - 1))
    for bit in data.draw(st.lists(st.integers(0, 224), min_size=1, max_size=2, unique=True)):
        words[row, bit // 8] ^= 1 << bit % 8
    is_sound(write(tmp_path / "damaged.h2l", header, arrays | {name: words}))


@settings(max_examples=60, deadline=None, suppress_health_check=FILE_PER_EXAMPLE)
@given(data=st.data())
def test_a_truncated_file_is_refused(tmp_path: Path, whole: bytes, data: st.DataObject) -> None:
    path = tmp_path / "damaged.h2l"
    path.write_bytes(whole[: data.draw(st.integers(0, len(whole) - 1))])
    assert refusal(path).startswith(NOT_WHOLE)


@settings(max_examples=50, deadline=None, suppress_health_check=FILE_PER_EXAMPLE)
@given(data=st.data(), value=JSON_VALUES)
def test_a_wild_value_of_the_training_table_is_refused_or_trains(
    tmp_path: Path, parts: tuple[Json, Arrays], data: st.DataObject, value: object
) -> None:
    """What the checker takes can be trained and written again; it fails with a CompileError at worst."""
    header, arrays = parts
    place = data.draw(st.sampled_from(places(header["training"], ("training",))))
    path = write(tmp_path / "other.h2l", edited(header, place, value), arrays)
    if is_sound(path):
        _use(load_program(path), tmp_path)


@pytest.mark.parametrize(
    ("place", "value"),
    [
        (("training", "loss"), "cross_entropy"),
        (("training", "learning_rate"), 0.25),
        (("training", "batch_group"), 7),
        (("training", "machines"), 3),
        (("training", "masks"), []),
        (("training", "masks", 0, "outputs"), ""),
        (("training", "parameters", 0, "parameter"), "another"),
        (("training", "parameters", 1, "positions"), 3),
    ],
)
def test_other_sound_values_train(tmp_path: Path, parts: tuple[Json, Arrays], place: Place, value: object) -> None:
    _use(load_program(write(tmp_path / "other.h2l", edited(parts[0], place, value), parts[1])), tmp_path)


def _use(program: Program, folder: Path) -> None:
    check(program)
    assert_equal(load_program(saved(program, folder)), program)
    rng = np.random.default_rng(0)
    images, labels = rng.random((3, *program.host.input_shape), np.float32), np.array([0, 1, 2])
    try:
        session = TrainingSession(program, engines_of(program))
        session.step(images, labels)
        session.load_weights(session.weights())
        session.restore(session.state())
        session.sparsity()
    except CompileError:
        return
