"""Folders and tables of data sets as they are handed out."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from frontends.events.recording import Recording
from hwmodel.errors import CompileError, Loc

_FOREIGN = (".", "__")  # what unpacking leaves beside the classes


def class_folders(folder: Path, classes: Sequence[str], *, hint: str) -> dict[int, Path]:
    """Label and folder of each class that is there.

    Raises: CompileError if none is there, or a folder of another name is.
    """
    if not folder.is_dir():
        raise CompileError("no such folder", Loc(str(folder)), hint=hint)
    places = sorted(place for place in folder.iterdir() if place.is_dir() and not place.name.startswith(_FOREIGN))
    unknown = [place for place in places if place.name not in classes]
    if unknown:
        raise CompileError("is no class's folder", Loc(str(unknown[0])), hint=f"classes: {', '.join(classes)}")
    if not places:
        raise CompileError("holds no class's folder", Loc(str(folder)), hint=hint)
    return {classes.index(place.name): place for place in places}


def files_of(folder: Path, suffix: str) -> list[Path]:
    """The files that end so.

    Raises: CompileError if there is none.
    """
    found = sorted(
        file for file in folder.iterdir() if file.name.endswith(suffix) and not file.name.startswith(_FOREIGN)
    )
    if not found:
        raise CompileError(f"holds no {suffix} file", Loc(str(folder)))
    return found


def numbered(recording: Recording) -> tuple[int, int, str]:
    """A key that sorts files by the number that their names end in, so that classes take turns."""
    number = re.search(r"([0-9]{1,18})$", recording.path.stem)
    return (int(number[1]) if number else 0, recording.label, recording.path.name)


def read_lines(path: Path, *, hint: str) -> list[str]:
    """The lines of a text file.

    Raises: CompileError if it cannot be read.
    """
    try:
        return path.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError as error:
        raise CompileError("no such file", Loc(str(path)), hint=hint) from error
    except (OSError, UnicodeDecodeError) as error:
        raise CompileError(f"cannot be read: {error}", Loc(str(path)), hint=hint) from error
