"""Fixtures of all tests."""

from __future__ import annotations

import os

import pytest
from hypothesis import HealthCheck, settings

from tests.golden import Golden, compare

# Shared machines are slow at times, so no deadline; under CI the examples are the same at every run.
settings.register_profile("default", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("ci", settings.get_profile("default"), derandomize=True)
settings.load_profile("ci" if os.environ.get("CI") else "default")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--update-golden", action="store_true", help="write golden texts, do not compare")


@pytest.fixture
def golden(request: pytest.FixtureRequest) -> Golden:
    """Compare a text with `golden/NAME` beside the test; call it as golden(name, text)."""
    folder = request.path.parent / "golden"
    update = bool(request.config.getoption("--update-golden"))
    return lambda name, text: compare(folder / name, text, update=update)
