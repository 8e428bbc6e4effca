"""Tokens of the IR's text form."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum

from hwmodel.errors import CompileError, Loc


class TokenKind(StrEnum):
    """What a token is, in the words of the error messages."""

    VALUE = "a %value"
    PARAM = "an @parameter"
    STRING = "a string"
    NUMBER = "a number"
    WORD = "a word"
    MARK = "a mark"
    END = "the end of the text"


@dataclass(frozen=True, slots=True)
class Token:
    """A piece of the text: as written, what it means (without sigil and quotes), and where."""

    kind: TokenKind
    source: str
    meaning: str
    loc: Loc

    def __str__(self) -> str:
        return self.kind if self.kind is TokenKind.END else f"`{self.source}`"


_STRING = r'"(?:[^"\\\n]|\\[^\n])*"'
_BARE = re.compile(r"[A-Za-z0-9_.]+")
_WORD = re.compile(r"[A-Za-z_][A-Za-z0-9_.]*")
_TOKEN = re.compile(
    rf"""
    (?P<blank>[ \t\r]+)
  | (?P<line>\n)
  | (?P<name>[%@](?:{_BARE.pattern}|{_STRING}))
  | (?P<string>{_STRING})
  | (?P<number>[-+]?[0-9](?:[0-9.]|[eE][-+]?[0-9]|[A-Za-z])*)
  | (?P<word>{_WORD.pattern})
  | (?P<mark>[][(){{}},=:])
    """,
    re.VERBOSE,
)


def tokens(text: str, file: str) -> Iterator[Token]:
    """The tokens of a text, then one END.

    Raises: CompileError at a character that starts no token, or a string that does not end on its line.
    """
    at, line = 0, 1
    while at < len(text):
        match = _TOKEN.match(text, at)
        loc = Loc(file, line)
        if match is None:
            raise _fault(text[at : at + 2], loc)
        source, at = match.group(), match.end()
        match match.lastgroup:
            case "line":
                line += 1
            case "name":
                kind = TokenKind.VALUE if source[0] == "%" else TokenKind.PARAM
                yield Token(kind, source, _unquoted(source[1:], loc), loc)
            case "string":
                yield Token(TokenKind.STRING, source, _unquoted(source, loc), loc)
            case "number" | "word" | "mark" as group:
                yield Token(TokenKind[group.upper()], source, source, loc)
    yield Token(TokenKind.END, "", "", Loc(file, line))


def bare_or_quoted(name: str) -> str:
    """A name as it stands after % or @."""
    return name if _BARE.fullmatch(name) else json.dumps(name)


def word_or_quoted(word: str) -> str:
    """A string as the value of a field."""
    return word if _WORD.fullmatch(word) else json.dumps(word)


def _unquoted(source: str, loc: Loc) -> str:
    if not source.startswith('"'):
        return source
    try:
        value = json.loads(source)
        value.encode()  # a lone surrogate is no text
    except ValueError:
        raise CompileError(
            f"{source} is not a string", loc, hint=r"strings follow JSON: escapes are \" \\ \n \uXXXX"
        ) from None
    assert isinstance(value, str)
    return value


def _fault(start: str, loc: Loc) -> CompileError:
    if '"' in start:
        return CompileError("a string does not end on its line", loc, hint='close it with "')
    if start[0] in "%@":
        return CompileError(
            f"`{start[0]}` stands without a name", loc, hint="names are letters, digits, _ and ., or quoted"
        )
    return CompileError(f"{start[0]!r} is not allowed here", loc, hint="other names than words are quoted")
