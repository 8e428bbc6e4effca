"""Collects the program's tensors: inputs and outputs of layers, constants, carried membrane potentials."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from compiler.h2learn.allocate_memory import Request, allocate_memory
from compiler.h2learn.blocks import column_blocks
from compiler.h2learn.constants import neuron_blocks, weight_blocks
from compiler.h2learn.layers import NetworkLayer
from compiler.h2learn.quantise import F16, Quantised
from compiler.h2learn.schedule_dataflow import Schedule
from compiler.ir import DType, TensorType
from hwmodel.config import H2LearnConfig
from hwmodel.errors import Loc
from hwmodel.program import Format, Role, Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerPlan:
    """One layer with all choices taken."""

    layer: NetworkLayer
    constants: Quantised
    schedule: Schedule


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerTensors:
    """Indices of a layer's tensors in the program's tensor table; -1 where it has none."""

    source: int
    output: int
    weights: int = -1
    neuron: int = -1
    states: tuple[int, ...] = ()  # per neuron stage, where time is split


class TensorTable:
    """Builds the tensor table of a chain of layers; each layer's source is the output before it."""

    def __init__(
        self, given: TensorType, plans: Sequence[LayerPlan], config: H2LearnConfig, timesteps: int, batch: int
    ) -> None:
        self._config = config
        self._batch = batch
        self._tensors: list[Tensor] = []
        self._lives: list[tuple[int, int]] = []
        self.constants: dict[str, F16] = {}
        first = plans[0].layer
        steps = 1 if first.held and first.synapse is not None else timesteps
        source = self._value("input", given, Role.INPUT, 0, (-1, 0), steps)
        layers = []
        for number, plan in enumerate(plans):
            last = number == len(plans) - 1
            role = Role.OUTPUT if last else Role.ACTIVATION
            name = f"{number}.{plan.layer.output}"
            output = self._value(name, plan.layer.output_type, role, number, (number, number + 1), timesteps)
            layers.append(
                LayerTensors(
                    source=source,
                    output=output,
                    weights=self._weights(number, plan),
                    neuron=self._neuron(number, plan),
                    states=self._states(number, plan),
                )
            )
            source = output
        self.layers = tuple(layers)

    def placed(self, loc: Loc) -> tuple[Tensor, ...]:
        """The tensors with their addresses."""
        requests = [
            Request(name=tensor.name, size_bytes=tensor.size_bytes, first=life[0], last=life[1])
            for tensor, life in zip(self._tensors, self._lives, strict=True)
        ]
        constants = [request for request in requests if request.name in self.constants]
        others = [request for request in requests if request.name not in self.constants]
        addresses = allocate_memory(constants, others, self._config.memory.capacity_bytes, loc)
        return tuple(replace(tensor, address=addresses[tensor.name]) for tensor in self._tensors)

    def _add(self, tensor: Tensor, life: tuple[int, int]) -> int:
        self._tensors.append(tensor)
        self._lives.append(life)
        return len(self._tensors) - 1

    def _value(self, name: str, kind: TensorType, role: Role, layer: int, life: tuple[int, int], steps: int) -> int:
        maps = (kind.size("H"), kind.size("W")) if kind.has("H") else (1, 1)
        tensor = Tensor(
            name=name,
            memory=0,
            mirrored=False,
            address=0,
            shape=(steps, self._batch, *maps, kind.size("C")),
            format=Format.S1 if kind.dtype is DType.SPIKE else Format.FP16,
            role=role,
            layer=layer,
        )
        return self._add(tensor, life)

    def _constant(self, name: str, values: F16, role: Role, layer: int) -> int:
        self.constants[name] = values
        tensor = Tensor(
            name=name,
            memory=0,
            mirrored=True,
            address=0,
            shape=(1, 1, *values.shape),
            format=Format.FP16,
            role=role,
            layer=layer,
        )
        return self._add(tensor, (-1, -1))

    def _weights(self, number: int, plan: LayerPlan) -> int:
        if plan.constants.weights is None:
            return -1
        schedule = plan.schedule
        columns = column_blocks(plan.layer, schedule.cols)
        values = weight_blocks(plan.constants, schedule.engine, schedule.partition, columns, self._config)
        return self._constant(f"{number}.weights", values, Role.WEIGHT, number)

    def _neuron(self, number: int, plan: LayerPlan) -> int:
        if not plan.constants.stages:
            return -1
        values = neuron_blocks(plan.constants, column_blocks(plan.layer, plan.schedule.cols))
        return self._constant(f"{number}.neuron", values[:, None, :], Role.NEURON, number)

    def _states(self, number: int, plan: LayerPlan) -> tuple[int, ...]:
        """Membrane potentials between the chunks of a split time axis."""
        if len(plan.schedule.times) == 1:
            return ()
        layer = plan.layer
        kinds = [layer.output_type]
        if len(plan.constants.stages) == 2 or layer.pool2 is not None:
            kinds = [layer.pool1_type, layer.output_type]
        return tuple(
            self._value(f"{number}.state{stage}", kind.of(DType.F32), Role.STATE, number, (number, number), 1)
            for stage, kind in zip(range(len(plan.constants.stages)), kinds, strict=False)
        )
