"""IBM's DVS128 Gesture as it is handed out: AEDAT 3.1 files of many gestures each, with a table of their times."""

from __future__ import annotations

from pathlib import Path

from frontends.datasets import Split
from frontends.events.aedat import SENSOR, decode_version_3
from frontends.events.folders import read_lines
from frontends.events.recording import Recording, Window
from hwmodel.errors import CompileError, Loc

__all__ = ["CLASSES", "SENSOR", "WINDOW", "decode", "recordings"]

WINDOW = Window(timesteps=60, bin_us=1000, size=32)  # table 5.6
CLASSES = tuple(str(number) for number in range(1, 12))

decode = decode_version_3

_LISTS = {Split.TRAIN: "trials_to_train.txt", Split.TEST: "trials_to_test.txt"}
_HEADING = "class"  # begins the heading of a table of gestures


def recordings(folder: Path, split: Split) -> list[Recording]:
    """The gestures of the split's trials in the order of the tables; the classes 1 to 11 are the labels 0 to 10.

    A trial NAME.aedat has its table in NAME_labels.csv: class, first and last time in us, the latter left out.

    Raises: CompileError for a folder that is not laid out so, or a table that says something else.
    Source: Amir et al., CVPR 2017; the interval, spikingjelly.datasets.dvs128_gesture.
    """
    listing = folder / _LISTS[split]
    found: list[Recording] = []
    for number, text in enumerate(read_lines(listing, hint=f"DVS128 Gesture has {_LISTS[split]} beside its files"), 1):
        name = text.strip()
        if not name:
            continue
        path = folder / name
        if not name.endswith(".aedat") or not path.is_file():
            raise CompileError(f"{name!r} is no .aedat file of {folder}", Loc(str(listing), number))
        found += _gestures(path, path.with_name(f"{path.stem}_labels.csv"))
    return found


def _gestures(path: Path, table: Path) -> list[Recording]:
    hint = "a trial NAME.aedat has its gestures in NAME_labels.csv: class,startTime_usec,endTime_usec"
    gestures = []
    for number, text in enumerate(read_lines(table, hint=hint), 1):
        loc = Loc(str(table), number)
        words = [word.strip() for word in text.split(",")]
        if words == [""] or (number == 1 and words[0] == _HEADING):
            continue
        if len(words) != 3 or not all(word.isascii() and word.isdecimal() for word in words):
            raise CompileError(f"{text.strip()[:40]!r} is no class, first and last time", loc, hint=hint)
        label, begin, end = (int(word) for word in words)
        if not 1 <= label <= len(CLASSES):
            raise CompileError(f"class {label} is not in 1..{len(CLASSES)}", loc)
        if begin >= end:
            raise CompileError(f"ends at {end} us, begins at {begin} us", loc)
        gestures.append(Recording(path=path, label=label - 1, loc=loc, begin_us=begin, end_us=end))
    return gestures
