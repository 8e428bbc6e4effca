"""The design space: axes of the configuration with their values, and points drawn from it."""

from __future__ import annotations

import random
import sys
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path

from hwmodel.baselines import with_partition
from hwmodel.config import LARGEST, MAY_BE_ZERO, H2LearnConfig
from hwmodel.errors import CompileError, Loc
from hwmodel.isa import Queue

Value = int | float
Values = dict[str, Value]

MOST_POINTS = 1_000_000  # whose results are held in memory
TILE = "tile"  # rows and columns alike
_REAL = ("memory.bytes_per_cycle",)

DEFAULT_AXES: dict[str, tuple[Value, ...]] = {
    "forward.rows": (32, 64, 128),
    "forward.cols": (8, 16, 32),
    "forward.lanes": (2, 4, 8),
    "forward.sub_luts": (2, 3, 5, 9),
    "backward.rows": (8, 16, 32),
    "backward.cols": (32, 64, 128),
    "backward.pe_group": (2, 4, 8),
    "weight_update.rows": (5, 10, 20),
    "weight_update.cols": (64, 128, 256),
    "weight_update.lanes": (2, 4, 8),
    "weight_update.sub_luts": (1, 2, 4, 8),
    TILE: (4, 8, 16),
    "memory.bytes_per_cycle": (80, 160, 320),
    "sub_batch": (2, 4, 8),
}
_MORE_AXES = (
    "forward.lut_entries",
    "backward.run_ahead",
    "backward.shared_columns",
    "weight_update.lut_entries",
    "tile.h",
    "tile.w",
)
AXES = (*DEFAULT_AXES, *_MORE_AXES)


@dataclass(frozen=True, slots=True, kw_only=True)
class Axis:
    """One field of the configuration, and the values that it takes."""

    path: str
    values: tuple[Value, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """One design: what it changes of the base configuration; number 0 is the base itself."""

    number: int
    changes: Values


@dataclass(frozen=True, slots=True, kw_only=True)
class Space:
    """All combinations of the axes' values, the last axis fastest."""

    axes: tuple[Axis, ...]

    @property
    def size(self) -> int:
        """Combinations, valid or not."""
        return prod(len(axis.values) for axis in self.axes)

    def values(self, index: int) -> Values:
        """The values of one combination."""
        found: Values = {}
        for axis in reversed(self.axes):
            index, place = divmod(index, len(axis.values))
            found[axis.path] = axis.values[place]
        return {axis.path: found[axis.path] for axis in self.axes}

    def points(self, count: int, seed: int, base: H2LearnConfig) -> tuple[Point, ...]:
        """The base, then `count` distinct combinations drawn at random, all where there are no more or `count` is 0.

        A combination that is the base itself is left out.
        Raises: CompileError for a space that is too large to number, or points that are too many to evaluate.
        """
        if self.size > sys.maxsize:
            raise CompileError(f"has more than {sys.maxsize} combinations", Loc("space"), hint="name fewer values")
        is_whole = count == 0 or count >= self.size
        if (asked := self.size if is_whole else count) > MOST_POINTS:
            hint = f"--points up to {MOST_POINTS:,}, or fewer values"
            raise CompileError(f"{asked:,} points are too many", Loc("--points"), hint=hint)
        indexes = range(self.size) if is_whole else sorted(random.Random(seed).sample(range(self.size), count))
        own = values_of(base, tuple(axis.path for axis in self.axes))
        changes = (
            {path: value for path, value in self.values(index).items() if value != own[path]} for index in indexes
        )
        return (
            Point(number=0, changes={}),
            *(Point(number=n, changes=changed) for n, changed in enumerate(filter(None, changes), start=1)),
        )


def default_space() -> Space:
    """Half and double of the preset's structure, other partitions of its LUTs, tiles, bandwidths and sub-batches."""
    return Space(axes=tuple(Axis(path=path, values=values) for path, values in DEFAULT_AXES.items()))


def load_space(path: str) -> Space:
    """A space from a TOML file with the tables of a configuration, and a list of values at each field.

    Raises: CompileError with the path of each faulty field, or why the file cannot be read.
    """
    loc = Loc(path)
    try:
        table: dict[str, object] = tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as fault:
        reason = fault.strerror if isinstance(fault, OSError) else str(fault)
        raise CompileError(f"cannot read the space: {reason}", loc) from fault
    faults: list[str] = []
    axes = tuple(_axis(name, values, faults) for name, values in _fields(table, ""))
    if not axes:
        faults.append("names no axis")
    if any("is no axis" in fault or fault == "names no axis" for fault in faults):
        raise CompileError("; ".join(faults), loc, hint=f"axes: {', '.join(AXES)}")
    if faults:
        raise CompileError("; ".join(faults), loc)
    return Space(axes=axes)


def values_of(config: H2LearnConfig, paths: tuple[str, ...]) -> dict[str, Value | str]:
    """A configuration's own values of some axes; a tile that is no square is text."""
    found: dict[str, Value | str] = {}
    for path in paths:
        if path == TILE:
            tile = config.tile
            found[path] = tile.h if tile.h == tile.w else f"{tile.h}x{tile.w}"
            continue
        place: object = config
        for name in path.split("."):
            place = getattr(place, name)
        assert isinstance(place, int | float)
        found[path] = place
    return found


def configured(base: H2LearnConfig, changes: Mapping[str, Value]) -> H2LearnConfig:
    """The base with some fields changed; the buffers are left as they are.

    A sub-LUT gets the entries that its share of the window needs, a group of PEs an ID buffer each.
    Raises: CompileError for more sub-LUTs than taps.
    """
    config = base
    for engine, name, taps in (
        (Queue.FE, "forward", base.forward.taps_per_pe),
        (Queue.WUE, "weight_update", base.weight_update.window),
    ):
        sub_luts = changes.get(f"{name}.sub_luts")
        if sub_luts is not None:
            if sub_luts > taps:
                raise CompileError(f"{name}.sub_luts is {sub_luts}, a PE has {taps} taps", Loc(base.name))
            config = with_partition(config, engine, int(sub_luts))
    for path, value in changes.items():
        if not path.endswith(".sub_luts"):
            config = _with(config, path, value)
    return config


def _with(config: H2LearnConfig, path: str, value: Value) -> H2LearnConfig:
    if path == TILE:
        return replace(config, tile=replace(config.tile, h=int(value), w=int(value)))
    part, _, name = path.rpartition(".")
    if not part:
        return replace(config, sub_batch=int(value))
    changes = {name: value}
    if path == "backward.pe_group":
        changes["id_buffers"] = value
    return replace(config, **{part: replace(getattr(config, part), **changes)})


def _fields(table: Mapping[str, object], prefix: str) -> list[tuple[str, object]]:
    found: list[tuple[str, object]] = []
    for name, value in table.items():
        nested = isinstance(value, Mapping)
        found += (
            _fields(value, f"{prefix}{name}.") if isinstance(value, Mapping) and nested else [(prefix + name, value)]
        )
    return found


def _axis(path: str, values: object, faults: list[str]) -> Axis:
    if path not in AXES:
        faults.append(f"{path} is no axis")
        return Axis(path=path, values=())
    if not isinstance(values, list):
        faults.append(f"{path} is {_shown(values)}, must be a list of values")
        return Axis(path=path, values=())
    if not values:
        faults.append(f"{path} has no values")
    kind = (int, float) if path in _REAL else (int,)
    for place, value in enumerate(values):
        if isinstance(value, bool) or not isinstance(value, kind):
            what = "a number" if path in _REAL else "int"
            faults.append(f"{path}[{place}] is {_shown(value)}, must be {what}")
        elif not (0 < value <= LARGEST or (value == 0 and path.endswith(MAY_BE_ZERO))):
            faults.append(f"{path}[{place}] is {_shown(value)}, must be positive and at most {LARGEST}")
        elif value in values[:place]:
            faults.append(f"{path} names {value} twice")
    return Axis(path=path, values=tuple(values))


def _shown(value: object) -> str:
    match value:
        case int() if abs(value) > LARGEST:
            return "a huge integer"
        case bool() | int() | float() | str():
            return repr(value)
    return f"a {type(value).__name__}"
