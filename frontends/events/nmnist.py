"""N-MNIST as it is handed out: Train/0 to 9/*.bin and Test/0 to 9/*.bin, one sample a file."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from frontends.datasets import Split
from frontends.events.folders import class_folders, files_of, numbered
from frontends.events.recording import Events, Recording, Window
from hwmodel.errors import CompileError, Loc

SENSOR = 34  # pixels in each direction
WINDOW = Window(timesteps=15, bin_us=5000, size=34)  # table 5.6
CLASSES = tuple(str(digit) for digit in range(10))

_EVENT_BYTES = 5
_MARK = 240  # a row that no pixel is in: the clock has gone on by so much from here
_MARK_US = 1 << 13
_SPLITS = {Split.TRAIN: "Train", Split.TEST: "Test"}


def recordings(folder: Path, split: Split) -> list[Recording]:
    """The split's files in the order of their numbers, which is MNIST's.

    Raises: CompileError for a folder that is not laid out so.
    """
    found = class_folders(folder / _SPLITS[split], CLASSES, hint="N-MNIST has Train/0 to 9 and Test/0 to 9")
    every = [
        Recording(path=file, label=label, loc=Loc(str(file)))
        for label, place in found.items()
        for file in files_of(place, ".bin")
    ]
    return sorted(every, key=numbered)


def decode(content: bytes, loc: Loc) -> Events:
    """Events of 40 bits, big-endian: x 8, y 8, polarity 1 (1 is ON), time 23 in us.

    An event in row 240 is none: times from there on are 2^13 us later.

    Raises: CompileError for a file that is cut off, holds no events, or one outside the sensor.
    Source: garrickorchard.com/datasets/n-mnist; the marks, tonic's read_mnist_file.
    """
    if len(content) % _EVENT_BYTES:
        raise CompileError(f"ends inside an event: {len(content)} bytes, {_EVENT_BYTES} each", loc, hint="truncated?")
    raw = np.frombuffer(content, dtype=np.uint8).astype(np.int64).reshape(-1, _EVENT_BYTES)
    is_mark = raw[:, 1] == _MARK
    time = ((raw[:, 2] & 0x7F) << 16) + (raw[:, 3] << 8) + raw[:, 4] + np.cumsum(is_mark) * _MARK_US
    every = Events(x=raw[:, 0], y=raw[:, 1], is_on=raw[:, 2] >= 0x80, time_us=time)
    return every.at(~is_mark).checked(SENSOR, loc)
