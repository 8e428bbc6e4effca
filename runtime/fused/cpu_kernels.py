"""The kernels of one population compiled for this CPU, called on torch tensors without a copy."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from compiler.fused.cpu import cpu_kernel, vector_lanes
from compiler.fused.finish import FinishName, finish_kernels
from compiler.fused.population import KernelName, Population, Results
from compiler.fused.result_bits import FEWEST_LANES
from compiler.tvm_setup import host_target, tvm
from runtime.fused.threads import threads_wanted

Name = KernelName | FinishName
Argument = Tensor | float
LAUNCHES: Counter[str] = Counter()  # by kernel, of this process


@dataclass(frozen=True, slots=True)
class CpuKernels:
    """The kernels of one population; each is compiled when it is first called.

    channels: of its input. results: what forward, gradient_sums and gradient write.
    """

    population: Population
    channels: int
    results: Results = Results.Y

    def __call__(self, name: Name, *arguments: Argument) -> None:
        """Run one kernel, on one thread where its input is small."""
        LAUNCHES[name] += 1
        first = arguments[0]
        assert isinstance(first, Tensor)
        parallel = not isinstance(name, FinishName) and threads_wanted(first.nbytes)
        tail = self.channels % lanes_of(self.results) != 0
        _compiled(self.population, tail, name, parallel, self.results)(*arguments)


def lanes_of(results: Results) -> int:
    """Lanes of the kernels that write these results: of bits at least as many as fill a part of a word."""
    return max(vector_lanes(), FEWEST_LANES) if results.has_bits else vector_lanes()


@functools.cache
def _compiled(population: Population, tail: bool, name: Name, parallel: bool, results: Results) -> Callable[..., None]:
    if isinstance(name, FinishName):
        function = finish_kernels(population)[name]
    else:
        lanes = lanes_of(results)
        function = cpu_kernel(population, name, lanes=lanes, tail=tail, parallel=parallel, results=results)
    kernel: Callable[..., None] = tvm.compile(function, target=host_target())[str(name)]
    return kernel
