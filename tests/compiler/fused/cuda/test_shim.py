"""The GPU kernels run by this CPU, against the CPU's kernels: same spikes, same gradients."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest
import torch
from torch import Tensor

from compiler.fused.cuda.description import CudaLayer
from compiler.fused.cuda.layers import in_evaluation
from compiler.fused.gpu_launch import GpuKernel, gpu_kernels
from compiler.fused.population import Activation, Norm, Population
from hwmodel.errors import CompileError
from runtime.fused.cuda_loader import CudaKernels
from tests.compiler.fused.cuda.cases import LAYERS
from tests.compiler.fused.cuda.passes import EPS, Arrays, random_arrays, run_cpu_backward, run_cpu_table, run_gpu
from tests.compiler.fused.cuda.shim import load_on_cpu

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="no g++, which compiles the kernels for this CPU")

FORWARD = (GpuKernel.STATISTICS, GpuKernel.FORWARD)
# partial sums are f32 within a neuron, f64 across neurons, with the multiplications fused differently
TABLE_TOLERANCE = 1e-6
GRADIENT_TOLERANCE = 1e-6  # of the largest: the order of a neuron's few f32 additions is the same, fusing may differ
BF16_STEP = 2.0**-7  # one step of bf16, where f32 values a rounding apart fall on both sides of a tie


@pytest.fixture(scope="module")
def kernels(tmp_path_factory: pytest.TempPathFactory) -> CudaKernels:
    return load_on_cpu(LAYERS, tmp_path_factory.mktemp("cuda"))


def cases() -> list[object]:
    return [
        pytest.param(layer, population, id=f"{layer.name}, {population.norm}")
        for layer in LAYERS
        for population in dict.fromkeys((layer.population, in_evaluation(layer.population)))
        if layer.population.window is None or population == layer.population  # the CPU's take long to compile
    ]


@pytest.mark.parametrize(("layer", "population"), cases())
def test_same_spikes_and_gradients(kernels: CudaKernels, layer: CudaLayer, population: Population) -> None:
    compare(kernels, layer, population)


def test_wide_indices(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("compiler.fused.gpu_launch._INT32_END", 0)
    layers = (by_name("few"), by_name("maximum, kept edge"))
    kernels = load_on_cpu(layers, tmp_path)
    assert {kernel.schedule.index for kernel in kernels.report.kernels} == {"int64"}
    for layer in layers:
        compare(kernels, layer, layer.population)


def compare(kernels: CudaKernels, layer: CudaLayer, population: Population) -> None:
    given = random_arrays(population, layer.extents)
    gpu, cpu = given.copy(), given.copy()
    run_gpu(kernels, gpu, tuple(name for name in gpu_kernels(population) if name in FORWARD))
    spikes, table = gpu.values["y"].clone(), gpu.values["table"].clone()
    run_gpu(kernels, gpu, tuple(name for name in gpu_kernels(population) if name not in FORWARD))
    if population.norm is not Norm.NONE:
        run_cpu_table(cpu)
        rows = [population.rows.index(row) for row in population.rows if not row.startswith("mean_grad")]
        torch.testing.assert_close(table[rows], cpu.values["table"][rows], rtol=TABLE_TOLERANCE, atol=TABLE_TOLERANCE)
        for name in ("moments", "reciprocal"):
            torch.testing.assert_close(gpu.values[name], cpu.values[name], rtol=TABLE_TOLERANCE, atol=TABLE_TOLERANCE)
        cpu.values |= {"table": table, "reciprocal": gpu.values["reciprocal"]}  # the same numbers for the same spikes
    run_cpu_backward(cpu)
    assert 0 < spikes.float().mean() < 1
    assert torch.equal(spikes, cpu.values["y"])
    assert torch.equal(gpu.values["y"], spikes), "the backward pass makes other spikes"
    compare_gradients(gpu, cpu)


def compare_gradients(gpu: Arrays, cpu: Arrays) -> None:
    population = gpu.population
    grad_x = "grad_y" if population.in_place else "grad_x"
    step = BF16_STEP if population.activation is Activation.BF16 else 0.0
    assert_near(gpu.values[grad_x], cpu.values[grad_x], relative=step)
    if population.norm is not Norm.NONE:
        for name in ("grad_weight", "grad_bias"):
            assert_near(gpu.values[name], cpu.values[name])


def assert_near(found: Tensor, wanted: Tensor, *, relative: float = 0.0) -> None:
    wanted = wanted.double()
    bound = GRADIENT_TOLERANCE * wanted.abs().max() + relative * wanted.abs()
    assert bool(((found.double() - wanted).abs() <= bound).all())


def by_name(name: str) -> CudaLayer:
    return next(layer for layer in LAYERS if layer.name == name)


def test_the_loader_names_a_kernel_that_was_not_compiled(kernels: CudaKernels) -> None:
    layer, extents = by_name("wide"), by_name("few").extents
    arrays = random_arrays(layer.population, extents)
    with pytest.raises(CompileError, match=re.escape("no forward kernel with int32 indices and 8 channels a block")):
        kernels.launch(layer.population, GpuKernel.FORWARD, extents, arrays.values)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x: x[:-1], "x is"),
        (lambda x: x.double(), "x is 34965 values of torch.float64 on cpu"),
        (lambda x: x.flip(0).transpose(0, 1), "x is"),
        (None, "array x is missing"),
    ],
)
def test_the_loader_refuses_another_array(kernels: CudaKernels, change: object, message: str) -> None:
    layer = by_name("scaled")
    values = random_arrays(layer.population, layer.extents).values
    x = values.pop("x")
    if callable(change):
        values["x"] = change(x)
    with pytest.raises(CompileError, match=re.escape(message)):
        kernels.launch(layer.population, GpuKernel.FORWARD, layer.extents, values)


def test_the_loader_refuses_a_missing_number(kernels: CudaKernels) -> None:
    layer = by_name("hard")
    arrays = random_arrays(layer.population, layer.extents)
    run_gpu(kernels, arrays, (GpuKernel.STATISTICS,))
    values = dict(arrays.values)
    with pytest.raises(CompileError, match="number eps is missing"):
        kernels.launch(layer.population, GpuKernel.FORWARD, layer.extents, values, {"epsilon": EPS})
