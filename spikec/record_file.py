"""The file of a long run: a header, then a line for every finished record, which no later run makes again."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from typing import ClassVar, Generic, TypeVar

from hwmodel.errors import CompileError, Loc

Header = Mapping[str, object]
Record = TypeVar("Record")


def digest_of(content: Mapping[str, object]) -> str:
    """SHA-256 of what a run rests on."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordFile(Generic[Record]):
    """The file of one run, as JSON lines; its subclasses say what a record is.

    The header names the kind of run, with the digest of all that the run rests on; another run's file is refused.
    """

    kind: ClassVar[str]  # of run, as in "an exploration"; also the digest's name in the header
    record: ClassVar[str]  # what a line is
    unnamed: ClassVar[str]  # what of the digest the header does not show

    path: Path
    header: Header

    @abstractmethod
    def parsed(self, line: str) -> Record:
        """What a line says. Raises: ValueError, KeyError, TypeError or AttributeError for any other text."""

    @abstractmethod
    def written(self, record: Record) -> str:
        """A record's line, without its end."""

    @abstractmethod
    def number(self, record: Record) -> int:
        """Its place in the order of the finished file."""

    def read(self) -> dict[int, Record]:
        """Finished records by number; a last line without an end was cut off and does not count.

        Raises: CompileError for a file that is damaged or of another run.
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
        found: dict[int, Record] = {}
        for number, line in enumerate(lines, start=2):
            try:
                record = self.parsed(line.decode())
            except (ValueError, KeyError, TypeError, AttributeError) as fault:
                place = Loc(str(self.path), number)
                raise CompileError(f"is no {self.record}", place, hint="delete that line, or the file") from fault
            found[self.number(record)] = record
        return found

    @contextmanager
    def appending(self) -> Iterator[Appender[Record]]:
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
            yield Appender(file=file, store=self)

    def finish(self, records: Sequence[Record]) -> None:
        """All records in their order, whatever order they were finished in.

        Raises: CompileError if they cannot be written; the file then stays as it is.
        """
        try:
            self._replace(records)
        except OSError as fault:
            raise self._unwritable(fault) from fault

    def _replace(self, records: Sequence[Record]) -> None:
        """Written beside, then renamed; what a killed run left beside is overwritten."""
        beside = self.path.with_name(self.path.name + ".part")
        lines = (json.dumps(self.header), *(self.written(record) for record in records))
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
        found = header_in(line, self.kind, self.path)
        if found[self.kind] != self.header[self.kind]:
            differing = [name for name in self.header if found.get(name) != self.header[name]][1:]
            what = ", ".join(differing) or self.unnamed
            raise CompileError(
                f"is of another {self.kind}: {what} differ{'s' if len(differing) == 1 else ''}",
                self._loc,
                hint="repeat that one's options, or name another file",
            )

    def _unwritable(self, fault: OSError) -> CompileError:
        return CompileError(f"cannot be written: {fault.strerror}", self._loc)

    @property
    def _loc(self) -> Loc:
        return Loc(str(self.path))


def header_in(line: bytes, kind: str, path: Path) -> dict[str, object]:
    """The header in a file's first line. Raises: CompileError if it is none of that kind of run."""
    try:
        found = json.loads(line)
    except ValueError:
        found = None
    if not isinstance(found, dict) or kind not in found:
        raise CompileError(f"holds no {kind}", Loc(str(path)), hint="name another file; this one stays as it is")
    return found


@dataclass(frozen=True, slots=True, kw_only=True)
class Appender(Generic[Record]):
    """The open end of the file."""

    file: FileIO
    store: RecordFile[Record]

    def add(self, record: Record) -> None:
        """A finished record; it is in the file when this returns.

        Raises: CompileError if it cannot be written; what of it fitted is a line without an end.
        """
        left = f"{self.store.written(record)}\n".encode()
        try:
            while left:
                left = left[self.file.write(left) :]
        except OSError as fault:
            raise CompileError(f"cannot be written: {fault.strerror}", Loc(str(self.store.path))) from fault
