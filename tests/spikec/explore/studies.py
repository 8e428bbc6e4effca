"""A small exploration: digits-fc and digits-conv over a few dozen designs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

SPACE = """
tile = [4, 8]
sub_batch = [2, 4, 5]
[forward]
rows = [16, 48, 64]
sub_luts = [3, 9]
[backward]
cols = [32, 64]
[memory]
bytes_per_cycle = [80.5, 160]
"""
SIZE = 2 * 3 * 3 * 2 * 2 * 2
MODEL = ("explore", "zoo:digits-conv", "--timesteps", "4")


def space_file(folder: Path, text: str = SPACE) -> Path:
    """The space as a file."""
    path = folder / "space.toml"
    path.write_text(text)
    return path


def records(path: Path) -> list[dict[str, Any]]:
    """The whole lines behind the header."""
    lines = path.read_bytes().split(b"\n")[:-1]
    return [json.loads(line) for line in lines[1:]]
