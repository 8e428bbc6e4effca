"""Reads the IDX files of MNIST and Fashion-MNIST, from a folder or from the npm package's archive."""

from __future__ import annotations

import gzip
import hashlib
import tarfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from hwmodel.errors import CompileError, Loc

Bytes = npt.NDArray[np.uint8]

_UBYTE = 8  # the format's code for unsigned bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class IdxSource:
    """One folder that may hold a data set: as raw files, as .gz files, or inside `archive`."""

    folder: Path
    archive: str = ""  # name of a .tgz in the folder, its files under package/data/

    def read(self, stem: str, pins: Mapping[str, str]) -> Bytes | None:
        """The array of `stem`, or None where this source has no such file.

        Raises: CompileError for a file that is no IDX file, or whose sha256 is not the pinned one.
        """
        found = self._bytes(stem)
        if found is None:
            return None
        content, loc = found
        pin = pins.get(stem)
        digest = hashlib.sha256(content).hexdigest()
        if pin is not None and digest != pin:
            raise CompileError(f"sha256 is {digest[:16]}..., not {pin[:16]}...", loc, hint="fetch it again")
        return parse_idx(content, loc)

    def _bytes(self, stem: str) -> tuple[bytes, Loc] | None:
        raw, packed = self.folder / stem, self.folder / f"{stem}.gz"
        archive = self.folder / self.archive
        try:
            if raw.is_file():
                return raw.read_bytes(), Loc(str(raw))
            if packed.is_file():
                return gzip.decompress(packed.read_bytes()), Loc(str(packed))
            if archive.is_file():
                return _member(archive, f"package/data/{stem}"), Loc(f"{archive}({stem})")
        except (OSError, EOFError, zlib.error, tarfile.TarError, KeyError) as error:
            reason = f"cannot be read: {error}"
            raise CompileError(reason, Loc(str(self.folder / stem)), hint="fetch it again") from error
        return None


def parse_idx(content: bytes, loc: Loc) -> Bytes:
    """Decode an IDX file of unsigned bytes: two zeros, type, rank, big-endian extents, values.

    Raises: CompileError unless header and length agree.
    """
    rank = content[3] if len(content) >= 4 else 0
    if content[:3] != bytes((0, 0, _UBYTE)) or not 1 <= rank <= 4 or len(content) < 4 + 4 * rank:
        raise CompileError("is no IDX file of unsigned bytes", loc)
    shape = tuple(int.from_bytes(content[4 + 4 * i : 8 + 4 * i], "big") for i in range(rank))
    values = np.frombuffer(content, dtype=np.uint8, offset=4 + 4 * rank)
    expected = 1
    for extent in shape:
        expected *= extent
    if values.size != expected:
        raise CompileError(f"holds {values.size} values, its header says {shape}", loc, hint="truncated?")
    return values.reshape(shape)


def _member(archive: Path, name: str) -> bytes:
    with tarfile.open(archive) as opened:
        file = opened.extractfile(name)
        if file is None:
            raise KeyError(name)
        return file.read()
