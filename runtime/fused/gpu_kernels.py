"""The GPU kernels of a population on this machine: found among compiled ones, or compiled when they are first used."""

from __future__ import annotations

import functools
import hashlib
import os
import threading
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from compiler.fused.cuda.compile import compile_layers, manifest_file
from compiler.fused.cuda.description import CudaLayer, CudaReport
from compiler.fused.cuda.layers import distinct_populations, kernel_specs
from compiler.fused.cuda.manifest import read_manifest
from compiler.fused.cuda.source import cuda_source
from compiler.fused.cuda.toolchain import OPTIONS, Nvcc
from compiler.fused.gpu_launch import Extents, GpuKernel, GpuSchedule, schedule_for
from compiler.fused.population import Norm, Population
from hwmodel.errors import CompileError, Loc
from hwmodel.folders import cache_folder
from runtime.fused.cuda_loader import CudaKernels, load_cuda

FOLDERS = "SPIKEC_GPU_KERNELS"  # of compiled networks, parted as in PATH
_ENTERED = threading.local()  # devices whose context this thread has entered


def launch_on_gpu(
    population: Population,
    name: GpuKernel,
    extents: Extents,
    arrays: Mapping[str, Tensor],
    numbers: Mapping[str, float],
) -> None:
    """Launch one kernel on the current stream of the device where its arrays are.

    Raises: CompileError if there is no such kernel, nor a compiler for it.
    """
    device = arrays["x"].device
    unit = replace(population, norm=Norm.BATCH) if population.norm is Norm.RUNNING else population
    with torch.cuda.device(device):
        kernels = _loaded(unit, schedule_for(population, extents), device)
        _enter(kernels)
        stream = torch.cuda.current_stream(device).cuda_stream
        kernels.launch(population, name, extents, arrays, numbers, stream=stream)


def compiled_here(population: Population, schedule: GpuSchedule, arch: str, cache: Path, nvcc: Nvcc | None) -> Path:
    """The manifest of the population's kernels in training and evaluation, compiled unless the cache has it.

    Processes may compile the same at once: files appear whole, and the manifest last.

    Raises: CompileError without nvcc, if it fails, or if the cache cannot be written.
    """
    if nvcc is None:
        raise CompileError(
            f"there are no kernels for {arch} of these neurons, and no nvcc on this machine to compile them",
            Loc("nvcc"),
            hint=f"where nvcc is: spikec compile MODEL --target cuda --arch {arch} -o DIR; here: {FOLDERS}=DIR",
        )
    layers = (CudaLayer(name="neurons", population=population, extents=_extents(schedule)),)
    source = cuda_source(kernel_specs(layers, distinct_populations(layers)), arch).text
    key = hashlib.sha256("\0".join((source, arch, nvcc.version(), *OPTIONS)).encode()).hexdigest()
    folder = cache / "gpu_kernels" / key[:32]
    found = next((manifest for manifest in _manifests(folder) if _sound(manifest)), None)
    if found is not None:
        return found
    report = compile_layers("neurons", layers, arch, folder, nvcc=nvcc)
    return manifest_file(report, folder)


def compiled_before(
    population: Population, schedule: GpuSchedule, capability: tuple[int, int], folders: tuple[Path, ...]
) -> Path | None:
    """A manifest that has all kernels of the population, for that GPU; None: there is none.

    Raises: CompileError for a folder without manifests, or a damaged one.
    """
    for folder in folders:
        manifests = list(_manifests(folder))
        if not manifests:
            raise CompileError("no compiled kernels are here", Loc(str(folder)), hint=f"it is named by {FOLDERS}")
        for manifest in manifests:
            report = read_manifest(manifest)
            if report.binary is not None and _runs_on(report.arch, capability) and _has(report, population, schedule):
                return manifest
    return None


@functools.cache
def _loaded(population: Population, schedule: GpuSchedule, device: torch.device) -> CudaKernels:
    capability = torch.cuda.get_device_capability(device)
    manifest = compiled_before(population, schedule, capability, _folders())
    if manifest is None:
        arch = "sm_{}{}".format(*capability)
        manifest = compiled_here(population, schedule, arch, cache_folder(), Nvcc.find())
    return load_cuda(manifest, device=device)


def _enter(kernels: CudaKernels) -> None:
    """Autograd's threads may launch before torch has made the context theirs."""
    entered: set[torch.device] = _ENTERED.__dict__.setdefault("devices", set())
    if kernels.device not in entered:
        kernels.driver.enter(kernels.device.index or 0)
        entered.add(kernels.device)


def _extents(schedule: GpuSchedule) -> Extents:
    """Some that call for the schedule."""
    n = 1 if schedule.index == "int32" else 2**31
    return Extents(n=n, height=1, width=1, out_height=1, out_width=1, channels=schedule.tile)


def _runs_on(arch: str, capability: tuple[int, int]) -> bool:
    """Machine code runs on later devices of its generation; the PTX beside it is compiled by the driver for others."""
    number = int("".join(filter(str.isdigit, arch)))
    compiled_for = (number // 10, number % 10)
    return compiled_for == capability or (compiled_for < capability and not arch[-1].isalpha())


def _has(report: CudaReport, population: Population, schedule: GpuSchedule) -> bool:
    return any(
        kernel.schedule == schedule and report.populations[kernel.population] == population for kernel in report.kernels
    )


def _manifests(folder: Path) -> Iterator[Path]:
    return iter(sorted(folder.glob("*.json")))


def _sound(manifest: Path) -> bool:
    try:
        report = read_manifest(manifest)
    except CompileError:
        return False
    return report.binary is not None and (manifest.parent / report.binary).exists()


def _folders() -> tuple[Path, ...]:
    return tuple(Path(name).expanduser() for name in os.environ.get(FOLDERS, "").split(os.pathsep) if name)
