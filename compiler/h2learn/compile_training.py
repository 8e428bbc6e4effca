"""The H2Learn compiler for training: graph in, checked program of a whole BPTT step out."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

from compiler.h2learn.compile import check_counts, host_of, layer_facts, plan_layers
from compiler.h2learn.emit import LayerEmitter
from compiler.h2learn.emit_gradient import GradientEmitter
from compiler.h2learn.emit_sgd import Descent, update_actions
from compiler.h2learn.emit_update import UpdateEmitter
from compiler.h2learn.gradient_schedule import Origin
from compiler.h2learn.layers import Network, split_layers
from compiler.h2learn.pipeline import GridIteration, pipelined
from compiler.h2learn.refuse_training import check_descent, check_trainable, check_unshared
from compiler.h2learn.synchronise import Action, synchronise
from compiler.h2learn.training_plan import TrainingPlan
from compiler.ir import Graph
from compiler.losses import Loss
from compiler.passes import HoistEncode, MeanLast, PassReport, SinkFlatten, run_passes
from hwmodel.checker import check
from hwmodel.config import H2LearnConfig
from hwmodel.errors import Loc
from hwmodel.isa import HostLoss, Queue
from hwmodel.program import LayerMasks, Phase, Program, Streams, Training

PASSES = (HoistEncode(), MeanLast(), SinkFlatten())


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
    options = descent or Descent()
    check_counts(graph, samples)
    check_descent(options, Loc(graph.name))
    lowered, reports = run_passes(graph, PASSES, print_after=print_after, show=show)
    check_trainable(lowered, loss)
    network = split_layers(lowered)
    check_unshared(lowered)
    layers = tuple(
        plan
        for layer in network.layers
        for plan in plan_layers(lowered, layer, config, samples, config.tile, training=True)
    )
    plan = TrainingPlan(network, layers, config, samples, options)
    program = _program(network, plan, config, samples, loss, options)
    check(program)
    return CompiledTraining(
        program=program,
        graph=lowered,
        passes=reports,
        flushed_weights=sum(layer.constants.flushed for layer in layers),
        weights=sum(layer.constants.total for layer in layers),
    )


def _program(
    network: Network, plan: TrainingPlan, config: H2LearnConfig, batch: int, loss: Loss, descent: Descent
) -> Program:
    loc = plan.graph.input.loc
    training = Training(
        phases=_phases(plan, config, descent),
        loss=str(loss),
        loss_scale=descent.loss_scale,
        batch_group=descent.batch_group,
        machines=descent.machines,
        learning_rate=descent.learning_rate,
        momentum=descent.momentum,
        weight_decay=descent.weight_decay,
        master_weights=descent.master_weights,
        parameters=tuple(plan.parameters),
        masks=tuple(_masks(plan)),
    )
    return Program(
        name=plan.graph.name,
        config=config,
        timesteps=plan.graph.timesteps,
        batch=batch,
        streams={},
        tensors=plan.table.placed(loc),
        constants=plan.table.constants,
        layers=tuple(layer_facts(plan.graph, layer) for layer in plan.layers),
        host=host_of(network),
        meta={"graph": plan.graph.digest()},
        training=training,
    )


def _phases(plan: TrainingPlan, config: H2LearnConfig, descent: Descent) -> dict[Phase, Streams]:
    """All phases, synchronised. Only the encoding layer's forward pass shares an engine with the backward pass."""
    loc = plan.graph.input.loc
    forward = tuple(_forward_actions(plan, config))
    backward = tuple(_backward_actions(plan))
    return {
        Phase.FORWARD: synchronise(forward, loc),
        Phase.OVERLAP: synchronise((*forward, *backward), loc),
        Phase.BACKWARD: synchronise(backward, loc),
        Phase.UPDATE: synchronise(update_actions(tuple(plan.targets), descent, config, loc), loc),
    }


def _forward_actions(plan: TrainingPlan, config: H2LearnConfig) -> Iterator[Action]:
    for number, (layer, tensors, kept) in enumerate(zip(plan.layers, plan.forward, plan.kept, strict=True)):
        yield from LayerEmitter(number, layer, tensors, config, kept).actions()


def _backward_actions(plan: TrainingPlan) -> Iterator[Action]:
    """The host's loss, then layer by layer its gradient, beside the weight gradients of the layer behind."""
    loss = HostLoss(layer=len(plan.layers) - 1, output=plan.output, gradient=plan.loss_gradient)
    yield Action(queue=Queue.HOST, instruction=loss, writes=(("tensor", plan.loss_gradient),))
    waiting: Sequence[tuple[Action, ...]] = ()
    for step in plan.backward:
        layer = plan.layers[step.number]
        gradient = GradientEmitter(step.number, plan.graph, layer, step.kept, step.schedule, step.tensors)
        yield from _side_by_side(_groups(gradient.iterations()), waiting)
        waiting = ()
        if step.update is not None and step.update_tensors is not None:
            waiting = _groups(UpdateEmitter(step.number, step.update, step.update_tensors).iterations())
    yield from _side_by_side((), waiting)


def _masks(plan: TrainingPlan) -> Iterator[LayerMasks]:
    """Layers whose input gradient skips zeros: the convolutions behind the lowest layer."""
    tensors = plan.table.tensors
    for step in plan.backward:
        if step.schedule.consumer.origin is not Origin.CONV:
            continue
        layer, last = plan.layers[step.number].layer, len(plan.layers[step.number].constants.stages) - 1
        ends_in_pool = layer.pool2 is not None and layer.neuron2 is None  # then no output is skipped
        is_masked = step.kept.neuron(last) is not None and not ends_in_pool
        wanted = step.tensors.forward.kept.masks[last] if is_masked else -1
        yield LayerMasks(
            layer=plan.layers[step.number + 1].layer.name,
            kind="conv",
            inputs=tensors[step.tensors.incoming_mask].name,
            outputs=tensors[wanted].name if wanted >= 0 else "",
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
