"""A process of its own that turns an HDF5 image into groups and arrays; `read.py` starts it as a script.

The C library is written for files that can be trusted: a damaged one may crash it, loop in it, ask for all
memory, or make it open other files. Here it costs this process only, which opens no file and has limits of
processor time and memory. The image comes on stdin; on stdout go the length of a JSON header in 8 bytes, the
header, and the arrays' bytes one after another.
"""

from __future__ import annotations

import json
import math
import os
import resource
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import h5py
import numpy as np

MAX_DEPTH = 24
MAX_OBJECTS = 200_000
# gzip, shuffle, fletcher32, lzf: they are part of h5py; any other makes the library look for a plug-in
FILTERS = (h5py.h5z.FILTER_DEFLATE, h5py.h5z.FILTER_SHUFFLE, h5py.h5z.FILTER_FLETCHER32, h5py.h5z.FILTER_LZF)
SPARE = 1 << 28  # bytes of memory for the library itself
POINTER_BYTES = 16  # what a string of variable length takes beside its characters

Json = None | str | int | list["Json"] | dict[str, "Json"]


class RefusedError(Exception):
    """What cannot be in a NIR file; the place in it, and what was found."""


@dataclass(slots=True)
class Walk:
    """One walk through a file: how many bytes of arrays may still come, and what has been met."""

    bytes_left: int
    seen: set[int] = field(default_factory=set)
    arrays: list[bytes] = field(default_factory=list)

    def group(self, group: h5py.Group, path: str, depth: int) -> dict[str, Json]:
        """A group's members by name."""
        if depth > MAX_DEPTH:
            raise RefusedError(path, "groups are nested too deep")
        self._meet(group, path)
        members: dict[str, Json] = {}
        for name in group:
            place = f"{path}/{name}"
            link = group.get(name, getlink=True)
            if not isinstance(link, h5py.HardLink):
                raise RefusedError(place, f"is a link elsewhere ({type(link).__name__}), not data of this file")
            member = group[name]
            if isinstance(member, h5py.Group):
                members[name] = {"group": self.group(member, place, depth + 1)}
            elif isinstance(member, h5py.Dataset):
                members[name] = self.dataset(member, place)
            else:
                raise RefusedError(place, "is neither a group nor a dataset")
        return members

    def dataset(self, data: h5py.Dataset, path: str) -> Json:
        """An array, a text, texts, or null for a dataset without a value."""
        self._meet(data, path)
        plist = data.id.get_create_plist()
        if data.is_virtual or plist.get_external_count():
            raise RefusedError(path, "keeps its values in another file")
        filters = [plist.get_filter(i)[0] for i in range(plist.get_nfilters())]
        if any(code not in FILTERS for code in filters):
            raise RefusedError(path, f"is compressed with a filter other than gzip and lzf (codes {filters})")
        if data.shape is None:
            return None
        text = h5py.check_string_dtype(data.dtype)
        if text is None and (data.dtype.kind not in "fiub" or data.dtype.itemsize > 8):
            raise RefusedError(path, f"holds {data.dtype}, neither numbers nor text")
        self._spend(math.prod(data.shape) * (data.dtype.itemsize + (POINTER_BYTES if text else 0)), path)
        if text is not None:
            return {"text": self._texts(np.asarray(data[()]).tolist(), path)}
        value = np.asarray(data[()])
        value = np.ascontiguousarray(value, value.dtype.newbyteorder("<")).reshape(data.shape)
        self.arrays.append(value.tobytes())
        return {"array": value.dtype.str, "shape": list(value.shape)}

    def _texts(self, value: object, path: str) -> Json:
        if isinstance(value, list):
            return [self._texts(item, path) for item in value]
        if not isinstance(value, bytes):
            raise RefusedError(path, "holds no text")
        self._spend(len(value), path)
        try:
            return value.decode()
        except UnicodeDecodeError:
            raise RefusedError(path, "is not UTF-8 text") from None

    def _spend(self, size: int, path: str) -> None:
        self.bytes_left -= size
        if self.bytes_left < 0:
            raise RefusedError(path, f"is too large for its file ({size} bytes)")

    def _meet(self, item: h5py.Group | h5py.Dataset, path: str) -> None:
        address = h5py.h5o.get_info(item.id).addr
        if address in self.seen:
            raise RefusedError(path, "is the same object as another one in the file")
        self.seen.add(address)
        if len(self.seen) > MAX_OBJECTS:
            raise RefusedError(path, "the file has too many objects")


def limit(seconds: int, memory: int) -> None:
    """From here on: so much more processor time and memory, and no file that is not open yet."""
    size = Path("/proc/self/statm")
    if size.exists():
        most = int(size.read_text().split()[0]) * resource.getpagesize() + memory
        resource.setrlimit(resource.RLIMIT_AS, (most, most))
    last = math.ceil(time.process_time()) + seconds
    resource.setrlimit(resource.RLIMIT_CPU, (last, last + 1))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, 3))


def read(image: bytes, bytes_left: int) -> tuple[Json, list[bytes]]:
    """The members of the file's root group, and the arrays' bytes in the order in which they are met."""
    walk = Walk(bytes_left)
    with h5py.File(h5py.h5f.open_file_image(image), "r") as file:
        return walk.group(file, "", 0), walk.arrays


def answer(image: bytes, bytes_left: int) -> list[bytes]:
    """What goes on stdout, in parts: the file's members, or why they are refused."""
    arrays: list[bytes] = []
    header: Json
    try:
        members, arrays = read(image, bytes_left)
        header = {"members": members}
    except RefusedError as fault:
        header = {"place": str(fault.args[0]), "refusal": str(fault.args[1])}
    except MemoryError:
        header = {"place": "", "refusal": "asks for more memory than its size can need"}
    except Exception as fault:  # the library reports damage as exceptions of many kinds
        header = {"place": "", "refusal": f"the HDF5 library cannot read it: {type(fault).__name__}: {fault}"}
    text = json.dumps(header).encode()
    return [len(text).to_bytes(8, "little"), text, *arrays]


def main() -> None:
    seconds, bytes_left = int(sys.argv[1]), int(sys.argv[2])
    image = sys.stdin.buffer.read()
    limit(seconds, 2 * bytes_left + SPARE)
    for part in answer(image, bytes_left):
        sys.stdout.buffer.write(part)
    sys.stdout.buffer.flush()


if __name__ == "__main__":
    main()
    os._exit(0)  # the library's own clean-up may still crash on what it has read
