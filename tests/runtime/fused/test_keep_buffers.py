"""Freed memory is used again once glibc is told so, and only then."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys

import pytest

PAGES = 16384  # of 4 KB in one buffer of 64 MB
PROGRAM = """
import json, resource, torch
from runtime.fused.keep_buffers import keep_buffers
kept = keep_buffers()
faults = []
for _ in range(12):  # glibc uses a block again once its small lists are full of what alignment cut off
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.empty(1 << 24).fill_(1.0)
    faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
print(json.dumps({"kept": kept, "again": keep_buffers(), "faults": faults}))
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="mallopt is glibc's")
@pytest.mark.parametrize("setting", [{}, {"SPIKEC_KEEP_BUFFERS": "0"}, {"MALLOC_ARENA_MAX": "8"}], ids=str)
def test_freed_memory_is_used_again(setting: dict[str, str]) -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    environment.pop("SPIKEC_KEEP_BUFFERS", None)
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        env={**environment, "THP_MEM_ALLOC_ENABLE": "0", **setting},
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    found = json.loads(done.stdout)
    assert found["kept"] is found["again"] is (setting == {})
    later = found["faults"][9:]
    if found["kept"]:
        assert max(later) < PAGES / 100
    else:  # the pages are new each time, be they small or huge ones
        assert min(later) > PAGES / 1024
