"""How a GPU launches the kernels of a population: their order, grids and number of partial sums."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from math import prod

from compiler.fused.population import KernelName, Norm, Population

THREADS = 256
STATISTICS_THREADS = 1024  # few registers each: one block fills half a multiprocessor, so few partial sums suffice
_BLOCKS = 512  # of kernels whose blocks walk over the cells: about four for each multiprocessor
_STATISTICS_BLOCKS = 128
_INT32_END = 2**31


class GpuKernel(StrEnum):
    """The kernels of a population on a GPU and their arguments, in order; [..] where the population calls for them.

    statistics      X, P                                       as `KernelName.STATISTICS`
    forward         X, [P], [M, weight, bias, scale, leak], [table], [R], Y, [eps]
                    with a norm it first makes moments M (2, C) of the partial sums (batch statistics) or reads them
                    (running ones), and writes 1 / sqrt(var + eps) to R (C,) and the rows shift, gain, offset
    gradient_sums   X, table, grad_Y, P, Y
    finish          P, R, scale, table, grad_weight, grad_bias, count: totals of the partial sums, the parameters'
                    gradients, and with batch statistics the rows mean_grad and mean_grad_x
    gradient_input  X, table, grad
    gradient        X, [table], grad, [P], Y

    Arrays as in `KernelName` and `FinishName`; P (groups, 2, C), M and R are f64.
    """

    STATISTICS = "statistics"
    FORWARD = "forward"
    GRADIENT_SUMS = "gradient_sums"
    FINISH = "finish"
    GRADIENT_INPUT = "gradient_input"
    GRADIENT = "gradient"

    @property
    def cpu_name(self) -> KernelName | None:
        """The kernel of that meaning on the CPU; none of `finish`."""
        return None if self is GpuKernel.FINISH else KernelName(self.value)


@dataclass(frozen=True, slots=True, kw_only=True)
class Extents:
    """Extents of a population's arrays: N, H, W of the input and of the result, channels."""

    n: int
    height: int
    width: int
    out_height: int
    out_width: int
    channels: int


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuSchedule:
    """What differs between the kernels of one population: the type of an index, the channels of a block.

    A block that adds up treats `tile` channels of many pixels, so that neighbouring threads read neighbouring channels.
    """

    index: str = "int32"
    tile: int = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class Launch:
    """Blocks (x, y) and threads of a block."""

    grid: tuple[int, int]
    threads: int


def gpu_kernels(population: Population) -> tuple[GpuKernel, ...]:
    """Its kernels, in the order in which a training step launches them."""
    match population.norm:
        case Norm.NONE:
            return GpuKernel.FORWARD, GpuKernel.GRADIENT
        case Norm.RUNNING:
            return GpuKernel.FORWARD, GpuKernel.GRADIENT, GpuKernel.FINISH
        case Norm.BATCH:
            before = (GpuKernel.STATISTICS, GpuKernel.FORWARD)
            return *before, GpuKernel.GRADIENT_SUMS, GpuKernel.FINISH, GpuKernel.GRADIENT_INPUT


def tiled(population: Population, name: GpuKernel) -> bool:
    """Whether a block treats a tile of channels; otherwise each thread of the grid has one cell."""
    if population.norm is Norm.NONE:
        return False
    return name is not GpuKernel.GRADIENT_INPUT


def schedule_for(population: Population, extents: Extents) -> GpuSchedule:
    """int64 indices where int32 would overflow; the widest tile that divides the channels, or one that covers them."""
    steps = max(population.timesteps, 2)  # and the two rows of partial sums
    largest = steps * extents.n * max(extents.height * extents.width, 1) * extents.channels
    margin = STATISTICS_THREADS * _BLOCKS  # a thread's index before it is found to be outside
    tiles = [tile for tile in (32, 16, 8) if extents.channels % tile == 0]
    covering = [tile for tile in (8, 16) if tile >= extents.channels]
    return GpuSchedule(
        index="int32" if largest + margin < _INT32_END else "int64",
        tile=tiles[0] if tiles else covering[0] if covering else 32,
    )


def threads_of(name: GpuKernel) -> int:
    """Threads of a block."""
    return STATISTICS_THREADS if name is GpuKernel.STATISTICS else THREADS


def launch(population: Population, name: GpuKernel, extents: Extents) -> Launch:
    """The grid for these extents; of a kernel that writes partial sums, grid[1] is their number of groups."""
    threads, cells = threads_of(name), cells_of(population, name, extents)
    if not tiled(population, name):
        return Launch(grid=(max(1, _ceil(cells * extents.channels, threads)), 1), threads=threads)
    tile = schedule_for(population, extents).tile
    tiles = _ceil(extents.channels, tile)
    if name is GpuKernel.FINISH:
        return Launch(grid=(tiles, 1), threads=threads)
    most = _STATISTICS_BLOCKS if name is GpuKernel.STATISTICS else _BLOCKS
    groups = max(1, min(_ceil(cells, threads // tile), most // tiles))
    return Launch(grid=(tiles, groups), threads=threads)


def cells_of(population: Population, name: GpuKernel, extents: Extents) -> int:
    """Neurons or windows of one channel that the kernel treats."""
    window = population.window
    if window is None or name is GpuKernel.STATISTICS:
        return extents.n * extents.height * extents.width
    if window.exact or name is GpuKernel.FORWARD:
        return extents.n * extents.out_height * extents.out_width
    return extents.n * prod(
        _ceil(extent, size) for extent, size in zip((extents.height, extents.width), window.kernel, strict=True)
    )


def _ceil(value: int, divisor: int) -> int:
    return -(-value // divisor)
