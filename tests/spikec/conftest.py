"""A cache folder of the tests' own, and a working folder for each test."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.spikec.command import spikec

WriteModule = Callable[[str, str], None]


@pytest.fixture(scope="session", autouse=True)
def cache_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Trained networks are kept for the session only."""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SPIKEC_CACHE", str(folder))
        yield folder


@pytest.fixture(scope="module")
def digits_program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`zoo:digits-conv`, untrained, compiled with the defaults."""
    path = tmp_path_factory.mktemp("digits") / "digits.h2l"
    assert spikec("compile", "zoo:digits-conv", "-o", path).code == 0
    return path


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder, with an empty folder `out` in it."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "out").mkdir()
    return tmp_path


@pytest.fixture
def write_module(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> WriteModule:
    """Write a Python module into the working folder; no test sees that of another."""

    def write(name: str, text: str) -> None:
        (workplace / f"{name}.py").write_text(text)
        importlib.invalidate_caches()
        monkeypatch.delitem(sys.modules, name, raising=False)

    return write
