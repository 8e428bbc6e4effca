"""Files that appear whole or not at all."""

from __future__ import annotations

import contextlib
import os
import uuid
from pathlib import Path

from hwmodel.errors import CompileError, Loc


def write_whole(path: Path, content: bytes, *, example: str) -> None:
    """Write a file beside its place, then rename it.

    example: a name of such a file, for who gives a folder.
    Raises: CompileError if it cannot be written; nothing is left behind.
    """
    loc = Loc(str(path))
    beside = path.parent / f".{uuid.uuid4().hex}.part"
    try:
        if path.exists() and not path.is_file():
            raise CompileError("is a folder or device, not a file", loc, hint=f"name a file, as {example}")
        beside.write_bytes(content)
        os.replace(beside, path)
    except (OSError, ValueError) as fault:  # a NUL in the path is a ValueError
        is_there = isinstance(fault, ValueError) or path.parent.is_dir()
        reason = fault.strerror if isinstance(fault, OSError) else str(fault)
        raise CompileError(
            f"cannot be written: {reason}", loc, hint="" if is_there else "make the folder first"
        ) from fault
    finally:
        with contextlib.suppress(OSError, ValueError):  # gone when replaced, or never made
            beside.unlink()
