"""Comparison with texts that stand beside the tests; the fixture is in conftest.py."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

Golden = Callable[[str, str], None]  # name, text


def compare(path: Path, text: str, *, update: bool) -> None:
    """Fail unless the file holds the text; or write it."""
    if update:
        path.parent.mkdir(exist_ok=True)
        path.write_text(text, encoding="utf-8")
        return
    if not path.exists():
        pytest.fail(f"{path} is missing; write it with pytest --update-golden, and read it before it is kept")
    assert text == path.read_text(encoding="utf-8"), f"{path} differs; if that is right: --update-golden"
