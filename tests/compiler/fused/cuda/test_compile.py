"""The files of a compiled network, the launches that they promise, and the way back from the manifest."""

from __future__ import annotations

import contextlib
import errno
import json
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from unittest.mock import patch

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from compiler.fused.cuda.compile import compile_cuda, compile_layers, manifest_file
from compiler.fused.cuda.description import CudaReport, Resources
from compiler.fused.cuda.layers import bytes_moved, in_evaluation
from compiler.fused.cuda.manifest import manifest_text, read_manifest
from compiler.fused.cuda.toolchain import Nvcc
from compiler.fused.gpu_launch import Extents, GpuKernel, cells_of, gpu_kernels, launch, schedule_for, tiled
from compiler.fused.population import Norm, Window
from compiler.ir import Graph
from hwmodel.errors import CompileError
from runtime.fused.cuda_loader import load_cuda
from spikec.models import load_model
from tests.compiler.fused.cuda.cases import LAYERS, extents, population

ROOT = Path(__file__).parents[4]


@pytest.fixture(scope="module")
def graph() -> Graph:
    return load_model("zoo:cifar-small", timesteps=4).graph


@pytest.fixture
def no_nvcc(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("compiler.fused.cuda.toolchain.shutil.which", lambda name: None)


@pytest.mark.usefixtures("no_nvcc")
def test_files_without_nvcc(graph: Graph, tmp_path: Path) -> None:
    out = tmp_path / "new" / "folder"
    report = compile_cuda(graph, "sm_80", out, batch=8)
    assert report.binary is None
    assert report.resources == ()
    assert {file.name for file in out.iterdir()} == {report.source, manifest_file(report, out).name}
    source = (out / report.source).read_text()
    assert all(f" {kernel.symbol}(" in source for kernel in report.kernels)
    assert "__expf" not in source, "fast math"
    with pytest.raises(CompileError, match="compiled without nvcc"):
        load_cuda(manifest_file(report, out))


@pytest.mark.usefixtures("no_nvcc")
def test_each_population_is_compiled_once(graph: Graph, tmp_path: Path) -> None:
    report = compile_cuda(graph, "sm_80", tmp_path)
    symbols = [kernel.symbol for kernel in report.kernels]
    assert len(set(symbols)) == len(symbols)
    assert {launch.symbol for launch in report.launches} <= set(symbols)
    assert len(set(report.populations)) == len(report.populations)


@pytest.mark.usefixtures("no_nvcc")
def test_the_promised_launches(graph: Graph, tmp_path: Path) -> None:
    report = compile_cuda(graph, "sm_80", tmp_path)
    for layer in report.layers:
        batch = layer.population.norm is Norm.BATCH
        count = Counter((each.training, each.backward) for each in report.launches if each.layer == layer.name)
        wanted = {(True, False): 2 if batch else 1, (True, True): 3 if batch else 1, (False, False): 1}
        assert count == wanted, layer.name
    assert any(layer.population.norm is Norm.BATCH for layer in report.layers)


def test_evaluation_needs_a_finishing_sum_for_the_parameters_alone() -> None:
    layer = in_evaluation(population())
    assert gpu_kernels(layer) == (GpuKernel.FORWARD, GpuKernel.GRADIENT, GpuKernel.FINISH)


class _Failing(Nvcc):
    def check_arch(self, arch: str) -> None:
        pass

    def version(self) -> str:
        return "0.0"


def test_nothing_is_half_written(tmp_path: Path) -> None:
    old = tmp_path / "out"
    old.mkdir()
    (old / "net.sm_80.json").write_text("older")
    with pytest.raises(CompileError, match=r"nvcc failed on net\.sm_80\.cu"):
        compile_layers("net", LAYERS[:1], "sm_80", old, nvcc=_Failing("/bin/false"))
    assert [file.name for file in tmp_path.iterdir()] == ["out"]
    assert (old / "net.sm_80.json").read_text() == "older"
    assert len(list(old.iterdir())) == 1


class _Making(_Failing):
    """Writes any binary; the kernels take no registers."""

    def compile(self, source: Path, binary: Path, arch: str) -> dict[str, Resources]:
        binary.write_text("new")
        found = re.findall(r"__launch_bounds__\(\d+\) (\w+)\(", source.read_text())
        return {name: Resources(registers=0, spill_bytes=0, stack_bytes=0, shared_bytes=0) for name in found}


NAMES = tuple(f"net.sm_80.{suffix}" for suffix in ("cu", "fatbin", "json"))


def folder_of(texts: Mapping[str, str], folder: Path) -> Path:
    folder.mkdir(exist_ok=True)
    for name, text in texts.items():
        (folder / name).write_text(text)
    return folder


def texts_in(folder: Path) -> dict[str, str]:
    return {file.name: file.read_text() for file in folder.iterdir() if file.is_file()}


@pytest.mark.parametrize("way", NAMES)
def test_a_folder_in_the_way_of_a_file(way: str, tmp_path: Path) -> None:
    old = {name: "older" for name in NAMES if name != way}
    out = folder_of(old, tmp_path / "out")
    (out / way).mkdir()
    with pytest.raises(CompileError, match=rf"{way}: error: is a folder.*\n  hint: "):
        compile_layers("net", LAYERS[:1], "sm_80", out, nvcc=_Making("nvcc"))
    assert texts_in(out) == old
    assert [file.name for file in tmp_path.iterdir()] == ["out"]


@given(old=st.sets(st.sampled_from(NAMES)), fails_at=st.integers(0, 2))
@settings(max_examples=24, deadline=None)
def test_a_move_that_fails_leaves_the_old_files(
    old: set[str], fails_at: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    out = folder_of(dict.fromkeys(old, "older"), tmp_path_factory.mktemp("out"))
    moves = 0

    def failing(source: Path, target: Path) -> None:
        nonlocal moves
        moves += 1
        if moves == fails_at + 1:
            raise OSError(errno.EIO, "Input/output error")
        source.rename(target)

    with (
        patch("compiler.fused.cuda.compile.os.replace", failing),
        pytest.raises(CompileError, match="cannot write the kernels: Input"),
    ):
        compile_layers("net", LAYERS[:1], "sm_80", out, nvcc=_Making("nvcc"))
    assert texts_in(out) == dict.fromkeys(old, "older")


def test_no_old_binary_beside_a_manifest_without_one(tmp_path: Path) -> None:
    other = {"other.sm_80.fatbin": "other", "net.sm_90.fatbin": "other"}
    folder_of(other | {"net.sm_80.fatbin": "older"}, tmp_path)
    compile_layers("net", LAYERS[:1], "sm_80", tmp_path, nvcc=_Making("nvcc"))
    assert (tmp_path / "net.sm_80.fatbin").read_text() == "new"
    report = compile_layers("net", LAYERS[:1], "sm_80", tmp_path, nvcc=None)
    assert read_manifest(manifest_file(report, tmp_path)).binary is None
    assert texts_in(tmp_path).keys() == {"net.sm_80.cu", "net.sm_80.json", *other}


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(CompileError, match="cannot write the kernels"):
        compile_layers("net", LAYERS[:1], "sm_80", tmp_path / "file" / "out", nvcc=None)


def test_a_network_without_neurons(graph: Graph, tmp_path: Path) -> None:
    inputs = tuple(node for node in graph.nodes if node.name == graph.input.name)
    with pytest.raises(CompileError, match="no spiking neurons"):
        compile_cuda(graph.with_nodes(inputs, output=graph.input.name), "sm_80", tmp_path)


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> CudaReport:
    return compile_layers("a net/1", LAYERS[:3], "sm_80", tmp_path_factory.mktemp("out"), nvcc=None)


def test_the_manifest_and_back(report: CudaReport, tmp_path: Path) -> None:
    file = tmp_path / "manifest.json"
    for layers in (LAYERS, report.layers):
        populations = tuple(dict.fromkeys(layer.population for layer in (*layers, *report.layers)))
        populations = tuple(dict.fromkeys((*report.populations, *populations)))
        given = replace(report, layers=layers, populations=populations)
        file.write_text(manifest_text(given))
        assert read_manifest(file) == given


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no manifest of CUDA kernels"),
        ("[]", "no manifest of CUDA kernels, version 1"),
        ('{"version": 2}', "no manifest of CUDA kernels, version 1"),
        ('{"version": 1}', "the manifest is damaged: KeyError"),
    ],
)
def test_what_is_no_manifest(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text(text)
    with pytest.raises(CompileError, match=message):
        read_manifest(tmp_path / "manifest.json")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("damaged")


@settings(max_examples=60)
@given(data=st.data())
def test_a_damaged_manifest_is_refused_or_read(report: CudaReport, folder: Path, data: st.DataObject) -> None:
    """Whatever one value is replaced by, the reader raises no other error than the user's."""
    content = json.loads(manifest_text(report))
    at = content
    while True:
        key = data.draw(st.sampled_from(sorted(at) if isinstance(at, dict) else range(len(at))))
        inner = at[key]
        if not isinstance(inner, dict | list) or not inner or data.draw(st.integers(0, 9)) == 0:
            at[key] = data.draw(st.sampled_from([None, "text", -1, 2.5, True, [], {}, [1], {"x": 1}]))
            break
        at = inner
    file = folder / "manifest.json"
    file.write_text(json.dumps(content))
    with contextlib.suppress(CompileError):
        read_manifest(file)


def test_a_machine_without_a_driver(report: CudaReport, tmp_path: Path) -> None:
    (tmp_path / "net.fatbin").write_bytes(b"image")
    (tmp_path / "net.json").write_text(manifest_text(replace(report, binary="net.fatbin")))
    with pytest.raises(CompileError, match=r"there is no CUDA driver on this machine\n  hint: .*train on the CPU"):
        load_cuda(tmp_path / "net.json", library="libcuda-that-is-not-there.so")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_a_machine_without_a_gpu(report: CudaReport, tmp_path: Path) -> None:
    (tmp_path / "net.json").write_text(manifest_text(replace(report, binary="net.fatbin")))
    with pytest.raises(CompileError, match="cannot read the kernels"):
        load_cuda(tmp_path / "net.json")
    (tmp_path / "net.fatbin").write_bytes(b"image")
    with pytest.raises(CompileError, match=r"no CUDA driver on this machine|cuInit"):
        load_cuda(tmp_path / "net.json")


def test_the_loader_imports_no_compiler() -> None:
    code = "import sys, runtime.fused.cuda_loader; sys.exit('tvm' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


def test_wide_indices_where_narrow_ones_overflow() -> None:
    neurons = population(10)
    assert schedule_for(neurons, extents(128, 32, 32, 32)).index == "int32"
    assert schedule_for(neurons, extents(128, 1638, 32, 32)).index == "int64"  # 10 * 1638 * 32 * 32 * 128 > 2^31 - 2^19
    assert schedule_for(neurons, extents(128, 1637, 32, 32)).index == "int32"


@given(
    channels=st.integers(1, 300),
    n=st.integers(1, 40),
    size=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    kernel=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    norm=st.sampled_from(Norm),
    ceil=st.booleans(),
)
def test_a_grid_covers_every_cell(
    channels: int, n: int, size: tuple[int, int], kernel: tuple[int, int], norm: Norm, ceil: bool
) -> None:
    exact = size[0] % kernel[0] == 0 and size[1] % kernel[1] == 0
    window = Window(kernel=kernel, average=True, exact=exact, ceil=ceil)
    neurons, given = population(norm=norm, window=window), extents(channels, n, *size, window=window)
    for name in gpu_kernels(neurons):
        blocks, threads = launch(neurons, name, given), launch(neurons, name, given).threads
        columns, rows = blocks.grid
        if tiled(neurons, name):
            tile = schedule_for(neurons, given).tile
            assert columns * tile >= channels > (columns - 1) * tile
            assert name is GpuKernel.FINISH or rows * columns <= 512 + columns
            assert rows >= 1
        else:
            cells = cells_of(neurons, name, given) * channels  # none where every window is dropped
            assert columns * threads >= cells > (columns - 1) * threads or cells == columns - 1 == 0


def test_bytes_moved_by_hand() -> None:
    shape = Extents(n=2, height=4, width=4, out_height=4, out_width=4, channels=8)
    neurons = population(3)
    array = 3 * 2 * 4 * 4 * 8 * 4  # T N H W C, f32
    groups = {name: launch(neurons, name, shape).grid[1] for name in gpu_kernels(neurons)}
    assert groups == {"statistics": 1, "forward": 1, "gradient_sums": 1, "finish": 1, "gradient_input": 1}
    sums = 2 * 8 * 8  # two f64 a channel
    assert [bytes_moved(neurons, name, shape) for name in gpu_kernels(neurons)] == [
        array + sums,
        2 * array + sums,
        3 * array + sums,
        sums,
        3 * array,
    ]
