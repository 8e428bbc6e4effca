"""Lines of a results file: bit for bit what was found, and nothing else is read."""

from __future__ import annotations

import base64
import json
import zlib
from dataclasses import fields
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from compiler.attack.fresh import Fresh
from compiler.attack.perturbation import perturbation
from compiler.attack.settings import Case, Outcome, Status
from spikec.attack.records import Floats, Record

SHAPES = st.lists(st.integers(1, 5), min_size=1, max_size=4).map(tuple)


@st.composite
def records(draw: st.DrawFn) -> Record:
    shape = draw(SHAPES)
    kind = draw(st.booleans())
    values = st.sampled_from([0.0, 1.0]) if kind else st.floats(0, 1, width=32)
    clean, example = (draw(arrays(np.float32, shape, elements=values)) for _ in range(2))
    count = st.integers(0, 1 << 40)
    case = Case(sample=draw(count), x=clean, label=draw(st.integers(0, 9)), target=draw(st.none() | st.integers(0, 9)))
    outcome = Outcome(
        case=case,
        status=draw(st.sampled_from(Status)),
        adversarial=example,
        perturbation=perturbation(clean, example),
        iterations=draw(count),
        vanished=draw(count),
        queries=draw(count),
        gradients=draw(count),
        draw=draw(count),
        vanished_at_start=draw(st.booleans()),
    )
    draws = draw(st.integers(1, 100))
    return Record.of(draw(count), Fresh(outcome=outcome, successes=draw(st.integers(0, draws)), draws=draws))


def same(one: Record, two: Record) -> bool:
    names = [field.name for field in fields(Record) if field.name != "example"]
    if any(getattr(one, name) != getattr(two, name) for name in names):
        return False
    if one.example is None or two.example is None:
        return one.example is two.example
    return one.example.shape == two.example.shape and one.example.tobytes() == two.example.tobytes()


@given(records())
def test_a_line_says_what_was_found(record: Record) -> None:
    back = Record.from_json(record.as_json())
    assert same(record, back)
    assert back.as_json() == record.as_json()


def test_clean_errors_have_no_example() -> None:
    x = np.zeros((2, 2), np.float32)
    outcome = Outcome(
        case=Case(sample=3, x=x, label=1),
        status=Status.CLEAN_ERROR,
        adversarial=x,
        perturbation=perturbation(x, x),
        iterations=0,
        vanished=0,
        queries=1,
        gradients=0,
    )
    record = Record.of(0, Fresh(outcome=outcome, successes=0, draws=1))
    assert record.example is None
    assert record.outcome(outcome.case).adversarial is x


def test_a_zero_keeps_its_sign() -> None:
    """Values pulled back and clipped may end at -0, which is no bit."""
    example = np.array([-0.0, 0.0, 1.0], np.float32)
    back = Record.from_json(json.dumps(_line(example))).example
    assert back is not None
    assert back.tobytes() == example.tobytes()


def test_examples_are_small_and_readable_without_this_package() -> None:
    """base64 of zlib of bits, or of little-endian f32."""
    spikes = (np.random.default_rng(0).random((15, 2, 34, 34)) < 0.1).astype(np.float32)
    image = np.random.default_rng(0).random((1, 8, 8)).astype(np.float32)
    packed = {name: _line(values)["example"] for name, values in (("bits", spikes), ("f32", image))}
    bits = np.unpackbits(np.frombuffer(zlib.decompress(base64.b64decode(packed["bits"]["bits"])), np.uint8))
    np.testing.assert_array_equal(bits[: spikes.size].reshape(spikes.shape), spikes)
    floats = np.frombuffer(zlib.decompress(base64.b64decode(packed["f32"]["f32"])), "<f4")
    np.testing.assert_array_equal(floats.reshape(image.shape), image)
    assert len(packed["bits"]["bits"]) < spikes.size / 8


def _line(example: Floats) -> dict[str, Any]:
    outcome = Outcome(
        case=Case(sample=0, x=example, label=0),
        status=Status.SUCCESS,
        adversarial=example,
        perturbation=perturbation(example, example),
        iterations=1,
        vanished=0,
        queries=1,
        gradients=1,
    )
    line: dict[str, Any] = json.loads(Record.of(0, Fresh(outcome=outcome, successes=1, draws=1)).as_json())
    return line


def _f32(*values: float, cut: int = 0) -> str:
    content = zlib.compress(np.array(values, "<f4").tobytes())
    return base64.b64encode(content[: len(content) - cut]).decode()


@pytest.mark.parametrize(
    "change",
    [
        pytest.param({"case": -1}, id="negative number"),
        pytest.param({"case": True}, id="truth for a number"),
        pytest.param({"draw": 1 << 63}, id="beyond the random generators"),
        pytest.param({"sample": 1.5}, id="broken number"),
        pytest.param({"status": "won"}, id="status"),
        pytest.param({"fresh_successes": 2}, id="more successes than draws"),
        pytest.param({"perturbation": {}}, id="no sizes"),
        pytest.param({"example": {"shape": [2, 2], "f32": _f32(0, 0.5, 1)}}, id="too short"),
        pytest.param({"example": {"shape": [2], "f32": _f32(0, 0.5, 1)}}, id="too long"),
        pytest.param({"example": {"shape": [2], "f32": _f32(0, 1.5)}}, id="value outside"),
        pytest.param({"example": {"shape": [2], "f32": _f32(0, float("nan"))}}, id="no number"),
        pytest.param({"example": {"shape": [2], "f32": "!!"}}, id="no base64"),
        pytest.param({"example": {"shape": [2], "f32": "AAAA"}}, id="not compressed"),
        pytest.param({"example": {"shape": [2], "f32": _f32(0, 0.5, cut=1)}}, id="cut off behind the values"),
        pytest.param({"example": {"shape": 2, "f32": _f32(0, 0.5)}}, id="shape"),
        pytest.param({"example": {"shape": [1 << 62], "bits": _f32(0)}}, id="huge shape"),
        pytest.param({"example": {"shape": [2]}}, id="no values"),
    ],
)
def test_other_lines_are_no_records(change: dict[str, object]) -> None:
    line = {**_line(np.zeros((2, 2), np.float32)), **change}
    with pytest.raises((ValueError, KeyError, TypeError)):
        Record.from_json(json.dumps(line))


@pytest.mark.parametrize("line", ["", "1", "[]", "{}", "null", '{"case": 0}'])
def test_other_json_is_no_record(line: str) -> None:
    with pytest.raises((ValueError, KeyError, TypeError, AttributeError)):
        Record.from_json(line)
