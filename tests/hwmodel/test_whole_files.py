"""Files appear whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from hwmodel.errors import CompileError
from hwmodel.whole_files import write_whole


def test_a_file_is_made_and_replaced(tmp_path: Path) -> None:
    for content in (b"first", b"second"):
        write_whole(tmp_path / "net.spk", content, example="net.spk")
        assert (tmp_path / "net.spk").read_bytes() == content
    assert os.listdir(tmp_path) == ["net.spk"]


def test_refusals_leave_nothing(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    refused = {
        "folder": "folder: error: is a folder or device, not a file\n  hint: name a file, as net.spk",
        "missing/net.spk": "error: cannot be written: No such file or directory\n  hint: make the folder first",
        "nul\0.spk": "error: cannot be written: embedded null byte",
    }
    for name, message in refused.items():
        with pytest.raises(CompileError) as caught:
            write_whole(tmp_path / name, b"content", example="net.spk")
        assert message in str(caught.value)
    assert os.listdir(tmp_path) == ["folder"]


def test_a_failed_write_keeps_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "net.spk"
    path.write_bytes(b"old")

    def full(self: Path, data: bytes) -> int:
        self.touch()
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(CompileError, match=r"cannot be written: No space left on device"):
        write_whole(path, b"new", example="net.spk")
    monkeypatch.undo()
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["net.spk"]
