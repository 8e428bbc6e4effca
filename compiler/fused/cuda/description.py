"""What the files of a compiled network describe: populations, kernels, and how each layer launches them."""

from __future__ import annotations

from dataclasses import dataclass

from compiler.fused.gpu_launch import Extents, GpuKernel, GpuSchedule, Launch
from compiler.fused.population import Population


@dataclass(frozen=True, slots=True, kw_only=True)
class Parameter:
    """One parameter of a device function: an array's address, an extent (int32, int64) or a number (float64)."""

    name: str
    dtype: str
    array: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Kernel:
    """One device function."""

    symbol: str
    population: int  # index into the network's distinct populations
    name: GpuKernel
    schedule: GpuSchedule
    parameters: tuple[Parameter, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Resources:
    """What ptxas says of one kernel: of a thread registers, spills and stack, of a block shared memory."""

    registers: int
    spill_bytes: int  # stores and loads
    stack_bytes: int
    shared_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class CudaLayer:
    """Neurons of a network as the GPU sees them."""

    name: str
    population: Population
    extents: Extents


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerLaunch:
    """One launch of a training or evaluation step."""

    layer: str
    training: bool
    backward: bool
    symbol: str
    name: GpuKernel
    launch: Launch
    bytes_moved: int  # each array's elements once for each reading and each writing, caches left out


@dataclass(frozen=True, slots=True, kw_only=True)
class CudaReport:
    """A network's kernels for one GPU architecture; the manifest holds the same."""

    network: str
    arch: str
    source: str  # file of the CUDA C, beside the manifest
    binary: str | None  # fat binary; None: no nvcc was there, so nothing is known of registers either
    compiler: str | None  # nvcc's version
    populations: tuple[Population, ...]
    kernels: tuple[Kernel, ...]
    resources: tuple[Resources, ...]  # of the kernels, in order; empty without nvcc
    layers: tuple[CudaLayer, ...]
    launches: tuple[LayerLaunch, ...]

    def kernel(self, symbol: str) -> Kernel:
        """The kernel of that symbol."""
        return next(kernel for kernel in self.kernels if kernel.symbol == symbol)

    def resources_of(self, symbol: str) -> Resources | None:
        """What the kernel of that symbol takes; None: not known."""
        named = zip((kernel.symbol for kernel in self.kernels), self.resources, strict=bool(self.resources))
        return next((resources for name, resources in named if name == symbol), None)
