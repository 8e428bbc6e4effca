"""A recording of an event camera, and the spikes that a network sees of it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from hwmodel.errors import CompileError, Loc

Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True, kw_only=True)
class Events:
    """Events of a square sensor, in any order.

    Shapes: all (E,).
    Units: columns x from the left, rows y from the top; time in microseconds; is_on: the pixel became brighter.
    """

    x: Ints
    y: Ints
    is_on: Bools
    time_us: Ints

    def __len__(self) -> int:
        return len(self.time_us)

    def at(self, index: Bools) -> Events:
        """Those that `index` chooses."""
        return Events(x=self.x[index], y=self.y[index], is_on=self.is_on[index], time_us=self.time_us[index])

    def checked(self, sensor: int, loc: Loc) -> Events:
        """These events.

        Raises: CompileError if there is none, or one lies outside the sensor.
        """
        if len(self) == 0:
            raise CompileError("holds no events", loc)
        outside = (self.x >= sensor) | (self.y >= sensor)
        if outside.any():
            first = int(np.argmax(outside))
            raise CompileError(
                f"event {first} is at x {self.x[first]}, y {self.y[first]}, the sensor has {sensor} x {sensor} pixels",
                loc,
            )
        return self


@dataclass(frozen=True, slots=True, kw_only=True)
class Window:
    """What is made of a recording: so many time steps of so many microseconds, from its earliest event on."""

    timesteps: int
    bin_us: int
    size: int  # pixels in each direction, at most the sensor's


@dataclass(frozen=True, slots=True, kw_only=True)
class Recording:
    """Where one sample is: a file, or the events from `begin_us` on and before `end_us` of it."""

    path: Path
    label: int
    loc: Loc  # that errors point at
    begin_us: int | None = None
    end_us: int | None = None

    def part(self, events: Events) -> Events:
        """The sample's events of those of the file.

        Raises: CompileError if there is none.
        """
        if self.begin_us is None or self.end_us is None:
            return events
        found = events.at((events.time_us >= self.begin_us) & (events.time_us < self.end_us))
        if len(found) == 0:
            raise CompileError(f"no event is from {self.begin_us} to {self.end_us} us in {self.path.name}", self.loc)
        return found


def spikes(events: Events, window: Window, sensor: int) -> Bools:
    """A spike wherever at least one event falls; later events than the window's are left out.

    step = (time - earliest time) // bin;   row = y * size // sensor, likewise the column;   channel 0 OFF, 1 ON

    Shapes: (T, 2, size, size).
    """
    seen = np.zeros((window.timesteps, 2, window.size, window.size), dtype=np.bool_)
    step = (events.time_us - events.time_us.min()) // window.bin_us
    kept = step < window.timesteps
    row, column = (along * window.size // sensor for along in (events.y, events.x))
    seen[step[kept], events.is_on[kept].astype(np.int64), row[kept], column[kept]] = True
    return seen
