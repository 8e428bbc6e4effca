"""Reads a NIR file: the HDF5 library works in a process of its own, what it says is checked here."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from compiler.ir import CompileError, Loc
from frontends.nir_file.nodes import NirNode, Text, Tree, Values, node_of

_CHILD = Path(__file__).with_name("hdf5_child.py")
_SIGNATURE = b"\x89HDF\r\n\x1a\n"
_MAX_FILE_BYTES = 4 << 30
_SPARE_BYTES = 1 << 29  # arrays of one repeated number compress a thousandfold
_SECONDS = 2  # the library reads 200 MB in one; on damaged files it may loop for ever
_BYTES_PER_SECOND = 3_000_000  # what files of many small arrays need, on a slow machine
_START_SECONDS = 60  # of wall time, for a child on a machine that is busy
DAMAGED = "it is cut off, damaged or of another kind; export the network again"


def read_nir(path: Path) -> NirNode:
    """The node that a NIR file holds, a graph or a single one.

    No other file is opened: links to other files and values kept in them are refused.
    Raises: CompileError if the file cannot be read, is no NIR file, or asks for what no NIR file needs.
    """
    loc = Loc(str(path))
    image = _image(path, loc)
    needs_h5py(loc)
    return node_of_answer(_answer(image, loc), str(path))


def node_of_answer(answer: bytes, file: str) -> NirNode:
    """The node of a file, from what `hdf5_child.py` says of it.

    Raises: CompileError as `read_nir`.
    """
    loc = Loc(file)
    length = int.from_bytes(answer[:8], "little")
    header = json.loads(answer[8 : 8 + length])
    if "refusal" in header:
        place = f"{header['place']} " if header["place"] else ""
        reason = " ".join(str(header["refusal"]).split())[:300]
        raise CompileError(f"{place}{reason}", loc, hint=DAMAGED)
    node = _Arrays(answer, 8 + length).group(header["members"]).get("node")
    if not isinstance(node, dict):
        raise CompileError("is not a NIR file: it has no group named node", loc, hint=DAMAGED)
    return node_of(node, file)


def needs_h5py(loc: Loc) -> None:
    """Make sure that h5py is installed.

    Raises: CompileError that says how to install it.
    """
    if find_spec("h5py") is None:
        raise CompileError("NIR files need the package h5py", loc, hint="pip install 'spikec[nir]'")


def _image(path: Path, loc: Loc) -> bytes:
    try:
        if path.exists() and not path.is_file():
            raise CompileError("is a folder or device, not a NIR file", loc)
        with path.open("rb") as file:
            image = file.read(_MAX_FILE_BYTES + 1)
    except OSError as fault:
        raise CompileError(f"cannot be read: {fault.strerror}", loc) from fault
    if len(image) > _MAX_FILE_BYTES:
        raise CompileError(f"is larger than {_MAX_FILE_BYTES >> 30} GiB", loc)
    if not image.startswith(_SIGNATURE):
        raise CompileError("is not a NIR file: it is no HDF5 file", loc, hint=DAMAGED)
    return image


def _answer(image: bytes, loc: Loc) -> bytes:
    """What the child says."""
    seconds = _SECONDS + len(image) // _BYTES_PER_SECOND
    limits = (str(seconds), str(_SPARE_BYTES + 2 * len(image)))
    command = [sys.executable, "-P", str(_CHILD), *limits]
    environment = {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "HDF5_PLUGIN_PATH": "::"}  # no plug-ins
    try:
        done = subprocess.run(
            command,
            input=image,
            capture_output=True,
            timeout=_START_SECONDS + 10 * seconds,
            env={**os.environ, **environment},
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise CompileError("reading it takes too long", loc, hint=DAMAGED) from None
    except OSError as fault:
        raise CompileError(f"the process that reads HDF5 cannot be started: {fault.strerror}", loc) from fault
    if done.returncode < 0:
        name = signal.Signals(-done.returncode).name
        too_long = -done.returncode in (signal.SIGXCPU, signal.SIGKILL)
        what = "reading it takes too long" if too_long else f"the HDF5 library crashes on it ({name})"
        raise CompileError(what, loc, hint=DAMAGED)
    if done.returncode:
        lines = done.stderr.decode(errors="replace").strip().splitlines() or [f"exit code {done.returncode}"]
        raise CompileError(f"the process that reads HDF5 fails: {lines[-1]}", loc)
    return done.stdout


class _Arrays:
    """The arrays behind the header, handed out in order."""

    def __init__(self, content: bytes, at: int) -> None:
        self._content = content
        self._at = at

    def group(self, members: dict[str, object]) -> Tree:
        return {name: self._member(member) for name, member in members.items()}

    def _member(self, member: object) -> Tree | Values | Text | None:
        match member:
            case {"group": dict() as members}:
                return self.group(members)
            case {"text": str() | list() as text}:
                return text
            case {"array": str() as dtype, "shape": list() as shape}:
                count = math.prod(shape)
                array = np.frombuffer(self._content, np.dtype(dtype), count, self._at).reshape(shape)
                self._at += array.nbytes
                return array
        return None
