"""The results file: a header, then a line for every finished point, which no later run evaluates again."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from io import FileIO
from pathlib import Path

from hwmodel.components import AreaTable, Component, EnergyTable, area_table, energy_table
from hwmodel.errors import CompileError, Loc
from spikec import __version__
from spikec.explore.points import PointResult, Study
from spikec.explore.space import Space

FORMAT = 1

Header = Mapping[str, object]


def header_of(study: Study, space: Space, *, network: str, densities: str, points: int, seed: int) -> Header:
    """What the results rest on; the digest covers layers, configuration and the tables of components too."""
    shown: dict[str, object] = {
        "format": FORMAT,
        "version": __version__,
        "network": network,
        "mode": str(study.mode),
        "densities": densities,
        "timesteps": study.timesteps,
        "samples_between_updates": study.batch,
        "base": study.base.name,
        "points": points,
        "seed": seed,
        "axes": {axis.path: list(axis.values) for axis in space.axes},
    }
    everything = {**shown, "study": asdict(study), "area": _values(area_table()), "energy": _values(energy_table())}
    digest = hashlib.sha256(json.dumps(everything, sort_keys=True).encode()).hexdigest()
    return {"exploration": digest, **shown}


def _values(table: AreaTable | EnergyTable) -> dict[str, float]:
    rows = ((field.name, getattr(table, field.name)) for field in fields(table))
    return {name: row.value for name, row in rows if isinstance(row, Component)}


@dataclass(frozen=True, slots=True, kw_only=True)
class ResultsFile:
    """The file of one exploration."""

    path: Path
    header: Header

    def read(self) -> dict[int, PointResult]:
        """Finished points by number; a last line without an end was cut off and does not count.

        Raises: CompileError for a file that is damaged or of another exploration.
        """
        try:
            content = self.path.read_bytes()
        except FileNotFoundError:
            return {}
        except OSError as fault:
            raise CompileError(f"cannot be read: {fault.strerror}", self._loc) from fault
        if not content:
            return {}
        first, *lines = content[: content.rfind(b"\n") + 1].splitlines() or [content]
        self._check_header(first)
        found: dict[int, PointResult] = {}
        for number, line in enumerate(lines, start=2):
            try:
                result = PointResult.from_json(line.decode())
            except (ValueError, KeyError, TypeError, AttributeError) as fault:
                place = Loc(str(self.path), number)
                raise CompileError("is no result of a point", place, hint="delete that line, or the file") from fault
            found[result.number] = result
        return found

    @contextmanager
    def appending(self) -> Iterator[Appender]:
        """The file, held against other runs and made if it is missing, without the line that was cut off.

        Raises: CompileError if it cannot be written or another run holds it.
        """
        try:
            if not self.path.exists() or not self.path.stat().st_size:
                self._replace(())
            file = self.path.open("r+b", buffering=0)  # closing must not try again what did not fit
        except OSError as fault:
            raise self._unwritable(fault) from fault
        with file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as fault:
                raise CompileError("another run is writing it", self._loc, hint="name another file") from fault
            try:
                file.truncate(file.read().rfind(b"\n") + 1)
                file.seek(0, os.SEEK_END)
            except OSError as fault:
                raise self._unwritable(fault) from fault
            yield Appender(file=file, path=self.path)

    def finish(self, results: Sequence[PointResult]) -> None:
        """All points in their order, whatever order they were finished in."""
        try:
            self._replace(results)
        except OSError as fault:
            raise self._unwritable(fault) from fault

    def _replace(self, results: Sequence[PointResult]) -> None:
        """Written beside, then renamed; what a killed run left beside is overwritten."""
        beside = self.path.with_name(self.path.name + ".part")
        lines = (json.dumps(self.header), *(result.as_json() for result in results))
        try:
            with beside.open("w", encoding="utf-8") as file:
                file.writelines(f"{line}\n" for line in lines)
                file.flush()
                os.fsync(file.fileno())
            os.replace(beside, self.path)
        except OSError:
            with contextlib.suppress(OSError):
                beside.unlink()
            raise

    def _check_header(self, line: bytes) -> None:
        try:
            found = json.loads(line)
        except ValueError:
            found = None
        if not isinstance(found, dict) or "exploration" not in found:
            raise CompileError("holds no exploration", self._loc, hint="name another file; this one stays as it is")
        if found["exploration"] != self.header["exploration"]:
            differing = [name for name in self.header if found.get(name) != self.header[name]][1:]
            what = ", ".join(differing) or "the network's layers, the configuration or the component tables"
            raise CompileError(
                f"is of another exploration: {what} differ{'s' if len(differing) == 1 else ''}",
                self._loc,
                hint="repeat that one's options, or name another file",
            )

    def _unwritable(self, fault: OSError) -> CompileError:
        return CompileError(f"cannot be written: {fault.strerror}", self._loc)

    @property
    def _loc(self) -> Loc:
        return Loc(str(self.path))


@dataclass(frozen=True, slots=True, kw_only=True)
class Appender:
    """The open end of the file."""

    file: FileIO
    path: Path

    def add(self, result: PointResult) -> None:
        """A finished point; it is in the file when this returns.

        Raises: CompileError if it cannot be written; what of it fitted is a line without an end.
        """
        left = f"{result.as_json()}\n".encode()
        try:
            while left:
                left = left[self.file.write(left) :]
        except OSError as fault:
            raise CompileError(f"cannot be written: {fault.strerror}", Loc(str(self.path))) from fault
