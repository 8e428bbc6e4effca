"""The network as a torch module whose stages run on fused kernels."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.modules.batchnorm import _BatchNorm

from compiler.evaluate import Execution, execute
from compiler.fused.arena import Key, Place, arrange, scratch_requests
from compiler.fused.order import LoopOrder
from compiler.fused.plan import Plan, Stage, Step, TorchStep
from compiler.fused.program import buffer_names, parameter_names, stage_program
from compiler.fused.spikes.costs import SpikeKernels
from compiler.fused.spikes.eligible import kernels_of
from compiler.fused.text import Keeping, plan_text
from compiler.ir import Param
from compiler.ir.graph import Node
from compiler.ir.ops import BatchNorm
from hwmodel.errors import CompileError, Loc
from runtime.fused.arena import Arena
from runtime.fused.batch_norm import batch_norm, update_running
from runtime.fused.neurons import COUNT
from runtime.fused.ops import program_number
from runtime.fused.ops import stage as stage_op
from runtime.fused.origins import NOWHERE, Origin, origins_of
from runtime.fused.processes import process_count
from runtime.fused.spikes.explain import Explained, explained, explanation

_DTYPES = (torch.float32, torch.bfloat16)

Values = dict[str, Tensor]  # by name in the graph, in the graph's shapes


@dataclass(frozen=True, slots=True, kw_only=True)
class Interface:
    """How the given network's input and output stand to the graph's, whose time and batch are separate axes.

    merged: time and batch are one axis, time-major. features: the axes behind them; None for the graph's own.
    """

    merged_input: bool = False
    merged_output: bool = False
    input_features: tuple[int, ...] | None = None
    output_features: tuple[int, ...] | None = None


@dataclass(frozen=True, slots=True)
class _FusedStep:
    """A stage with all that its op is called with."""

    stage: Stage
    program: int
    parameters: tuple[str, ...]
    buffers: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _TorchRule:
    """A node and the function that computes it."""

    node: Node
    rule: Callable[..., Tensor]
    repeats: int


class FusedModule(nn.Module):
    """A network's parameters under their own names, and a forward pass that keeps layers' results alone.

    It holds the given module's children, parameters and buffers, shared ones under each of their names: `state_dict`,
    optimisers, hooks on gradients and checkpoints are the given module's. Forward hooks of children are not called,
    since their layers run inside stages. `describe` says what runs how. Without a process group, batch statistics are
    taken over this process' batch; `process_group`, one of torch's by name, takes them over all its processes'.

    Shapes: input and output as the given module's; any batch.
    Raises: CompileError for a child, parameter or buffer with the name of an attribute of this class.
    Raises (forward): CompileError for an input of another shape or element type, or without samples; for autocast to
    float16; in training for a batch norm whose statistics would be of a single value.
    Source: chapter 4.
    """

    def __init__(
        self,
        source: nn.Module,
        plan: Plan,
        paths: Mapping[str, str],
        *,
        interface: Interface | None = None,
        orders: Mapping[str, LoopOrder] | None = None,
        kernels: SpikeKernels = SpikeKernels.MEASURED,
        recompute: bool = True,
    ) -> None:
        """paths: by parameter of the graph, its tensor's path in the source; others stay as the graph has them.

        orders: by layer, the loop order of its calls; all rows at once where none is named. kernels: of layers whose
        input is spikes, on CPUs and in f32. recompute: results of layers that read bits are not kept for the backward
        pass, but computed again.
        """
        super().__init__()
        self.process_group = ""
        self._plan, self._interface, self._orders = plan, interface or Interface(), dict(orders or {})
        self._arena = Arena(functools.partial(_places, plan))
        self._kernels, self._recompute = kernels, recompute
        self._steps = tuple(_step(step, plan, self._orders, kernels) for step in plan.steps)
        self._last_use, self._one_valued = _last_use(plan), _one_valued(plan)
        # values in the arena's memory: spikes that leave a stage
        self._scratch = {step.spikes for step in plan.steps if isinstance(step, Stage) and step.spikes is not None}
        self._paths = {**paths, **_constants(self, plan, set(paths), _device(source))}
        _adopt(self, source, plan.network)
        for weight in self.parameters():
            if weight.ndim == 4:  # as the stages' maps; torch would otherwise turn it around at each call
                weight.data = weight.data.contiguous(memory_format=torch.channels_last)

    def forward(self, x: Tensor, first_sample: int = 0) -> Tensor:
        """first_sample: index of the batch's first sample, on which and on the seed Bernoulli draws depend."""
        values: Values = {self._plan.input: self._input(x)}
        origins: dict[str, Origin] = {}
        run = _Live(self._plan.graph, first_sample=first_sample, tensor=self._tensor)
        for step, done in zip(self._steps, self._last_use, strict=True):
            if isinstance(step, _FusedStep):
                self._fused(step, values, origins)
            elif step.node.name != self._plan.input:
                values[step.node.name] = self._torch(step, values, run)
            for name in done:
                del values[name]
                origins.pop(name, None)
        return self._output(values[self._plan.output])

    def describe(self) -> str:
        """The plan as text: stages, what each keeps for the backward pass, loop orders."""
        return plan_text(self._plan, self._orders, Keeping(kernels=self._kernels, recompute=self._recompute))

    def explain(self) -> str:
        """Which kernels the layers with spike input took in the last step, at which densities, and measured costs."""
        return explanation(self._arena)

    def explained(self) -> list[Explained]:
        """The same as rows."""
        return explained(self._arena)

    def __getstate__(self) -> dict[str, object]:
        """Without the steps, whose programs have other numbers in another process."""
        return {name: value for name, value in self.__dict__.items() if name != "_steps"}

    def __setstate__(self, state: dict[str, object]) -> None:
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        self._steps = tuple(_step(step, self._plan, self._orders, self._kernels) for step in self._plan.steps)

    def extra_repr(self) -> str:
        fused = sum(isinstance(step, _FusedStep) for step in self._steps)
        return f"{self._plan.network}: {fused} fused stages, timesteps={self._plan.timesteps}"

    def _fused(self, step: _FusedStep, values: Values, origins: dict[str, Origin]) -> None:
        stage, origin = step.stage, origins.get(step.stage.source, NOWHERE)
        x = _rows(values[stage.source], has_time=not stage.repeated and self._plan.graph.types[stage.source].has("T"))
        dtype = _compute_dtype(x)
        parameters = [self._tensor(name) for name in step.parameters]
        norms = 2 if stage.batch_norm is not None else 0
        parameters = [
            *(value.float() for value in parameters[:norms]),
            *(value.to(dtype) for value in parameters[norms:]),
        ]
        buffers = [self._tensor(name).float() for name in step.buffers]
        source = self._batch_norm_module(step.buffers[0]) if norms else None
        training = self.training if source is None else source.training
        with torch.autocast(x.device.type, enabled=False):
            results: list[Tensor] = stage_op(
                x.to(dtype),
                parameters,
                buffers,
                origin.tensors,
                step.program,
                stage.name,
                self._arena.number,
                training,
                self.process_group,
                origin.program,
                origin.layer,
            )
        for name, result in zip(stage.outputs, results, strict=False):
            values[name] = _sequence(result, self._plan.timesteps)
        if self._recompute:
            origins.update(origins_of(stage, step.program, parameters[norms:], results))
        if norms and training:
            update_running(source, self._tensor(step.buffers[0]), self._tensor(step.buffers[1]), results[-1])

    def _torch(self, step: _TorchRule, values: Values, run: _Live) -> Tensor:
        inputs = [values[name] for name in step.node.inputs]
        if isinstance(step.node.op, BatchNorm):
            return self._batch_norm(step, step.node.op, inputs[0])
        return step.rule(step.node.op, inputs, step.node, run)

    def _batch_norm(self, step: _TorchRule, op: BatchNorm, x: Tensor) -> Tensor:
        """A batch norm that no neurons follow."""
        source = self._batch_norm_module(op.mean.name)
        training = self.training if source is None else source.training
        weight, bias, mean, var = (self._tensor(param.name) for param in (op.weight, op.bias, op.mean, op.var))
        rows = _rows(x, has_time=self._plan.graph.types[step.node.inputs[0]].has("T"))
        if training:
            normed, moments = batch_norm(rows, weight, bias, op.eps, self.process_group)
            repeated = torch.stack([moments[0], moments[1], moments[COUNT] * step.repeats])
            update_running(source, mean, var, repeated)
        else:
            normed = functional.batch_norm(rows, mean, var, weight, bias, False, 0.0, op.eps)
        return normed.reshape(*x.shape[: x.ndim - normed.ndim + 1], *normed.shape[1:])

    def _batch_norm_module(self, running_mean: str) -> _BatchNorm | None:
        """The module that a batch norm's running mean belongs to, if it is one of torch's."""
        owner: object = self
        for part in self._paths[running_mean].split(".")[:-1]:
            owner = getattr(owner, part)
        return owner if isinstance(owner, _BatchNorm) else None

    def _tensor(self, name: str) -> Tensor:
        """A parameter of the graph, as it is now."""
        value: object = self
        for part in self._paths[name].split("."):
            value = getattr(value, part)
        assert isinstance(value, Tensor)
        shape = self._plan.graph.parameters[name].shape
        return value if value.shape == shape else value.reshape(shape)

    def _input(self, x: Tensor) -> Tensor:
        """In the graph's shape, feature maps with the channels last in memory."""
        want, steps = self._plan.graph.types[self._plan.input], self._plan.timesteps
        timed = want.has("T")
        sizes = tuple(size for size in want.shape[1 + timed :] if isinstance(size, int))
        _check_input(x, self._interface.input_features or sizes, self._lead(timed), steps, self._plan.network)
        _check_autocast(x.device.type, self._plan.network)
        self._check_statistics(x.numel() // (math.prod(sizes) * (steps if timed else 1)))
        rows = x.reshape(-1, *sizes)
        if rows.ndim == 4:
            rows = rows.contiguous(memory_format=torch.channels_last)
        return _sequence(rows, steps) if timed else rows

    def _check_statistics(self, samples: int) -> None:
        """Before any statistics change: the variance of one value, corrected for their number, is 0 / 0."""
        if samples > 1 or not self._one_valued or process_count(self.process_group) > 1:
            return
        for name, running_mean in self._one_valued:
            source = self._batch_norm_module(running_mean)
            if self.training if source is None else source.training:
                raise CompileError(
                    f"{name}: the batch has a single value per channel, whose statistics a batch norm cannot train on",
                    Loc(name),
                    hint="take two samples or more, or call .eval()",
                )

    def _lead(self, timed: bool) -> str:
        if not timed:
            return "N"
        return "T * N" if self._interface.merged_input else "T, N"

    def _output(self, y: Tensor) -> Tensor:
        if self._plan.output in self._scratch:
            y = y.clone()  # callers may keep it for long; kept scratch memory would pile up
        timed = self._plan.graph.types[self._plan.output].has("T")
        if self._interface.output_features is not None:
            y = y.reshape(*y.shape[: 1 + timed], *self._interface.output_features)
        return y.flatten(0, 1) if timed and self._interface.merged_output else y


@dataclass(slots=True)
class _Live(Execution):
    """Executes nodes on the module's present tensors."""

    tensor: Callable[[str], Tensor] = field(kw_only=True)

    def array(self, param: Param) -> Tensor:
        return self.tensor(param.name)


def _adopt(module: nn.Module, source: nn.Module, network: str) -> None:
    """Give the module the source's children, parameters, buffers and mode."""
    for name in (*source._modules, *source._parameters, *source._buffers):
        if hasattr(module, name):
            raise CompileError(f"{name}: fused modules have an attribute of that name", Loc(network), hint="rename it")
    for name, child in source._modules.items():
        module.add_module(name, child)
    for name, parameter in source._parameters.items():
        module.register_parameter(name, parameter)
    for name, buffer in source._buffers.items():
        module.register_buffer(name, buffer, persistent=name not in source._non_persistent_buffers_set)
    module.training = source.training


def _constants(module: nn.Module, plan: Plan, elsewhere: set[str], device: torch.device | None) -> dict[str, str]:
    """Buffers for the parameters of the graph that are not elsewhere, outside `state_dict`: their names, by theirs."""
    names = {}
    for at, (name, value) in enumerate(plan.graph.parameters.items()):
        if name not in elsewhere:
            names[name] = f"_constant_{at}"
            module.register_buffer(names[name], torch.tensor(value, device=device), persistent=False)
    return names


def _device(source: nn.Module) -> torch.device | None:
    return next((tensor.device for tensor in (*source.parameters(), *source.buffers())), None)


def _check_input(x: Tensor, features: tuple[int, ...], lead: str, timesteps: int, network: str) -> None:
    if x.dtype not in _DTYPES:
        hint = "call x.float(); for mixed precision use torch.autocast"
        raise CompileError(f"the input is {x.dtype}, must be torch.float32 or torch.bfloat16", Loc(network), hint=hint)
    axes = 2 if lead == "T, N" else 1
    fits = x.ndim == axes + len(features) and tuple(x.shape[axes:]) == features
    if lead != "N":
        fits = fits and (x.shape[0] == timesteps if axes == 2 else x.shape[0] % timesteps == 0)
    if not fits or x.shape[axes - 1] == 0:
        takes = ", ".join((lead.replace("T", str(timesteps)), *(str(size) for size in features)))
        raise CompileError(
            f"the input has shape {tuple(x.shape)}, the network takes ({takes})",
            Loc(network),
            hint="fuse again for another size or number of time steps",
        )


def _check_autocast(device: str, network: str) -> None:
    if torch.is_autocast_enabled(device) and torch.get_autocast_dtype(device) not in _DTYPES:
        raise CompileError(
            f"autocast is to {torch.get_autocast_dtype(device)}, must be to torch.bfloat16",
            Loc(network),
            hint=f'torch.autocast("{device}", dtype=torch.bfloat16)',
        )


def _places(plan: Plan, batch: int) -> Mapping[Key, Place]:
    return arrange(scratch_requests(plan, batch)).places


def _step(step: Step, plan: Plan, orders: Mapping[str, LoopOrder], kernels: SpikeKernels) -> _FusedStep | _TorchRule:
    if isinstance(step, TorchStep):
        return _TorchRule(step.node, execute.dispatch(type(step.node.op)), step.repeats)
    rows = {name: order.rows_per_call for name, order in orders.items()}
    program = stage_program(step, plan.timesteps, rows, kernels_of(plan, step, kernels))
    return _FusedStep(step, program_number(program), parameter_names(step), buffer_names(step))


def _one_valued(plan: Plan) -> tuple[tuple[str, str], ...]:
    """Batch norms that see one value per sample and channel: their names, and those of their running means."""
    found = []
    for step in plan.steps:
        node = step.batch_norm if isinstance(step, Stage) else step.node
        if node is None or not isinstance(node.op, BatchNorm):
            continue
        kind = plan.graph.types[step.source if isinstance(step, Stage) else node.inputs[0]]
        pixels = math.prod(kind.size(axis) for axis in kind.axes if axis not in ("T", "N", "C"))
        times = plan.timesteps if isinstance(step, Stage) or kind.has("T") else step.repeats
        if times * pixels == 1:
            found.append((node.name, node.op.mean.name))
    return tuple(found)


def _last_use(plan: Plan) -> tuple[tuple[str, ...], ...]:
    """By step, the values that no later step reads."""
    last: dict[str, int] = {}
    for at, step in enumerate(plan.steps):
        read = [step.source] if isinstance(step, Stage) else list(step.node.inputs)
        for name in (*step.outputs, *read):
            last[name] = at
    last.pop(plan.output, None)
    return tuple(tuple(name for name, use in last.items() if use == at) for at in range(len(plan.steps)))


def _rows(value: Tensor, *, has_time: bool) -> Tensor:
    """Time and batch as one axis; feature maps with the channels last in memory."""
    rows = value.flatten(0, 1) if has_time else value
    return rows.contiguous(memory_format=torch.channels_last) if rows.ndim == 4 else rows.contiguous()


def _sequence(rows: Tensor, timesteps: int) -> Tensor:
    """Time and batch as two axes."""
    return rows.view(timesteps, -1, *rows.shape[1:])


def _compute_dtype(x: Tensor) -> torch.dtype:
    """Of the stage's layers: autocast's, or that of its input."""
    kind = x.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype
