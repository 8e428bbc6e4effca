"""A lean process that reads damaged HDF5 images, each in a child with the limits of the real reader."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from frontends.nir_file.hdf5_child import answer, limit
from tests.mutations import mutated


def told(image: bytes, bytes_left: int) -> tuple[int, bytes]:
    """The signal that ended the child, or 0, and its answer."""
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        os.close(reading)
        os.dup2(writing, 0)  # limits leave the first three only
        limit(1, 4 * bytes_left)
        with os.fdopen(0, "wb", closefd=False) as out:
            out.write(b"".join(answer(image, bytes_left)))
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        content = pipe.read()
    _, status = os.waitpid(child, 0)
    return (os.WTERMSIG(status), b"") if os.WIFSIGNALED(status) else (0, content)


def main() -> None:
    """Arguments: a file, the first seed, the last one, the limit in bytes. Answers go to stdout, with lengths."""
    content, bytes_left = Path(sys.argv[1]).read_bytes(), int(sys.argv[4])
    for seed in range(int(sys.argv[2]), int(sys.argv[3])):
        signal, said = told(mutated(content, seed), bytes_left)
        sys.stdout.buffer.write(signal.to_bytes(4, "little") + len(said).to_bytes(8, "little") + said)
        sys.stdout.buffer.flush()


if __name__ == "__main__":
    main()
