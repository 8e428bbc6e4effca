from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from frontends.notation import Conv, Dense, Layer, Notation, Pool, parse
from hwmodel.errors import CompileError

SIZES = st.integers(1, 9999)


@st.composite
def notations(draw: st.DrawFn) -> Notation:
    conv = st.builds(Conv, channels=SIZES, kernel=st.integers(1, 11), stride=st.integers(1, 4))
    pool = st.builds(Pool, kernel=st.integers(1, 9))
    dense = st.builds(Dense, features=SIZES)
    first = st.one_of(
        st.builds(Conv, channels=SIZES, kernel=st.integers(1, 11), encoding=st.booleans()),
        st.builds(Dense, features=SIZES, encoding=st.booleans()),
        pool,
    )
    layers: list[Layer] = [draw(first)]
    if not isinstance(layers[0], Dense):
        layers += draw(st.lists(st.one_of(conv, pool), max_size=5))
    layers += draw(st.lists(dense, max_size=4))
    return Notation(tuple(layers))


@given(notation=notations())
@settings(max_examples=200)
def test_text_parses_back(notation: Notation) -> None:
    assert parse(str(notation)) == notation


@given(text=st.text(alphabet="0123456789CAPFSKX-()Encodig", max_size=20))
@settings(max_examples=300)
def test_any_text_parses_or_is_refused(text: str) -> None:
    try:
        notation = parse(text)
    except CompileError:
        return
    assert parse(str(notation)) == notation


def test_every_form_in_print() -> None:
    assert parse("64C3S2(Encoding)-128C5-AP2-512FC-10FC") == Notation(
        (
            Conv(channels=64, kernel=3, stride=2, encoding=True),
            Conv(channels=128, kernel=5),
            Pool(kernel=2),
            Dense(features=512),
            Dense(features=10),
        )
    )


@pytest.mark.parametrize(
    ("printed", "canonical"),
    [
        ("X-FC512-FC256-FC10", "512FC-256FC-10FC"),
        ("X-C64K3S2-C128K3S2-FC256-FC10", "64C3S2-128C3S2-256FC-10FC"),
        ("Input-64C3-AP2-11FC", "64C3-AP2-11FC"),
        ("64C3S1-10FC", "64C3-10FC"),
    ],
)
def test_other_spellings(printed: str, canonical: str) -> None:
    assert str(parse(printed)) == canonical


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("64C3-AP-10FC", "column 6: 'AP' is no layer"),
        ("", "column 1: a layer is missing"),
        ("64C3--10FC", "column 6: a layer is missing"),
        ("X", "column 1: 'X' is no layer"),
        ("64C3-X-10FC", "column 6: 'X' is no layer"),
        ("0C3-10FC", "column 1: '0C3' is no layer"),
        ("64C3-10FC-AP2", "column 11: AP2 stands behind a fully connected layer"),
        ("64C3-32C3(Encoding)", "column 6: 32C3(Encoding): only the first layer can be the encoding layer"),
        ("1234567C3", "column 1: '1234567C3' holds a number of more than 6 digits"),
    ],
)
def test_error_names_the_column(text: str, message: str) -> None:
    with pytest.raises(CompileError) as caught:
        parse(text)
    assert caught.value.message == message
    assert str(caught.value.loc) == f"network {text!r}"
