"""What a name says behind the folder or source: `NAME:FOLDER,timesteps=10,size=32`."""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from hwmodel.errors import CompileError, Loc

_TAIL = re.compile(r"(?:,[A-Za-z_]+=[^,=]*)+$")


@dataclass(frozen=True, slots=True, kw_only=True)
class EventOptions:
    """Other numbers than the data set's own; None leaves those."""

    timesteps: int | None = None
    bin_us: int | None = None
    size: int | None = None  # pixels in each direction
    per_class: int | None = None  # so many samples of each class at most, the first

    def kept(self, labels: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """The index of each sample that is kept, ascending."""
        if self.per_class is None:
            return np.arange(len(labels))
        firsts = [np.flatnonzero(labels == label)[: self.per_class] for label in np.unique(labels)]
        return np.sort(np.concatenate([np.zeros(0, np.int64), *firsts]))


def split_options(text: str, known: Collection[str], loc: Loc) -> tuple[str, EventOptions]:
    """What stands in front of the options, and the options.

    Raises: CompileError for an option that is not known, given twice, or no whole number from 1 on.
    """
    tail = _TAIL.search(text)
    if tail is None:
        return text, EventOptions()
    given: dict[str, int] = {}
    for item in tail[0][1:].split(","):
        name, _, value = item.partition("=")
        if name not in known:
            raise CompileError(f"option {name!r} is not known", loc, hint=f"known: {', '.join(known)}")
        if name in given:
            raise CompileError(f"option {name!r} is given twice", loc)
        if not re.fullmatch(r"[1-9][0-9]{0,8}", value):
            raise CompileError(f"{name} is {value!r}, must be a whole number from 1 on", loc)
        given[name] = int(value)
    return text[: tail.start()], EventOptions(**given)
