"""nvcc: architectures, what is read of ptxas, and kernels that keep everything in registers."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from compiler.fused.cuda.compile import compile_cuda, compile_layers
from compiler.fused.cuda.description import CudaLayer, Resources
from compiler.fused.cuda.toolchain import Nvcc, check_arch, parse_ptxas
from compiler.fused.population import PER_CHANNEL, Activation, Norm, Window
from compiler.ir.values import Reset, Surrogate, SurrogateKind
from frontends.zoo import names
from hwmodel.errors import CompileError
from spikec.models import load_model
from tests.compiler.fused.cuda.cases import extents, population

NO_NVCC = pytest.mark.skipif(
    shutil.which("nvcc") is None or shutil.which("ptxas") is None, reason="no nvcc, which counts registers"
)

PTXAS = """ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function 'p0_forward_int32_8_kernel' for 'sm_80'
ptxas info    : Function properties for p0_forward_int32_8_kernel
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 32 registers, used 1 barriers, 4096 bytes smem, 460 bytes cmem[0]
ptxas info    : Compile time = 21.001 ms
ptxas info    : Compiling entry function 'p0_gradient_int32_8_kernel' for 'sm_80'
ptxas info    : Function properties for p0_gradient_int32_8_kernel
    16 bytes stack frame, 8 bytes spill stores, 12 bytes spill loads
ptxas info    : Used 64 registers, used 0 barriers, 16 bytes cumulative stack size, 404 bytes cmem[0]
"""


def test_what_is_read_of_ptxas() -> None:
    assert parse_ptxas(PTXAS) == {
        "p0_forward_int32_8_kernel": Resources(registers=32, spill_bytes=0, stack_bytes=0, shared_bytes=4096),
        "p0_gradient_int32_8_kernel": Resources(registers=64, spill_bytes=20, stack_bytes=16, shared_bytes=0),
    }


def test_a_kernel_without_figures_is_a_fault() -> None:
    with pytest.raises(CompileError, match="nothing of the registers of p0_gradient_int32_8_kernel"):
        parse_ptxas(PTXAS.replace("Used 64 registers", ""))


@pytest.mark.parametrize("arch", ["sm_70", "sm_75", "sm_80", "sm_86", "sm_90", "sm_90a", "sm_120"])
def test_architectures(arch: str) -> None:
    check_arch(arch)


@pytest.mark.parametrize(
    "arch", ["", "80", "sm80", "sm_8", "sm_61", "sm_81", "sm_900", "compute_80", "sm_80 -O0", "sm_80\n"]
)
def test_what_is_no_architecture(arch: str) -> None:
    with pytest.raises(CompileError) as caught:
        check_arch(arch)
    message, hint = str(caught.value).split("\n  hint: ")
    assert message == f"--arch: error: is {arch!r}, which is no GPU architecture that kernels are written for"
    assert hint.startswith("sm_70, sm_72, sm_75, sm_80, ")


@NO_NVCC
def test_an_architecture_that_nvcc_does_not_know(tmp_path: Path) -> None:
    nvcc = Nvcc.find()
    assert nvcc is not None
    major = int(nvcc.version().split(".")[0])
    arch = "sm_70" if major >= 13 else "sm_121"
    layer = CudaLayer(name="neurons", population=population(), extents=extents())
    out = tmp_path / "out"
    with pytest.raises(CompileError, match=f"makes no code for {arch}\n  hint: it knows .*sm_80"):
        compile_layers("net", (layer,), arch, out, nvcc=nvcc)
    assert not list(tmp_path.iterdir())


def spilling(layers: tuple[CudaLayer, ...], arch: str, folder: Path) -> dict[str, Resources]:
    """Kernels of neurons without pooling that leave the registers."""
    report = compile_layers("net", layers, arch, folder, nvcc=Nvcc.find())
    return {
        kernel.symbol: resources
        for kernel, resources in zip(report.kernels, report.resources, strict=True)
        if resources.spill_bytes + resources.stack_bytes and report.populations[kernel.population].window is None
    }


def neurons(timesteps: int, **fields: object) -> CudaLayer:
    return CudaLayer(name="neurons", population=population(timesteps, **fields), extents=extents(64))


@NO_NVCC
@pytest.mark.parametrize("arch", ["sm_80", "sm_90"])
def test_no_spills(arch: str, tmp_path: Path) -> None:
    assert spilling((neurons(4), neurons(10), neurons(16)), arch, tmp_path) == {}


@NO_NVCC
def test_no_spills_where_ptxas_spills_at_first(tmp_path: Path) -> None:
    sigmoid = neurons(16, surrogate=Surrogate(kind=SurrogateKind.SIGMOID, width=0.5))
    assert spilling((sigmoid,), "sm_80", tmp_path) == {}


@NO_NVCC
@pytest.mark.slow
@pytest.mark.parametrize("arch", ["sm_80", "sm_90"])
@pytest.mark.parametrize("timesteps", [4, 10, 16])
def test_no_spills_of_any_neuron(timesteps: int, arch: str, tmp_path: Path) -> None:
    every = dict.fromkeys(("decay", "threshold", "reset_value", "initial", "leak_bias"), PER_CHANNEL)
    layers = [
        neurons(timesteps, surrogate=Surrogate(kind=kind, width=0.5, offset=0.1), **fields)
        for kind in (SurrogateKind.RECTANGLE, SurrogateKind.SIGMOID)
        for fields in ({}, every, {"reset": Reset.SOFT, "reset_delay": True}, {"repeated": True}, {"norm": Norm.NONE})
    ]
    layers.append(neurons(timesteps, activation=Activation.BF16))
    assert spilling(tuple(layers), arch, tmp_path) == {}


@NO_NVCC
def test_local_memory_holds_what_registers_do_not(tmp_path: Path) -> None:
    window = Window(kernel=(2, 2), average=True)
    layer = CudaLayer(
        name="pooled", population=population(64, norm=Norm.NONE, window=window), extents=extents(64, 1, 8, 8, window)
    )
    report = compile_layers("net", (layer,), "sm_80", tmp_path, nvcc=Nvcc.find())
    backward = next(report.resources_of(each.symbol) for each in report.launches if each.backward)
    assert backward is not None
    assert backward.spill_bytes == 0
    assert backward.stack_bytes >= 64 * 4 * 4  # m[t] of four neurons in f32


@NO_NVCC
@pytest.mark.slow
@pytest.mark.parametrize("arch", ["sm_80", "sm_90"])
@pytest.mark.parametrize("name", names())
def test_no_spills_of_any_network(name: str, arch: str, tmp_path: Path) -> None:
    graph = load_model(f"zoo:{name}", timesteps=10).graph
    report = compile_cuda(graph, arch, tmp_path)
    assert len(report.resources) == len(report.kernels)
    found = {kernel.symbol: report.resources_of(kernel.symbol) for kernel in report.kernels}
    assert {symbol: each for symbol, each in found.items() if each is None or each.spill_bytes} == {}
