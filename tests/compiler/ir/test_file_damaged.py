"""Damaged `.spk` files are refused, or are graphs; never another exception, and no other file is opened."""

from __future__ import annotations

import resource
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from compiler.ir import CompileError
from compiler.ir.file import load_graph
from tests.mutations import mutated
from tests.spikec.graphs import saved

SECONDS = 5.0
GIBIBYTE = 1 << 20  # in the unit of ru_maxrss, KiB
OPENED: list[str] = []  # by the files that are being read


def watch(event: str, arguments: tuple[object, ...]) -> None:
    if event == "open":
        OPENED.append(str(arguments[0]))


sys.addaudithook(watch)


def damaged(tmp_path: Path, seeds: range) -> Counter[str]:
    """How the files of these seeds end."""
    content = saved(tmp_path / "net.spk").read_bytes()
    path, ends = tmp_path / "damaged.spk", Counter[str]()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for seed in seeds:
        path.write_bytes(mutated(content, seed))
        OPENED.clear()
        begin = time.perf_counter()
        try:
            load_graph(path)
            ends["graph"] += 1
        except CompileError:
            ends["refused"] += 1
        assert time.perf_counter() - begin < SECONDS, seed
        assert set(OPENED) <= {str(path)}, seed
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < GIBIBYTE
    return ends


def test_damaged_files(tmp_path: Path) -> None:
    ends = damaged(tmp_path, range(150))
    assert ends["refused"] > 0
    assert ends["graph"] > 0, "a changed weight is still a weight"


@pytest.mark.slow
def test_many_damaged_files(tmp_path: Path) -> None:
    assert sum(damaged(tmp_path, range(1_000, 3_000)).values()) == 2_000
