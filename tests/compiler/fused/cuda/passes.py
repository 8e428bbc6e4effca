"""A forward and a backward pass of one population, by its GPU kernels and by its CPU kernels."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache

import torch
from torch import Tensor

from compiler.fused.cpu import cpu_kernel
from compiler.fused.emit import tvm
from compiler.fused.finish import finish_kernels
from compiler.fused.gpu_launch import Extents, GpuKernel, gpu_kernels
from compiler.fused.population import Activation, Norm, Population
from compiler.tvm_setup import host_target
from runtime.fused.cuda_loader import CudaKernels, elements, sum_groups

EPS = 1e-5
_CPU_GROUPS = 3


@dataclass(slots=True)
class Arrays:
    """Arrays of one population, by the names of the kernels' arguments."""

    population: Population
    extents: Extents
    values: dict[str, Tensor] = field(default_factory=dict)

    def copy(self) -> Arrays:
        """The same with memory of its own."""
        return Arrays(self.population, self.extents, {name: value.clone() for name, value in self.values.items()})

    @property
    def count(self) -> float:
        """Values of one channel that a batch norm averages over."""
        e = self.extents
        return float(e.n * e.height * e.width * (1 if self.population.repeated else self.population.timesteps))


def random_arrays(population: Population, extents: Extents, seed: int = 0) -> Arrays:
    """Inputs and gradients; the results hold NaN, so that an element left out shows."""
    random = torch.Generator().manual_seed(seed)
    channels, e = extents.channels, extents
    lead = () if population.repeated else (population.timesteps,)
    dtype = torch.bfloat16 if population.activation is Activation.BF16 else torch.float32
    x_shape = (*lead, e.n, e.height, e.width, channels)
    y_shape = (population.timesteps, e.n, e.out_height, e.out_width, channels)
    uniform = {"weight": 0.5, "bias": -0.5, "scale": 0.5, "leak": -0.5}
    values = {name: torch.rand(channels, generator=random) + low for name, low in uniform.items()}
    values["x"] = (torch.randn(x_shape, generator=random) * 1.5 + 0.5).to(dtype)
    values["grad_y"] = torch.randn(y_shape, generator=random).to(dtype)
    values["y"] = torch.full(y_shape, torch.nan, dtype=dtype)
    values["grad_x"] = torch.full(x_shape, torch.nan, dtype=dtype)
    values["table"] = torch.full((max(1, len(population.rows)), channels), torch.nan)
    for name in population.rows:
        if name in ("decay", "threshold", "reset_value", "initial", "input_scale", "leak_bias"):
            values["table"][population.rows.index(name)] = torch.rand(channels, generator=random) * 0.5 + 0.2
    values["moments"] = torch.stack(
        [torch.full((channels,), 0.4), torch.rand(channels, generator=random) + 1.5]
    ).double()
    values["reciprocal"] = torch.full((channels,), torch.nan, dtype=torch.float64)
    for name in ("grad_weight", "grad_bias"):
        values[name] = torch.full((channels,), torch.nan)
    return Arrays(population, extents, values)


def run_gpu(kernels: CudaKernels, arrays: Arrays, names: tuple[GpuKernel, ...] | None = None) -> None:
    """The population's kernels in order; partial sums and results of the backward pass replace those before."""
    population, extents = arrays.population, arrays.extents
    for name in names or gpu_kernels(population):
        count = 1.0 if population.norm is Norm.RUNNING else arrays.count
        if name not in (GpuKernel.FORWARD, GpuKernel.FINISH):
            groups = sum_groups(population, name, extents)
            arrays.values["sums"] = torch.full((groups, 2, extents.channels), torch.nan, dtype=torch.float64)
        given = dict(arrays.values)
        given["table"] = given["table"][: len(population.rows)]
        sizes = elements(population, name, extents)
        assert all(given[each].numel() == sizes[each] for each in ("x", "y"))
        kernels.launch(population, name, extents, given, {"eps": EPS, "count": count})


def run_cpu_backward(arrays: Arrays) -> None:
    """The CPU's kernels from the table on: forward, then backward."""
    population, values = arrays.population, arrays.values
    cpu = _cpu_kernels(population)
    x, y, grad_y, grad_x = (_flat(population, values[name]) for name in ("x", "y", "grad_y", "grad_x"))
    table = [values["table"]] if population.rows else []
    cpu["forward"](x, *table, y)
    grads = [grad_y] if population.in_place else [grad_y, grad_x]
    sums = torch.empty(_CPU_GROUPS, 2, arrays.extents.channels, dtype=torch.float64)
    if population.norm is Norm.BATCH:
        cpu["gradient_sums"](x, *table, grad_y, sums, y)
        _finish(arrays, cpu, sums, arrays.count)
        cpu["gradient_input"](x, *table, *grads)
    else:
        cpu["gradient"](x, *table, *grads, *([sums] if population.norm is Norm.RUNNING else []), y)
        if population.norm is Norm.RUNNING:
            _finish(arrays, cpu, sums, 1.0)


def run_cpu_table(arrays: Arrays) -> None:
    """The CPU's statistics, moments and table."""
    population, values = arrays.population, arrays.values
    cpu, x = _cpu_kernels(population), values["x"].flatten(-4, -2)
    if population.norm is Norm.BATCH:
        sums = torch.empty(_CPU_GROUPS, 2, arrays.extents.channels, dtype=torch.float64)
        cpu["statistics"](x, sums)
        cpu["moments"](x, sums, values["moments"])
    numbers = (values[name] for name in ("weight", "bias", "scale", "leak", "table", "reciprocal"))
    cpu["table"](values["moments"], *numbers, EPS)


def _finish(arrays: Arrays, cpu: dict[str, Callable[..., None]], sums: Tensor, count: float) -> None:
    values = arrays.values
    totals = torch.empty(2, arrays.extents.channels, dtype=torch.float64)
    cpu["totals"](sums, totals)
    given = (values[name] for name in ("reciprocal", "scale", "table", "grad_weight", "grad_bias"))
    cpu["gradients"](totals, totals, *given, count)


def _flat(population: Population, tensor: Tensor) -> Tensor:
    return tensor if population.window is not None else tensor.flatten(-4, -2)


@cache
def _cpu_kernels(population: Population) -> dict[str, Callable[..., None]]:
    functions = {
        str(name): cpu_kernel(population, name, lanes=1, tail=False, parallel=False) for name in population.kernels
    }
    functions |= {str(name): function for name, function in finish_kernels(population).items()}
    quick = tvm.target.Target({"kind": "llvm", "mcpu": host_target().attrs["mcpu"], "opt-level": 1})
    executable = tvm.compile(tvm.IRModule(functions), target=quick)
    return {name: executable[name] for name in functions}
