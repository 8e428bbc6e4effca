"""The choices of a training program: what is kept, how gradients are scheduled, where everything stands."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from compiler.h2learn.emit_gradient import GradientTensors
from compiler.h2learn.emit_sgd import Descent, Target
from compiler.h2learn.emit_update import UpdateTensors
from compiler.h2learn.gradient_schedule import GradientSchedule, schedule_gradient
from compiler.h2learn.keep import Kept, kept_of
from compiler.h2learn.layers import Network, NetworkLayer
from compiler.h2learn.table import TableBuilder
from compiler.h2learn.tensors import LayerPlan, forward_tensors, stage_kinds
from compiler.h2learn.update_schedule import UpdateSchedule, schedule_update, shape_of
from compiler.ir import DType
from compiler.ir.ops import Conv2d, Flatten, Linear
from hwmodel.config import H2LearnConfig
from hwmodel.errors import CompileError
from hwmodel.program import Role, Trained

FAR = 1  # the memory of the sub-batch that goes backward


@dataclass(frozen=True, slots=True, kw_only=True)
class BackwardPlan:
    """The choices and tensors of one layer's backward pass."""

    number: int
    kept: Kept
    schedule: GradientSchedule
    tensors: GradientTensors
    update: UpdateSchedule | None
    update_tensors: UpdateTensors | None


class TrainingPlan:
    """All tensors and schedules of a training program; nothing changes once it is built.

    Raises: CompileError where the smallest grid iteration exceeds a buffer.
    """

    def __init__(
        self, network: Network, plans: tuple[LayerPlan, ...], config: H2LearnConfig, batch: int, descent: Descent
    ) -> None:
        self.graph = network.graph
        self.layers = plans
        self.kept = tuple(kept_of(plan.layer) for plan in plans)
        self.table = TableBuilder(config, batch)
        self._config = config
        self._batch = batch
        self._descent = descent
        self._steps = network.graph.timesteps
        given = self.graph.types[plans[0].layer.source]
        self.forward = forward_tensors(self.table, given, plans, self._steps, self.kept)
        self._views: dict[int, int] = {}
        self.parameters: list[Trained] = []
        self.targets: list[Target] = []
        self.loss_gradient = self._loss_tensor()
        self._lowest = next(i for i, plan in enumerate(plans) if plan.layer.synapse is not None)
        self.backward = tuple(self._plan_backward())

    @property
    def output(self) -> int:
        """The network's output as the host finds it."""
        return self._far(self.forward[-1].output)

    def _far(self, index: int) -> int:
        """A tensor of the forward pass as the backward pass finds it: in the other memory, one launch later."""
        if index < 0 or self.table.tensors[index].mirrored:
            return index
        if index not in self._views:
            self._views[index] = self.table.view(index, "before", memory=FAR)
        return self._views[index]

    def _loss_tensor(self) -> int:
        last = len(self.layers)
        kind = self.layers[-1].layer.output_type.of(DType.F32)
        return self.table.maps(
            "loss_gradient", kind, Role.LOSS_GRADIENT, last - 1, (last, last + 1), self._steps, memory=FAR
        )

    def _plan_backward(self) -> Iterator[BackwardPlan]:
        """From the last layer to the lowest one with weights."""
        incoming, incoming_mask = self.loss_gradient, -1
        behind: LayerPlan | None = None
        for number in range(len(self.layers) - 1, self._lowest - 1, -1):
            plan, kept = self.layers[number], self.kept[number]
            _check_has_stages(plan)
            schedule = self._fits(
                plan.layer,
                schedule_gradient(
                    plan.layer, behind.layer if behind else None, kept, self._config, self._steps, self._batch
                ),
            )
            assert isinstance(schedule, GradientSchedule)
            tensors = self._gradient_tensors(number, schedule, incoming, incoming_mask)
            yield self._with_update(number, kept, schedule, tensors)
            incoming, incoming_mask, behind = tensors.gradient, tensors.gradient_mask, plan

    def _gradient_tensors(
        self, number: int, schedule: GradientSchedule, incoming: int, incoming_mask: int
    ) -> GradientTensors:
        plan = self.layers[number]
        count = len(self.layers)
        stage = 2 * count - number
        used = _used(plan)
        kind = plan.layer.synapse_type
        gradient = self.table.maps(
            f"{number}.gradient",
            kind.of(DType.F32),
            Role.GRADIENT,
            number,
            (stage, stage + 1),
            self._steps,
            used=used,
            memory=FAR,
        )
        mask = self.table.maps(
            f"{number}.gradient_mask",
            kind.of(DType.SPIKE),
            Role.GRADIENT,
            number,
            (stage, stage + 1),
            self._steps,
            used=used,
            memory=FAR,
        )
        states: tuple[int, ...] = ()
        if len(schedule.times) > 1:
            states = tuple(
                self.table.maps(
                    f"{number}.gradient_state{k}", of.of(DType.F32), Role.STATE, number, (stage, stage), 1, memory=FAR
                )
                for k, of in enumerate(stage_kinds(plan.layer, len(plan.constants.stages)))
            )
        forward = self.forward[number]
        kept = forward.kept
        seen = replace(
            kept,
            first_spikes=self._far(kept.first_spikes),
            masks=(self._far(kept.masks[0]), self._far(kept.masks[1])),
            membranes=(self._far(kept.membranes[0]), self._far(kept.membranes[1])),
            winners=self._far(kept.winners),
        )
        return GradientTensors(
            incoming=incoming,
            incoming_mask=incoming_mask,
            weights=self._weights_behind(number),
            output=self._far(forward.output),
            gradient=gradient,
            gradient_mask=mask,
            states=states,
            forward=replace(forward, kept=seen),
        )

    def _weights_behind(self, number: int) -> int:
        """Weights of the layer behind; of a linear one by map position."""
        if number + 1 == len(self.layers):
            return -1
        plan, index = self.layers[number + 1], self.forward[number + 1].weights
        positions = self._positions(plan)
        if positions == 1:
            return index
        _, features, outputs = self.table.tensors[index].shape[2:]
        return self.table.view(index, "maps", maps=(positions, features // positions, outputs))

    def _positions(self, plan: LayerPlan) -> int:
        """Map positions that a linear layer flattens."""
        node = plan.layer.synapse
        if node is None or not isinstance(node.op, Linear):
            return 1
        producer = self.graph.node(node.inputs[0])
        if not isinstance(producer.op, Flatten):
            return 1
        maps = self.graph.types[producer.inputs[0]]
        return maps.size("H") * maps.size("W")

    def _with_update(
        self, number: int, kept: Kept, schedule: GradientSchedule, tensors: GradientTensors
    ) -> BackwardPlan:
        plan = self.layers[number]
        update: UpdateSchedule | None = None
        update_tensors: UpdateTensors | None = None
        if plan.layer.synapse is not None:
            found = self._fits(
                plan.layer, schedule_update(shape_of(plan.layer, _used(plan)), self._config, self._steps, self._batch)
            )
            assert isinstance(found, UpdateSchedule)
            update = found
            weight_gradient, bias_gradient = self._add_parameters(number, plan)
            update_tensors = UpdateTensors(
                source=self._far(self.forward[number].source),
                gradient=tensors.gradient,
                weight_gradient=weight_gradient,
                bias_gradient=bias_gradient,
            )
        return BackwardPlan(
            number=number,
            kept=kept,
            schedule=schedule,
            tensors=tensors,
            update=update,
            update_tensors=update_tensors,
        )

    def _add_parameters(self, number: int, plan: LayerPlan) -> tuple[int, int]:
        """Accumulators in Mem 2 of a layer's weight and bias; -1 without a bias."""
        assert plan.layer.synapse is not None
        op = plan.layer.synapse.op
        assert isinstance(op, Conv2d | Linear)
        layer = self.forward[number]
        shape = self.table.tensors[layer.weights].shape
        weight = self._add_parameter(number, op.weight.name, layer.weights, (shape[2], shape[3], shape[4]), "weight")
        if op.bias is None:
            return weight, -1
        channels = self.table.tensors[layer.neuron].shape[4]
        return weight, self._add_parameter(number, op.bias.name, layer.neuron, (1, 1, channels), "bias")

    def _add_parameter(self, number: int, parameter: str, tensor: int, shape: tuple[int, int, int], what: str) -> int:
        gradient = self.table.accumulator(f"{number}.{what}_gradient", shape, Role.WEIGHT_GRADIENT, number)
        momentum = -1
        if self._descent.momentum and not self._descent.master_weights:
            momentum = self.table.accumulator(f"{number}.{what}_momentum", shape, Role.MOMENTUM, number)
        names = self.table.tensors
        self.targets.append(Target(layer=number, tensor=tensor, gradient=gradient, momentum=momentum, shape=shape))
        self.parameters.append(
            Trained(
                parameter=parameter,
                shape=self.graph.parameters[parameter].shape,
                positions=1 if what == "bias" else self._positions(self.layers[number]),
                tensor=names[tensor].name,
                gradient=names[gradient].name,
                momentum=names[momentum].name if momentum >= 0 else "",
                is_bias=what == "bias",
                layer=number,
            )
        )
        return gradient

    def _fits(self, layer: NetworkLayer, schedule: object) -> object:
        if isinstance(schedule, str):
            raise CompileError(
                f"{layer.name}: the gradient of one output of one sample at one step exceeds {schedule}",
                layer.nodes[0].loc,
                hint="use a configuration with larger buffers",
            )
        return schedule


def _check_has_stages(plan: LayerPlan) -> None:
    """Refuse a maximum of spikes that was cut off from its neuron: its winners are not kept."""
    if plan.constants.stages:
        return
    raise CompileError(
        f"{plan.layer.name}: a maximum of spikes is trained in one tile with its neuron, which does not hold these "
        "windows",
        plan.layer.nodes[0].loc,
        hint="use smaller windows or an average, or a configuration with larger tiles and buffers",
    )


def _used(plan: LayerPlan) -> tuple[int, int]:
    """Rows and columns of a layer's sums that its pooling does not drop."""
    tiles = plan.schedule.tiles
    return (
        max(tile.rows.start + tile.rows.size for tile in tiles),
        max(tile.columns.start + tile.columns.size for tile in tiles),
    )
