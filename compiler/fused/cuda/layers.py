"""The neurons of a plan as layers with extents, and how a step launches their kernels."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from compiler.fused.cuda.description import CudaLayer, LayerLaunch
from compiler.fused.cuda.source import KernelSpec
from compiler.fused.gpu_launch import Extents, GpuKernel, gpu_kernels, launch, schedule_for
from compiler.fused.plan import Plan, Stage
from compiler.fused.population import Norm, Population
from compiler.ir.types import TensorType

_BYTES = {"float32": 4, "bfloat16": 2}
_SUM_BYTES = 8


def cuda_layers(plan: Plan, *, batch: int) -> tuple[CudaLayer, ...]:
    """The neurons of each stage, in order."""
    stages = (step for step in plan.steps if isinstance(step, Stage))
    return tuple(layer for stage in stages for layer in _layers(plan, stage, batch))


def distinct_populations(layers: tuple[CudaLayer, ...]) -> tuple[Population, ...]:
    """The layers' populations in training and in evaluation, each once."""
    every = (population for layer in layers for population in (layer.population, in_evaluation(layer.population)))
    return tuple(dict.fromkeys(every))


def in_evaluation(population: Population) -> Population:
    """With running statistics in place of the batch's."""
    return replace(population, norm=Norm.RUNNING) if population.norm is Norm.BATCH else population


def kernel_specs(layers: tuple[CudaLayer, ...], populations: tuple[Population, ...]) -> tuple[KernelSpec, ...]:
    """The kernels that the layers need, each once."""
    index = {population: at for at, population in enumerate(populations)}
    specs = (
        _spec(index[population], population, name, layer.extents)
        for layer in layers
        for population in (layer.population, in_evaluation(layer.population))
        for name in gpu_kernels(population)
    )
    return tuple(dict.fromkeys(specs))


def layer_launches(
    layers: tuple[CudaLayer, ...], populations: tuple[Population, ...], symbols: dict[KernelSpec, str]
) -> Iterator[LayerLaunch]:
    """The launches of a training step, forward, then of evaluation's forward pass; backward in the layers' order."""
    for training in (True, False):
        for backward in (False, True) if training else (False,):
            for layer in reversed(layers) if backward else layers:
                population = layer.population if training else in_evaluation(layer.population)
                for name in gpu_kernels(population):
                    if is_backward(name) == backward:
                        spec = _spec(populations.index(population), population, name, layer.extents)
                        yield LayerLaunch(
                            layer=layer.name,
                            training=training,
                            backward=backward,
                            symbol=symbols[spec],
                            name=name,
                            launch=launch(population, name, layer.extents),
                            bytes_moved=bytes_moved(population, name, layer.extents),
                        )


def is_backward(name: GpuKernel) -> bool:
    """Whether the backward pass launches it."""
    return name not in (GpuKernel.STATISTICS, GpuKernel.FORWARD)


def bytes_moved(population: Population, name: GpuKernel, extents: Extents) -> int:
    """Bytes of x, y, their gradients and partial sums, each element once for each reading and each writing."""
    element = _BYTES[population.activation]
    samples = extents.n * extents.channels * element
    steps = population.timesteps
    x = samples * extents.height * extents.width * (1 if population.repeated else steps)
    y = samples * extents.out_height * extents.out_width * steps
    sums = launch(population, name, extents).grid[1] * 2 * extents.channels * _SUM_BYTES
    match name:
        case GpuKernel.STATISTICS:
            return x + sums
        case GpuKernel.FORWARD:
            return x + y + (_statistics_bytes(population, extents) if population.norm is Norm.BATCH else 0)
        case GpuKernel.GRADIENT_SUMS:
            return x + 2 * y + sums
        case GpuKernel.FINISH:
            before = GpuKernel.GRADIENT_SUMS if population.norm is Norm.BATCH else GpuKernel.GRADIENT
            return launch(population, before, extents).grid[1] * 2 * extents.channels * _SUM_BYTES
        case GpuKernel.GRADIENT_INPUT:
            return 2 * x + y
        case GpuKernel.GRADIENT:
            return 2 * x + 2 * y + (sums if population.norm is Norm.RUNNING else 0)


def _statistics_bytes(population: Population, extents: Extents) -> int:
    """Partial sums that each block of `forward` reads for its channels."""
    groups = launch(population, GpuKernel.STATISTICS, extents).grid[1]
    return launch(population, GpuKernel.FORWARD, extents).grid[1] * groups * 2 * extents.channels * _SUM_BYTES


def _spec(index: int, population: Population, name: GpuKernel, extents: Extents) -> KernelSpec:
    return KernelSpec(
        population_index=index, population=population, name=name, schedule=schedule_for(population, extents)
    )


def _layers(plan: Plan, stage: Stage, batch: int) -> Iterator[CudaLayer]:
    types, value = plan.graph.types, stage.source
    lifs = iter(stage.lifs)
    for part, result in zip(stage.parts, stage.results, strict=True):
        if isinstance(part, Population):
            given, made = types[value], types[result]
            yield CudaLayer(name=next(lifs).name, population=part, extents=_extents(given, made, batch))
        value = result


def _extents(given: TensorType, made: TensorType, batch: int) -> Extents:
    height, width, out_height, out_width = (
        kind.size(axis) if kind.has(axis) else 1 for kind in (given, made) for axis in "HW"
    )
    return Extents(
        n=batch,
        height=height,
        width=width,
        out_height=out_height,
        out_width=out_width,
        channels=given.size("C"),
    )
