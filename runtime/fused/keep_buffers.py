"""glibc's allocator told to keep freed memory, so that activations do not fault in fresh pages at each step."""

from __future__ import annotations

import ctypes
import functools
import os

# parameters of mallopt in glibc's malloc.h
_M_TRIM_THRESHOLD = -1
_M_TOP_PAD = -2
_M_MMAP_MAX = -4
_TOP_PAD_BYTES = 64 << 20
SWITCH = "SPIKEC_KEEP_BUFFERS"  # "0": leave the allocator as it is


@functools.cache
def keep_buffers() -> bool:
    """Let this process reuse freed memory of any size instead of handing it back; whether it does now.

    Nothing changes where the environment says SPIKEC_KEEP_BUFFERS=0, where it sets the allocator itself
    (MALLOC_MMAP_MAX_ and the like), or where the C library is not glibc. Memory once used stays with the process.
    """
    if os.environ.get(SWITCH) == "0" or any(name.startswith("MALLOC_") for name in os.environ):
        return False
    library = ctypes.CDLL(None)
    if not hasattr(library, "gnu_get_libc_version"):
        return False
    settings = ((_M_MMAP_MAX, 0), (_M_TRIM_THRESHOLD, -1), (_M_TOP_PAD, _TOP_PAD_BYTES))
    taken = [library.mallopt(parameter, value) for parameter, value in settings]
    return all(result == 1 for result in taken)
