"""The GPU kernels as OpenCL, run by PoCL's threads and barriers: a second executor beside the shim's fibers."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from compiler.fused.cuda.description import CudaLayer, Kernel
from compiler.fused.cuda.layers import distinct_populations, kernel_specs
from compiler.fused.cuda.source import device_source
from compiler.fused.gpu_launch import Extents, GpuKernel, GpuSchedule, launch, schedule_for
from compiler.fused.population import Activation, Population
from runtime.fused.cuda_loader import elements, sum_groups
from tests.compiler.fused.cuda.cases import LAYERS
from tests.compiler.fused.cuda.passes import random_arrays, run_cpu_backward, run_gpu
from tests.compiler.fused.cuda.test_shim import cases, compare, compare_gradients

TYPES: Mapping[str, type[np.generic]] = {"int32": np.int32, "int64": np.int64, "float64": np.float64}


@dataclass(frozen=True, slots=True)
class OpenClKernels:
    """Kernels that are launched as `runtime.fused.cuda_loader.CudaKernels` are, on arrays copied there and back."""

    opencl: ModuleType
    queue: Any
    program: Any
    kernels: Mapping[tuple[Population, GpuKernel, GpuSchedule], Kernel]

    def launch(
        self,
        population: Population,
        name: GpuKernel,
        extents: Extents,
        arrays: Mapping[str, Tensor],
        numbers: Mapping[str, float],
    ) -> None:
        kernel = self.kernels[population, name, schedule_for(population, extents)]
        grid = launch(population, name, extents)
        flat = population.window is None or name is GpuKernel.STATISTICS
        groups = sum_groups(population, name, extents)
        given = dict(numbers) | {
            "n": extents.n * (math.prod((extents.height, extents.width)) if flat else 1),
            "height": extents.height,
            "width": extents.width,
            "out_height": extents.out_height,
            "out_width": extents.out_width,
            "channels": extents.channels,
            "groups": groups if name is GpuKernel.FINISH else grid.grid[1],
            "sum_groups": groups,
        }
        sizes = elements(population, name, extents)
        buffers: dict[str, Any] = {}
        values = []
        for parameter in kernel.parameters:
            if parameter.array:
                array = arrays[parameter.name]
                assert array.numel() == sizes[parameter.name]
                buffers[parameter.name] = self._buffer(array)
            values.append(buffers[parameter.name] if parameter.array else TYPES[parameter.dtype](given[parameter.name]))
        columns, rows = grid.grid
        function = self.opencl.Kernel(self.program, kernel.symbol)
        function(self.queue, (columns * grid.threads, rows), (grid.threads, 1), *values)
        for each, buffer in buffers.items():
            self.opencl.enqueue_copy(self.queue, arrays[each].numpy(), buffer)
        self.queue.finish()

    def _buffer(self, array: Tensor) -> Any:
        flags = self.opencl.mem_flags
        return self.opencl.Buffer(self.queue.context, flags.READ_WRITE | flags.COPY_HOST_PTR, hostbuf=array.numpy())


@pytest.fixture(scope="module")
def kernels() -> OpenClKernels:
    opencl = pytest.importorskip("pyopencl", reason="no pyopencl")
    try:
        platforms = opencl.get_platforms()
    except opencl.LogicError:
        platforms = []
    devices = [device for platform in platforms for device in platform.get_devices() if device.double_fp_config]
    if not devices:
        pytest.skip("no OpenCL platform with f64, as PoCL is")
    layers = tuple(layer for layer in LAYERS if layer.population.activation is Activation.F32)  # OpenCL has no bf16
    populations = distinct_populations(layers)
    specs = kernel_specs(layers, populations)
    source = device_source(specs, {"kind": "opencl"}, "cl")
    context = opencl.Context(devices[:1])
    program = opencl.Program(context, source.text).build()
    found = {(populations[kernel.population], kernel.name, kernel.schedule): kernel for kernel in source.kernels}
    return OpenClKernels(opencl, opencl.CommandQueue(context), program, found)


@pytest.mark.parametrize(("layer", "population"), cases())
def test_same_spikes_and_gradients(kernels: OpenClKernels, layer: CudaLayer, population: Population) -> None:
    if population.activation is Activation.BF16:
        pytest.skip("OpenCL has no bf16")
    window = population.window
    if window is not None and window.average and math.prod(window.kernel) & (math.prod(window.kernel) - 1):
        compare_averages(kernels, layer, population)
    else:
        compare(kernels, layer, population)  # type: ignore[arg-type]


def compare_averages(kernels: OpenClKernels, layer: CudaLayer, population: Population) -> None:
    """Thirds of spikes round at each addition, with or without FMA."""
    gpu = random_arrays(population, layer.extents)
    cpu = gpu.copy()
    run_gpu(kernels, gpu)  # type: ignore[arg-type]
    run_cpu_backward(cpu)
    terms = 0 if population.window is None else math.prod(population.window.kernel)
    torch.testing.assert_close(gpu.values["y"], cpu.values["y"], rtol=0, atol=terms * 2.0**-24)
    compare_gradients(gpu, cpu)
