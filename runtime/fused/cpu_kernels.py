"""The kernels of one population compiled for this CPU, called on torch tensors without a copy."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import Tensor

from compiler.fused.cpu import cpu_kernel, vector_lanes
from compiler.fused.finish import FinishName, finish_kernels
from compiler.fused.population import KernelName, Population
from compiler.tvm_setup import host_target, tvm
from runtime.fused.threads import free_cores, match_thread_count

GROUPS = 64  # partial sums of a batch norm: fixed, so that results do not depend on the number of threads
_SERIAL_BYTES = 1 << 19  # of input: below, waking a thread takes longer than the work

Name = KernelName | FinishName
Argument = Tensor | float
LAUNCHES: Counter[str] = Counter()  # by kernel, of this process


@dataclass(frozen=True, slots=True)
class CpuKernels:
    """The compiled kernels of one population."""

    population: Population
    serial: Mapping[str, Callable[..., None]]
    parallel: Callable[[], Mapping[str, Callable[..., None]]]  # compiled when a large array comes

    def __call__(self, name: Name, *arguments: Argument) -> None:
        """Run one kernel, on one thread where its input is small."""
        LAUNCHES[name] += 1
        first = arguments[0]
        assert isinstance(first, Tensor)
        small = isinstance(name, FinishName) or first.nbytes < _SERIAL_BYTES
        if small or match_thread_count() == 1:
            self.serial[name](*arguments)
        else:
            free_cores()
            self.parallel()[name](*arguments)


@functools.cache
def cpu_kernels(population: Population, *, tail: bool) -> CpuKernels:
    """The kernels, compiled on first use. `tail`: the channels are no multiple of a vector."""
    serial = _compiled(population, tail, parallel=False)
    return CpuKernels(population, serial, functools.partial(_compiled, population, tail, parallel=True))


def has_tail(channels: int) -> bool:
    """Whether the channels leave a part of a vector over."""
    return channels % vector_lanes() != 0


@functools.cache
def _compiled(population: Population, tail: bool, *, parallel: bool) -> Mapping[str, Callable[..., None]]:
    functions = {
        str(name): cpu_kernel(population, name, lanes=vector_lanes(), tail=tail, parallel=parallel)
        for name in population.kernels
    }
    if not parallel:
        functions |= {str(name): function for name, function in finish_kernels(population).items()}
    module = tvm.compile(tvm.IRModule(functions), target=host_target())
    return {name: module[name] for name in functions}
