"""Measurements of this machine, kept between runs in one JSON file of a folder."""

from __future__ import annotations

import json
import os
import tempfile
import warnings
from abc import abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Generic, TypeVar

Entry = TypeVar("Entry")


class CacheFileWarning(UserWarning):
    """A file of measurements could not be read or written."""


@dataclass(frozen=True, slots=True)
class CacheFile(Generic[Entry]):
    """One file in a folder; damaged, it counts as empty and is written anew. Subclasses say what an entry is.

    Processes may write at once: each puts a whole file in place, so that an entry may be lost, but no file torn.
    """

    file_name: ClassVar[str]
    format: ClassVar[int]  # raised when a measurement means something else
    entries: ClassVar[str]  # what they are, in words and as the file's key

    folder: Path

    @abstractmethod
    def parsed(self, value: object) -> Entry:
        """An entry of the file. Raises: ValueError, LookupError, TypeError or AttributeError for anything else."""

    @abstractmethod
    def written(self, entry: Entry) -> object:
        """What stands for it in JSON."""

    def find(self, key: str) -> Entry | None:
        """The entry kept under the key."""
        return self._read().get(key)

    def keep(self, key: str, entry: Entry) -> None:
        """Keep the entry, with a warning if the folder cannot be written."""
        every = {name: self.written(value) for name, value in sorted({**self._read(), key: entry}.items())}
        text = json.dumps({"format": self.format, self._key: every}, indent=1) + "\n"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            _replace(self.folder / self.file_name, text)
        except OSError as error:
            warnings.warn(f"{self.entries} are not kept: {error}", CacheFileWarning, stacklevel=3)

    @property
    def _key(self) -> str:
        return self.entries.rsplit(" ", 1)[-1]

    def _read(self) -> dict[str, Entry]:
        path = self.folder / self.file_name
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            if content["format"] != self.format:
                return {}
            return {str(key): self.parsed(entry) for key, entry in content[self._key].items()}
        except (FileNotFoundError, NotADirectoryError):
            return {}
        except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
            warnings.warn(f"{path}: {error!r}; they are measured again", CacheFileWarning, stacklevel=4)
            return {}


def _replace(path: Path, text: str) -> None:
    """Write beside, then rename: whoever reads sees the old file or the new one."""
    handle, beside = tempfile.mkstemp(dir=path.parent, prefix=path.stem, suffix=".part")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
        os.replace(beside, path)
    except BaseException:
        Path(beside).unlink(missing_ok=True)
        raise
