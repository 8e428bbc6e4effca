"""A stage without its network: all that an op needs to know beside its tensors. Hashable, so that ops can name it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from compiler.fused.plan import Part, Stage
from compiler.fused.population import PER_CHANNEL, Activation, Norm, Population
from compiler.fused.spikes.costs import SpikeKernels
from compiler.ir.graph import Node
from compiler.ir.ops import BatchNorm, Conv2d, Linear
from compiler.ir.values import Param

_OF_THE_NORM = frozenset({"shift", "gain", "offset", "mean_grad", "mean_grad_x"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Layer:
    """A convolution or a fully connected layer behind the neurons; its weight and bias come as tensors."""

    convolution: bool
    bias: bool
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (0, 0)
    groups: int = 1
    rows_per_call: int = 0  # of the merged time and batch axis; 0: all


@dataclass(frozen=True, slots=True, kw_only=True)
class StageProgram:
    """One stage in training mode.

    Its tensors, in order. Parameters: weight and bias of the batch norm; of each layer the weight, then the bias.
    Buffers: running mean and variance of the batch norm; of each population its per-channel numbers as `numbers`
    names them.
    """

    timesteps: int
    repeated: bool
    parts: tuple[Part, ...]
    flatten: bool
    layers: tuple[Layer, ...]
    spikes: bool  # the spikes leave the stage, behind the layers' results
    packed: bool
    eps: float = 0.0
    kernels: SpikeKernels = SpikeKernels.OFF  # of the layers; else what the backward pass reads of spikes is bits

    @property
    def norm(self) -> bool:
        """Whether a batch norm stands before the neurons."""
        return bool(self.parts) and isinstance(self.parts[0], Population) and self.parts[0].norm is not Norm.NONE

    @property
    def masked(self) -> bool:
        """Whether bits tell where the spikes' gradient counts, beside the spikes' own bits."""
        last = self.parts[-1] if self.parts else None
        return self.kernels is not SpikeKernels.OFF and isinstance(last, Population) and last.masked

    def part(self, index: int, *, training: bool, activation: Activation) -> Part:
        """A part as it runs: in evaluation a batch norm takes its running statistics."""
        part = self.parts[index]
        if not isinstance(part, Population):
            return part
        norm = Norm.RUNNING if part.norm is Norm.BATCH and not training else part.norm
        return replace(part, norm=norm, activation=activation)


def numbers(population: Population) -> tuple[str, ...]:
    """The population's per-channel numbers: rows of the table, and those that a batch norm's rows take in."""
    rows = tuple(name for name in population.rows if name not in _OF_THE_NORM)
    if population.norm is Norm.NONE:
        return rows
    return rows + tuple(name for name in ("input_scale", "leak_bias") if getattr(population, name) is PER_CHANNEL)


def stage_program(
    stage: Stage,
    timesteps: int,
    rows_per_call: Mapping[str, int] | None = None,
    kernels: SpikeKernels = SpikeKernels.OFF,
) -> StageProgram:
    """The stage without names.

    rows_per_call: of its layers, by node; all rows where none is named. kernels: of layers with spike input.
    """
    norm = stage.batch_norm.op if stage.batch_norm is not None else None
    return StageProgram(
        timesteps=timesteps,
        repeated=stage.repeated,
        parts=stage.parts,
        flatten=stage.flatten is not None,
        layers=tuple(_layer(node, (rows_per_call or {}).get(node.name, 0)) for node in stage.linears),
        spikes=stage.spikes is not None,
        packed=stage.packed,
        eps=norm.eps if isinstance(norm, BatchNorm) else 0.0,
        kernels=kernels,
    )


def parameter_names(stage: Stage) -> tuple[str, ...]:
    """Names of the stage's parameters in the graph, in the order of a `StageProgram`."""
    names: list[str] = []
    if stage.batch_norm is not None and isinstance(stage.batch_norm.op, BatchNorm):
        names += [stage.batch_norm.op.weight.name, stage.batch_norm.op.bias.name]
    for node in stage.linears:
        assert isinstance(node.op, Conv2d | Linear)
        names += [param.name for param in (node.op.weight, node.op.bias) if param is not None]
    return tuple(names)


def buffer_names(stage: Stage) -> tuple[str, ...]:
    """Names of the stage's buffers in the graph, in the order of a `StageProgram`."""
    names: list[str] = []
    if stage.batch_norm is not None and isinstance(stage.batch_norm.op, BatchNorm):
        names += [stage.batch_norm.op.mean.name, stage.batch_norm.op.var.name]
    populations = [part for part in stage.parts if isinstance(part, Population)]
    for population, node in zip(populations, stage.lifs, strict=True):
        for number in numbers(population):
            value = getattr(node.op, number)
            assert isinstance(value, Param)
            names.append(value.name)
    return tuple(names)


def _layer(node: Node, rows_per_call: int) -> Layer:
    op = node.op
    if isinstance(op, Conv2d):
        return Layer(
            convolution=True,
            bias=op.bias is not None,
            stride=op.stride,
            padding=op.padding,
            groups=op.groups,
            rows_per_call=rows_per_call,
        )
    assert isinstance(op, Linear)
    return Layer(convolution=False, bias=op.bias is not None)
