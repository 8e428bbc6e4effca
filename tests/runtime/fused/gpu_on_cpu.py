"""Launches GPU kernels on CPU tensors: compiled by g++ when they are first used, as a GPU's are by nvcc."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from torch import Tensor

from compiler.fused.cuda.description import CudaLayer
from compiler.fused.gpu_launch import Extents, GpuKernel, GpuSchedule, schedule_for
from compiler.fused.population import Norm, Population
from runtime.fused.cuda_loader import CudaKernels
from tests.compiler.fused.cuda.shim import load_on_cpu

Unit = tuple[Population, GpuSchedule]


@dataclass(slots=True)
class CpuLaunch:
    """A `runtime.fused.gpu_neurons.Launch` on this CPU; `seen` are the kernels that it launched."""

    folder: Path
    units: dict[Unit, CudaKernels] = field(default_factory=dict)
    seen: list[GpuKernel] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)  # the kernels' threads are common to the process

    def __call__(
        self,
        population: Population,
        name: GpuKernel,
        extents: Extents,
        arrays: Mapping[str, Tensor],
        numbers: Mapping[str, float],
    ) -> None:
        with self.lock:
            self.seen.append(name)
            self._kernels(population, extents).launch(population, name, extents, arrays, numbers)

    def _kernels(self, population: Population, extents: Extents) -> CudaKernels:
        unit = replace(population, norm=Norm.BATCH) if population.norm is Norm.RUNNING else population
        key = (unit, schedule_for(population, extents))
        if key not in self.units:
            folder = self.folder / str(len(self.units))
            layer = CudaLayer(name="neurons", population=unit, extents=extents)
            self.units[key] = load_on_cpu((layer,), folder)
        return self.units[key]
