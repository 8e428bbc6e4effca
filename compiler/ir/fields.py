"""What the fields of ops and value classes may hold, read from their types; the text form follows from it."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import MISSING, dataclass, fields, is_dataclass
from enum import StrEnum
from types import NoneType, UnionType
from typing import Union, get_args, get_origin, get_type_hints

from compiler.ir.lexer import Token, TokenKind
from compiler.ir.values import Param
from hwmodel.errors import CompileError


@dataclass(frozen=True, slots=True)
class Scalar:
    """A type whose values are one token: in words, which tokens they are, and the value of one."""

    words: str
    begins: Callable[[Token], bool]
    read: Callable[[Token], object]


def class_word(owner: type) -> str:
    """The word for an op or a value class: its name in snake_case."""
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", owner.__name__).lower()


def field_types(owner: type) -> dict[str, object]:
    """Names and types of the fields, in order."""
    assert is_dataclass(owner)
    hints = get_type_hints(owner)
    return {item.name: hints[item.name] for item in fields(owner)}


def required_fields(owner: type) -> tuple[str, ...]:
    """The fields without a default."""
    assert is_dataclass(owner)
    return tuple(f.name for f in fields(owner) if f.default is MISSING and f.default_factory is MISSING)


def alternatives(hint: object) -> tuple[object, ...]:
    """The members of a union; any other type itself."""
    return get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)


def scalar(hint: object) -> Scalar | None:
    """How a value of the type is written in one token, if it is."""
    if isinstance(hint, type) and issubclass(hint, StrEnum):
        words = f"one of {', '.join(hint)}"
        return Scalar(words, lambda token: _is_text(token) and token.meaning in set(hint), _enum_reader(hint))
    return _SCALARS.get(hint) if isinstance(hint, type) else None


def begins(hint: object, token: Token) -> bool:
    """Whether a value of a type (not a union) may begin with the token."""
    plain = scalar(hint)
    if plain is not None:
        return plain.begins(token)
    return token.source == (class_word(hint) if isinstance(hint, type) else "(")


def describe(hint: object) -> str:
    """What a field of the type takes, for an error message."""
    plain = scalar(hint)
    if plain is not None:
        return plain.words
    if get_origin(hint) is tuple:
        items = ("..." if item is Ellipsis else describe(item) for item in get_args(hint))
        return f"({', '.join(items)})"
    if isinstance(hint, type):
        return f"{class_word(hint)}(...)"
    return " or ".join(describe(option) for option in alternatives(hint))


def read_integer(token: Token) -> int:
    """The integer that a token spells.

    Raises: CompileError if it spells something else.
    """
    try:
        return int(token.source)
    except ValueError:
        raise CompileError(f"{token} is not an integer", token.loc) from None


def _read_float(token: Token) -> float:
    """A finite number; one written as an integer stays it, so that it prints the same again."""
    try:
        value = float(token.source)
    except ValueError:
        raise CompileError(f"{token} is not a number", token.loc) from None
    if not math.isfinite(value):
        raise CompileError(f"{token} is out of range", token.loc)
    return int(token.source) if re.fullmatch("[-+]?[0-9]+", token.source) else value


def _enum_reader(hint: type[StrEnum]) -> Callable[[Token], object]:
    return lambda token: hint(token.meaning)


def _is_number(token: Token) -> bool:
    return token.kind is TokenKind.NUMBER


def _is_text(token: Token) -> bool:
    return token.kind in (TokenKind.WORD, TokenKind.STRING)


_SCALARS: dict[type, Scalar] = {
    bool: Scalar("true or false", lambda t: t.source in ("true", "false"), lambda t: t.source == "true"),
    int: Scalar("an integer", _is_number, read_integer),
    float: Scalar("a number", _is_number, _read_float),
    str: Scalar("a word or a string", _is_text, lambda t: t.meaning),
    NoneType: Scalar("none", lambda t: t.source == "none", lambda t: None),
    Param: Scalar("an @parameter", lambda t: t.kind is TokenKind.PARAM, lambda t: Param(t.meaning)),
}
