"""The command that compiles a network for a GPU: what it prints and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from compiler.fused.cuda.manifest import read_manifest
from hwmodel.errors import CompileError
from spikec.commands.compile_cuda import CudaRequest, run_compile_cuda

pytestmark = pytest.mark.usefixtures("no_nvcc")


@pytest.fixture
def no_nvcc(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("compiler.fused.cuda.toolchain.shutil.which", lambda name: None)


def request(folder: Path, **fields: object) -> CudaRequest:
    given: dict[str, object] = {
        "model": "zoo:digits-fc",
        "output": folder,
        "arch": "sm_80",
        "batch": 16,
        "timesteps": 4,
    }
    return CudaRequest(**(given | fields))  # type: ignore[arg-type]


def test_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_compile_cuda(request(tmp_path), as_json=True) == 0
    result = json.loads(capsys.readouterr().out)
    report = read_manifest(Path(result["manifest"]))
    assert (result["arch"], result["batch"], result["binary"]) == ("sm_80", 16, None)
    assert [launch["symbol"] for launch in result["launches"]] == [launch.symbol for launch in report.launches]
    assert [launch["bytes_moved"] for launch in result["launches"]] == [each.bytes_moved for each in report.launches]
    assert all(launch["registers"] is None for launch in result["launches"])
    assert Path(result["source"]).is_file()


def test_text(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_compile_cuda(request(tmp_path), as_json=False) == 0
    text = capsys.readouterr().out
    report = read_manifest(tmp_path / "digits-fc.sm_80.json")
    rows = [line.split() for line in text.splitlines() if line.strip().startswith("layers.")]
    assert [(row[0], row[2]) for row in rows] == [(launch.layer, launch.name) for launch in report.launches]
    assert "no binary: nvcc is not on the path" in text
    training = sum(launch.training for launch in report.launches)
    assert f"{len(report.kernels)} kernels; a training step launches {training} and moves" in text


@pytest.mark.parametrize(
    ("fields", "message"),
    [({"arch": "sm80"}, "--arch: error: is 'sm80', which is no GPU"), ({"batch": 0}, "batch is 0, must be at least 1")],
)
def test_refusals(fields: dict[str, object], message: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(CompileError, match=message):
        run_compile_cuda(request(out, **fields), as_json=False)
    assert not out.exists()
