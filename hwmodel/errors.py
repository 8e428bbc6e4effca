"""The one error type for faults in the user's input, and the places that it points at."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Loc:
    """A place in the user's input: a source file, a module path, or a file format's field path."""

    file: str
    line: int = 0  # 0: the place has no line

    def __str__(self) -> str:
        return f"{self.file}:{self.line}" if self.line else self.file


class CompileError(Exception):
    """A fault in the user's input; any other exception is a bug of ours."""

    def __init__(self, message: str, loc: Loc, *, hint: str = "") -> None:
        super().__init__(f"{loc}: error: {message}" + (f"\n  hint: {hint}" if hint else ""))
        self.message = message
        self.loc = loc
        self.hint = hint
