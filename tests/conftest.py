"""Fixtures of all tests."""

from __future__ import annotations

import pytest

from tests.golden import Golden, compare


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--update-golden", action="store_true", help="write golden texts, do not compare")


@pytest.fixture
def golden(request: pytest.FixtureRequest) -> Golden:
    """Compare a text with `golden/NAME` beside the test; call it as golden(name, text)."""
    folder = request.path.parent / "golden"
    update = bool(request.config.getoption("--update-golden"))
    return lambda name, text: compare(folder / name, text, update=update)
