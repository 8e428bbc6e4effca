"""Kernels for this machine's GPU: compiled once, kept, found again; what is said where none can be had."""

from __future__ import annotations

import contextlib
import re
import shutil
import threading
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

import runtime.fused.gpu_kernels
from compiler.fused.cuda.compile import compile_layers, manifest_file
from compiler.fused.cuda.description import CudaLayer, CudaReport
from compiler.fused.cuda.manifest import manifest_text, read_manifest
from compiler.fused.cuda.toolchain import Nvcc
from compiler.fused.gpu_launch import Extents, GpuKernel, GpuSchedule, schedule_for
from compiler.fused.population import Norm, Population
from hwmodel.errors import CompileError
from hwmodel.folders import VARIABLE
from runtime.fused.cuda_loader import CudaKernels
from runtime.fused.gpu_kernels import FOLDERS, compiled_before, compiled_here, launch_on_gpu
from tests.compiler.fused.cuda.cases import extents, population

NEURONS, SCHEDULE = population(4), GpuSchedule(tile=16)

# writes any binary, and says what ptxas would of each kernel
_FAKE = """#!/bin/sh
case "$1" in
  --version) echo "release {version}, V0" ;;
  --list-gpu-code) echo sm_80 sm_90 ;;
  *)
    echo call >> "{log}"
    for last; do :; done
    echo image > "$last"
    sed -n 's/.*__launch_bounds__([0-9]*) \\([a-z0-9_]*\\)(.*/\\1/p' $(printf '%s\\n' "$@" | grep '\\.cu$') | sort -u |
    while read name; do
      echo "Compiling entry function '$name'"
      echo "0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads"
      echo "Used 32 registers"
    done ;;
esac
"""


@dataclass(frozen=True, slots=True)
class FakeNvcc:
    """A compiler in a folder of its own."""

    folder: Path

    def find(self, version: str = "13.0") -> Nvcc:
        script = self.folder / f"nvcc-{version}"
        script.write_text(_FAKE.format(version=version, log=self._log))
        script.chmod(0o755)
        return Nvcc(str(script))

    @property
    def calls(self) -> int:
        return len(self._log.read_text().splitlines()) if self._log.exists() else 0

    @property
    def _log(self) -> Path:
        return self.folder / "calls"


@pytest.fixture
def fake(tmp_path: Path) -> FakeNvcc:
    folder = tmp_path / "bin"
    folder.mkdir()
    return FakeNvcc(folder)


def test_compiled_once(fake: FakeNvcc, tmp_path: Path) -> None:
    first = compiled_here(NEURONS, SCHEDULE, "sm_80", tmp_path, fake.find())
    assert compiled_here(NEURONS, SCHEDULE, "sm_80", tmp_path, fake.find()) == first
    assert fake.calls == 1
    others = [
        compiled_here(replace(NEURONS, decay=0.3), SCHEDULE, "sm_80", tmp_path, fake.find()),
        compiled_here(NEURONS, GpuSchedule(tile=8), "sm_80", tmp_path, fake.find()),
        compiled_here(NEURONS, GpuSchedule(index="int64", tile=16), "sm_80", tmp_path, fake.find()),
        compiled_here(NEURONS, SCHEDULE, "sm_90", tmp_path, fake.find()),
        compiled_here(NEURONS, SCHEDULE, "sm_80", tmp_path, fake.find("13.1")),
    ]
    assert len({first, *others}) == 6
    assert fake.calls == 6


def test_training_and_evaluation_in_one(fake: FakeNvcc, tmp_path: Path) -> None:
    report = read_manifest(compiled_here(NEURONS, SCHEDULE, "sm_80", tmp_path, fake.find()))
    assert [population.norm for population in report.populations] == [Norm.BATCH, Norm.RUNNING]
    assert {kernel.schedule for kernel in report.kernels} == {SCHEDULE}


@pytest.mark.parametrize("damage", ["manifest", "binary"])
def test_a_damaged_cache_is_compiled_again(fake: FakeNvcc, damage: str, tmp_path: Path) -> None:
    manifest = compiled_here(NEURONS, SCHEDULE, "sm_80", tmp_path, fake.find())
    if damage == "manifest":
        manifest.write_text("{")
    else:
        next(manifest.parent.glob("*.fatbin")).unlink()
    again = compiled_here(NEURONS, SCHEDULE, "sm_80", tmp_path, fake.find())
    assert again == manifest
    assert fake.calls == 2
    report = read_manifest(again)
    assert report.binary is not None
    assert (again.parent / report.binary).exists()


def test_many_at_once_leave_whole_files(fake: FakeNvcc, tmp_path: Path) -> None:
    nvcc, ready = fake.find(), threading.Barrier(4)

    def compile_one(_: int) -> CudaReport:
        ready.wait()
        manifest = compiled_here(NEURONS, SCHEDULE, "sm_80", tmp_path, nvcc)
        report = read_manifest(manifest)
        assert report.binary is not None
        assert (manifest.parent / report.binary).stat().st_size > 0
        return report

    with ThreadPoolExecutor(4) as pool:
        reports = list(pool.map(compile_one, range(4)))
    assert all(report == reports[0] for report in reports)
    assert {path.suffix for path in (tmp_path / "gpu_kernels").rglob("*.*")} == {".cu", ".fatbin", ".json"}


@pytest.mark.skipif(shutil.which("nvcc") is None, reason="no nvcc")
def test_the_real_compiler(tmp_path: Path) -> None:
    report = read_manifest(compiled_here(NEURONS, SCHEDULE, "sm_90", tmp_path, Nvcc.find()))
    assert len(report.resources) == len(report.kernels) == 8
    assert report.compiler is not None


def test_without_a_compiler(tmp_path: Path) -> None:
    message = (
        "there are no kernels for sm_90 of these neurons, and no nvcc on this machine to compile them\n"
        "  hint: where nvcc is: spikec compile MODEL --target cuda --arch sm_90 -o DIR; here: SPIKEC_GPU_KERNELS=DIR"
    )
    with pytest.raises(CompileError, match=re.escape(message)):
        compiled_here(NEURONS, SCHEDULE, "sm_90", tmp_path, None)
    assert not list(tmp_path.iterdir())


def test_a_cache_that_cannot_be_written(fake: FakeNvcc, tmp_path: Path) -> None:
    (tmp_path / "gpu_kernels").write_text("a file where a folder should be")
    with pytest.raises(CompileError, match="cannot write the kernels: Not a directory"):
        compiled_here(NEURONS, SCHEDULE, "sm_80", tmp_path, fake.find())


def compiled(folder: Path, arch: str, nvcc: Nvcc | None, *layers: CudaLayer) -> Path:
    report = compile_layers("net", layers, arch, folder, nvcc=nvcc)
    return manifest_file(report, folder)


def layer(neurons: Population, channels: int = 16) -> CudaLayer:
    return CudaLayer(name="neurons", population=neurons, extents=extents(channels))


@pytest.mark.parametrize(
    ("arch", "capability", "runs"),
    [
        ("sm_80", (8, 0), True),
        ("sm_80", (8, 6), True),
        ("sm_80", (9, 0), True),  # from its PTX
        ("sm_86", (8, 0), False),
        ("sm_90", (8, 9), False),
        ("sm_90a", (9, 0), True),
        ("sm_90a", (10, 0), False),
        ("sm_120", (12, 0), True),
        ("sm_100", (12, 1), True),
    ],
)
def test_what_runs_where(arch: str, capability: tuple[int, int], runs: bool, tmp_path: Path) -> None:
    manifest = compiled(tmp_path, arch, None, layer(NEURONS))
    manifest.write_text(manifest_text(replace(read_manifest(manifest), binary="net.fatbin")))
    found = compiled_before(NEURONS, SCHEDULE, capability, (tmp_path,))
    assert found == (manifest if runs else None)


def test_folders_are_searched_in_order(fake: FakeNvcc, tmp_path: Path) -> None:
    other = population(3)
    first = compiled(tmp_path / "first", "sm_80", fake.find(), layer(other), layer(NEURONS, 32))
    second = compiled(tmp_path / "second", "sm_80", fake.find(), layer(NEURONS))
    folders = (tmp_path / "first", tmp_path / "second")
    assert compiled_before(other, SCHEDULE, (8, 0), folders) == first
    assert compiled_before(NEURONS, GpuSchedule(tile=32), (8, 0), folders) == first
    assert compiled_before(NEURONS, SCHEDULE, (8, 0), folders) == second
    assert compiled_before(population(2), SCHEDULE, (8, 0), folders) is None


def test_kernels_without_a_binary_are_passed_over(tmp_path: Path) -> None:
    compiled(tmp_path, "sm_80", None, layer(NEURONS))
    assert compiled_before(NEURONS, SCHEDULE, (8, 0), (tmp_path,)) is None


def test_a_folder_without_kernels(tmp_path: Path) -> None:
    with pytest.raises(CompileError, match="no compiled kernels are here\n  hint: it is named by SPIKEC_GPU_KERNELS"):
        compiled_before(NEURONS, SCHEDULE, (8, 0), (tmp_path,))


@dataclass(slots=True)
class FakeKernels:
    """Loaded kernels that note how they are launched."""

    manifest: Path
    device: torch.device
    contexts: list[int] = field(default_factory=list)
    launches: list[tuple[GpuKernel, int]] = field(default_factory=list)

    @property
    def driver(self) -> SimpleNamespace:
        return SimpleNamespace(enter=self.contexts.append)

    def launch(
        self,
        population: Population,
        name: GpuKernel,
        extents: Extents,
        arrays: Mapping[str, Tensor],
        numbers: Mapping[str, float],
        *,
        stream: int,
    ) -> None:
        self.launches.append((name, stream))


@pytest.fixture
def loaded(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[FakeKernels]]:
    """Kernels that are loaded for a GPU of capability 8.0 whose current stream is 77."""
    found: list[FakeKernels] = []

    def load(manifest: Path, *, device: torch.device) -> CudaKernels:
        found.append(FakeKernels(manifest, device))
        return found[-1]  # type: ignore[return-value]

    place = runtime.fused.gpu_kernels
    monkeypatch.setattr(place, "load_cuda", load)
    monkeypatch.setattr(place, "_ENTERED", threading.local())
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 0))
    monkeypatch.setattr(torch.cuda, "device", lambda device: contextlib.nullcontext())
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: SimpleNamespace(cuda_stream=77))
    place._loaded.cache_clear()
    yield found
    place._loaded.cache_clear()


def launch_one(neurons: Population, name: GpuKernel, channels: int = 16) -> None:
    launch_on_gpu(neurons, name, extents(channels), {"x": torch.zeros(1)}, {})


def test_launches_on_the_current_stream(
    fake: FakeNvcc, loaded: list[FakeKernels], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Nvcc, "find", fake.find)
    monkeypatch.setenv(VARIABLE, str(tmp_path / "cache"))
    monkeypatch.delenv(FOLDERS, raising=False)
    launch_one(NEURONS, GpuKernel.FORWARD)
    launch_one(replace(NEURONS, norm=Norm.RUNNING), GpuKernel.GRADIENT)  # evaluation has the same binary
    (kernels,) = loaded
    assert kernels.launches == [(GpuKernel.FORWARD, 77), (GpuKernel.GRADIENT, 77)]
    assert kernels.contexts == [0]
    with ThreadPoolExecutor(1) as other:
        other.submit(launch_one, NEURONS, GpuKernel.FORWARD).result()
    assert kernels.contexts == [0, 0], "another thread has its own context"
    launch_one(NEURONS, GpuKernel.FORWARD, channels=64)
    assert len(loaded) == 2
    assert kernels.manifest.is_relative_to(tmp_path / "cache" / "gpu_kernels")


def test_compiled_kernels_come_before_a_compiler(
    fake: FakeNvcc, loaded: list[FakeKernels], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = compiled(tmp_path / "net", "sm_80", fake.find(), layer(NEURONS))
    monkeypatch.setattr(Nvcc, "find", lambda: None)
    monkeypatch.setenv(FOLDERS, str(tmp_path / "net"))
    launch_one(NEURONS, GpuKernel.FORWARD)
    assert loaded[0].manifest == manifest
    with pytest.raises(CompileError, match="no nvcc on this machine"):
        launch_one(population(2), GpuKernel.FORWARD)


@pytest.mark.parametrize("index", ["int32", "int64"])
@pytest.mark.parametrize("tile", [8, 16, 32])
def test_every_schedule_can_be_compiled(index: str, tile: int) -> None:
    schedule = GpuSchedule(index=index, tile=tile)
    assert schedule_for(NEURONS, runtime.fused.gpu_kernels._extents(schedule)) == schedule
