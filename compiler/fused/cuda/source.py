"""CUDA C of a set of kernels, and the parameters that their device functions take."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from compiler.fused.cuda.description import Kernel, Parameter
from compiler.fused.emit import tirx, tvm
from compiler.fused.gpu import gpu_kernel
from compiler.fused.gpu_launch import GpuKernel, GpuSchedule
from compiler.fused.population import Population

from tvm.tirx import get_tir_pipeline  # isort: skip
from tvm.tirx.build import codegen_build, split_host_device_mods  # isort: skip

_SUFFIX = "_kernel"  # that TVM gives a device function
_POINTER = "_ptr"


@dataclass(frozen=True, slots=True, kw_only=True)
class KernelSpec:
    """One kernel to be written; `population` counts the network's distinct populations."""

    population_index: int
    population: Population
    name: GpuKernel
    schedule: GpuSchedule

    @property
    def symbol(self) -> str:
        """Its name in the source."""
        tile = self.schedule.tile
        return f"p{self.population_index}_{self.name}_{self.schedule.index}_{tile}"


@dataclass(frozen=True, slots=True, kw_only=True)
class CudaSource:
    """One translation unit."""

    text: str
    kernels: tuple[Kernel, ...]


def cuda_source(specs: Sequence[KernelSpec], arch: str) -> CudaSource:
    """The kernels' CUDA C; needs neither a GPU nor CUDA."""
    return device_source(specs, {"kind": "cuda", "arch": arch}, "cuda")


def device_source(specs: Sequence[KernelSpec], device_target: Mapping[str, str], language: str) -> CudaSource:
    """The kernels in another language that TVM writes: `cl` for OpenCL."""
    functions = {spec.symbol: gpu_kernel(spec.population, spec.name, spec.schedule, spec.symbol) for spec in specs}
    target = tvm.target.Target(dict(device_target), host={"kind": "llvm"})
    # without values hoisted out of a kernel: they would be parameters that only TVM's own host code can compute
    with tvm.transform.PassContext(config={"tirx.disable_cse_tir": True}):
        lower, _, finalize = get_tir_pipeline("s_tir")
        module = lower(tirx.transform.BindTarget(target)(tvm.IRModule(functions)))
        ((split_target, device),) = split_host_device_mods(module)[1].items()
        device = finalize()(device)
        text: str = codegen_build(device, split_target).inspect_source(language)
    parameters = {variable.name_hint: _parameters(function) for variable, function in device.functions.items()}
    kernels = tuple(
        Kernel(
            symbol=spec.symbol + _SUFFIX,
            population=spec.population_index,
            name=spec.name,
            schedule=spec.schedule,
            parameters=parameters[spec.symbol + _SUFFIX],
        )
        for spec in specs
    )
    return CudaSource(text=text, kernels=kernels)


def _parameters(function: tirx.PrimFunc) -> tuple[Parameter, ...]:
    return tuple(_parameter(variable) for variable in function.params)


def _parameter(variable: tirx.Var) -> Parameter:
    name = str(variable.name)
    if name.endswith(_POINTER):
        return Parameter(name=name.removesuffix(_POINTER), dtype=str(variable.ty.element_type.dtype), array=True)
    return Parameter(name=name, dtype=str(variable.ty.dtype), array=False)
