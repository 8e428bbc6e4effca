"""The H2Learn compiler for training: graph in, checked program of a whole BPTT step out."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from compiler.h2learn.compile import check_counts, host_of, layer_facts, plan_layers
from compiler.h2learn.emit import LayerEmitter
from compiler.h2learn.emit_gradient import GradientEmitter, GradientTensors
from compiler.h2learn.emit_sgd import Descent, Target, update_actions
from compiler.h2learn.emit_update import UpdateEmitter, UpdateTensors
from compiler.h2learn.gradient_schedule import GradientSchedule, Origin, schedule_gradient
from compiler.h2learn.keep import Kept, kept_of
from compiler.h2learn.layers import Network, NetworkLayer, split_layers
from compiler.h2learn.pipeline import GridIteration, pipelined
from compiler.h2learn.refuse_training import check_trainable
from compiler.h2learn.synchronise import Action, synchronise
from compiler.h2learn.table import TableBuilder
from compiler.h2learn.tensors import LayerPlan, forward_tensors, stage_kinds
from compiler.h2learn.update_schedule import UpdateSchedule, schedule_update, shape_of
from compiler.ir import DType, Graph
from compiler.ir.ops import Conv2d, Flatten, Linear
from compiler.losses import Loss
from compiler.passes import HoistEncode, MeanLast, PassReport, SinkFlatten, run_passes
from hwmodel.checker import check
from hwmodel.config import H2LearnConfig
from hwmodel.errors import CompileError
from hwmodel.isa import HostLoss, Queue
from hwmodel.program import LayerMasks, Phase, Program, Role, Streams, Trained, Training

PASSES = (HoistEncode(), MeanLast(), SinkFlatten())
FAR = 1  # the memory of the sub-batch that goes backward


@dataclass(frozen=True, slots=True, kw_only=True)
class CompiledTraining:
    """A training program, and what the compiler did to get there."""

    program: Program
    graph: Graph  # after the passes: the network that the program trains
    passes: tuple[PassReport, ...]
    flushed_weights: int  # not zero in f32, zero in FP16
    weights: int


def compile_training(
    graph: Graph,
    config: H2LearnConfig,
    *,
    loss: Loss,
    descent: Descent | None = None,
    batch: int | None = None,
    print_after: str = "",
    show: Callable[[str], None] = print,
) -> CompiledTraining:
    """Compile one BPTT training step over batch groups of sub-batches; the configuration's own sub-batch by default.

    Raises: CompileError for what the accelerator cannot train, with node and hint.
    Source: sections 3.2.2 to 3.2.4, figure 3.9.
    """
    samples = config.sub_batch if batch is None else batch
    check_counts(graph, samples)
    lowered, reports = run_passes(graph, PASSES, print_after=print_after, show=show)
    check_trainable(lowered)
    network = split_layers(lowered)
    plans = tuple(
        plan
        for layer in network.layers
        for plan in plan_layers(lowered, layer, config, samples, config.tile, training=True)
    )
    program = _Builder(network, plans, config, samples, loss, descent or Descent()).program()
    check(program)
    return CompiledTraining(
        program=program,
        graph=lowered,
        passes=reports,
        flushed_weights=sum(plan.constants.flushed for plan in plans),
        weights=sum(plan.constants.total for plan in plans),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Backward:
    """The choices and tensors of one layer's backward pass."""

    number: int
    kept: Kept
    schedule: GradientSchedule
    tensors: GradientTensors
    update: UpdateSchedule | None
    update_tensors: UpdateTensors | None


class _Builder:
    """Builds the program; the tensors come first, then the actions of each phase."""

    def __init__(
        self,
        network: Network,
        plans: tuple[LayerPlan, ...],
        config: H2LearnConfig,
        batch: int,
        loss: Loss,
        descent: Descent,
    ) -> None:
        self._network = network
        self._graph = network.graph
        self._plans = plans
        self._config = config
        self._batch = batch
        self._loss = loss
        self._descent = descent
        self._steps = network.graph.timesteps
        self._kept = tuple(kept_of(plan.layer) for plan in plans)
        self._table = TableBuilder(config, batch)
        given = self._graph.types[plans[0].layer.source]
        self._layers = forward_tensors(self._table, given, plans, self._steps, self._kept)
        self._views: dict[int, int] = {}
        self._parameters: list[Trained] = []
        self._targets: list[Target] = []
        self._loss_gradient = self._loss_tensor()
        self._lowest = next(i for i, plan in enumerate(plans) if plan.layer.synapse is not None)
        self._backward = tuple(self._plan_backward())

    def program(self) -> Program:
        """All phases, placed and synchronised."""
        loc = self._graph.input.loc
        forward = tuple(self._forward_actions())
        backward = tuple(self._backward_actions())
        update = tuple(update_actions(tuple(self._targets), self._descent, self._config))
        phases: dict[Phase, Streams] = {
            Phase.FORWARD: synchronise(forward, loc),
            Phase.OVERLAP: synchronise((*forward, *backward), loc),
            Phase.BACKWARD: synchronise(backward, loc),
            Phase.UPDATE: synchronise(update, loc),
        }
        tensors = self._table.placed(loc)
        training = Training(
            phases=phases,
            loss=str(self._loss),
            loss_scale=self._descent.loss_scale,
            batch_group=self._descent.batch_group,
            machines=self._descent.machines,
            learning_rate=self._descent.learning_rate,
            momentum=self._descent.momentum,
            weight_decay=self._descent.weight_decay,
            master_weights=self._descent.master_weights,
            parameters=tuple(self._parameters),
            masks=tuple(self._masks()),
        )
        return Program(
            name=self._graph.name,
            config=self._config,
            timesteps=self._steps,
            batch=self._batch,
            streams={},
            tensors=tensors,
            constants=self._table.constants,
            layers=tuple(layer_facts(self._graph, plan) for plan in self._plans),
            host=host_of(self._network),
            meta={"graph": self._graph.digest()},
            training=training,
        )

    # -- tensors ------------------------------------------------------------------------------------------------------

    def _far(self, index: int) -> int:
        """A tensor of the forward pass as the backward pass finds it: in the other memory, one launch later."""
        if index < 0 or self._table.tensors[index].mirrored:
            return index
        if index not in self._views:
            self._views[index] = self._table.view(index, "before", memory=FAR)
        return self._views[index]

    def _loss_tensor(self) -> int:
        last = len(self._plans)
        kind = self._plans[-1].layer.output_type.of(DType.F32)
        return self._table.maps(
            "loss_gradient", kind, Role.LOSS_GRADIENT, last - 1, (last, last + 1), self._steps, memory=FAR
        )

    def _plan_backward(self) -> Iterator[_Backward]:
        """From the last layer to the lowest one with weights."""
        incoming, incoming_mask = self._loss_gradient, -1
        behind: LayerPlan | None = None
        for number in range(len(self._plans) - 1, self._lowest - 1, -1):
            plan, kept = self._plans[number], self._kept[number]
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
        plan, layers = self._plans[number], self._layers
        count = len(self._plans)
        stage = 2 * count - number
        used = _used(plan)
        kind = plan.layer.synapse_type
        gradient = self._table.maps(
            f"{number}.gradient",
            kind.of(DType.F32),
            Role.GRADIENT,
            number,
            (stage, stage + 1),
            self._steps,
            used=used,
            memory=FAR,
        )
        mask = self._table.maps(
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
                self._table.maps(
                    f"{number}.gradient_state{k}", of.of(DType.F32), Role.STATE, number, (stage, stage), 1, memory=FAR
                )
                for k, of in enumerate(stage_kinds(plan.layer, len(plan.constants.stages)))
            )
        forward = layers[number]
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
        if number + 1 == len(self._plans):
            return -1
        plan, index = self._plans[number + 1], self._layers[number + 1].weights
        positions = self._positions(plan)
        if positions == 1:
            return index
        _, features, outputs = self._table.tensors[index].shape[2:]
        return self._table.view(index, "maps", maps=(positions, features // positions, outputs))

    def _positions(self, plan: LayerPlan) -> int:
        """Map positions that a linear layer flattens."""
        node = plan.layer.synapse
        if node is None or not isinstance(node.op, Linear):
            return 1
        producer = self._graph.node(node.inputs[0])
        if not isinstance(producer.op, Flatten):
            return 1
        maps = self._graph.types[producer.inputs[0]]
        return maps.size("H") * maps.size("W")

    def _with_update(self, number: int, kept: Kept, schedule: GradientSchedule, tensors: GradientTensors) -> _Backward:
        plan = self._plans[number]
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
                source=self._far(self._layers[number].source),
                gradient=tensors.gradient,
                weight_gradient=weight_gradient,
                bias_gradient=bias_gradient,
            )
        return _Backward(
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
        layer = self._layers[number]
        shape = self._table.tensors[layer.weights].shape
        weight = self._add_parameter(number, op.weight.name, layer.weights, (shape[2], shape[3], shape[4]), "weight")
        if op.bias is None:
            return weight, -1
        channels = self._table.tensors[layer.neuron].shape[4]
        return weight, self._add_parameter(number, op.bias.name, layer.neuron, (1, 1, channels), "bias")

    def _add_parameter(self, number: int, parameter: str, tensor: int, shape: tuple[int, int, int], what: str) -> int:
        gradient = self._table.accumulator(f"{number}.{what}_gradient", shape, Role.WEIGHT_GRADIENT, number)
        momentum = -1
        if self._descent.momentum and not self._descent.master_weights:
            momentum = self._table.accumulator(f"{number}.{what}_momentum", shape, Role.MOMENTUM, number)
        names = self._table.tensors
        self._targets.append(Target(layer=number, tensor=tensor, gradient=gradient, momentum=momentum, shape=shape))
        self._parameters.append(
            Trained(
                parameter=parameter,
                shape=self._graph.parameters[parameter].shape,
                positions=self._positions(self._plans[number]),
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

    # -- actions ------------------------------------------------------------------------------------------------------

    def _forward_actions(self) -> Iterator[Action]:
        for number, (plan, tensors, kept) in enumerate(zip(self._plans, self._layers, self._kept, strict=True)):
            yield from LayerEmitter(number, plan, tensors, self._config, kept).actions()

    def _backward_actions(self) -> Iterator[Action]:
        """The host's loss, then layer by layer its gradient, beside the weight gradients of the layer behind."""
        last = len(self._plans) - 1
        output = self._far(self._layers[last].output)
        yield Action(
            queue=Queue.HOST,
            instruction=HostLoss(layer=last, output=output, gradient=self._loss_gradient),
            writes=(("tensor", self._loss_gradient),),
        )
        waiting: Sequence[tuple[Action, ...]] = ()
        for step in self._backward:
            plan = self._plans[step.number]
            gradient = GradientEmitter(step.number, self._graph, plan, step.kept, step.schedule, step.tensors)
            yield from _side_by_side(_groups(gradient.iterations()), waiting)
            waiting = ()
            if step.update is not None and step.update_tensors is not None:
                update = UpdateEmitter(step.number, step.update, step.update_tensors)
                waiting = _groups(update.iterations())
        yield from _side_by_side((), waiting)

    def _masks(self) -> Iterator[LayerMasks]:
        """Layers whose input gradient skips zeros: the convolutions behind the lowest layer."""
        names = self._table.tensors
        for step in self._backward:
            consumer = step.schedule.consumer
            if consumer.origin is not Origin.CONV:
                continue
            behind = self._plans[step.number + 1].layer
            ends_in_neuron = self._kept[step.number].neuron(len(self._plans[step.number].constants.stages) - 1)
            masks = step.tensors.forward.kept.masks
            wanted = masks[len(self._plans[step.number].constants.stages) - 1] if ends_in_neuron else -1
            yield LayerMasks(
                layer=behind.name,
                kind="conv",
                inputs=names[step.tensors.incoming_mask].name,
                outputs=names[wanted].name if wanted >= 0 else "",
            )


def _used(plan: LayerPlan) -> tuple[int, int]:
    """Rows and columns of a layer's sums that its pooling does not drop."""
    tiles = plan.schedule.tiles
    return (
        max(tile.rows.start + tile.rows.size for tile in tiles),
        max(tile.columns.start + tile.columns.size for tile in tiles),
    )


def _groups(iterations: Iterable[GridIteration]) -> tuple[tuple[Action, ...], ...]:
    return tuple(pipelined(iterations))


def _side_by_side(left: Sequence[tuple[Action, ...]], right: Sequence[tuple[Action, ...]]) -> Iterator[Action]:
    """Two lists that do not depend on each other, mixed in proportion, since they share a memory's queue."""
    taken = 0
    for index, group in enumerate(left, 1):
        yield from group
        due = len(right) * index // len(left)
        for other in right[taken:due]:
            yield from other
        taken = due
    for other in right[taken:]:
        yield from other
