"""Fixtures of all tests."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

Golden = Callable[[str, str], None]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--update-golden", action="store_true", help="write the golden texts instead of comparing")


@pytest.fixture
def golden(request: pytest.FixtureRequest) -> Golden:
    """Compare a text with `golden/NAME` beside the test; call it as golden(name, text)."""
    folder = request.path.parent / "golden"
    update = bool(request.config.getoption("--update-golden"))
    return lambda name, text: _compare(folder / name, text, update)


def _compare(path: Path, text: str, update: bool) -> None:
    if update:
        path.parent.mkdir(exist_ok=True)
        path.write_text(text, encoding="utf-8")
        return
    if not path.exists():
        pytest.fail(f"{path} is missing; write it with: pytest --update-golden, then read it before it is kept")
    assert text == path.read_text(encoding="utf-8"), f"{path} differs; if that is right: pytest --update-golden"
