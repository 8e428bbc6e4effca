"""The tensors of each layer's forward pass: inputs and outputs, constants, carried membrane potentials."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from compiler.h2learn.constants import neuron_values, weight_values
from compiler.h2learn.keep import Kept
from compiler.h2learn.layers import NetworkLayer
from compiler.h2learn.quantise import Quantised
from compiler.h2learn.schedule_dataflow import Schedule
from compiler.h2learn.table import Life, TableBuilder
from compiler.ir import DType, TensorType
from compiler.ir.ops import Conv2d
from hwmodel.program import Format, Role


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerPlan:
    """One layer with all choices taken."""

    layer: NetworkLayer
    constants: Quantised
    schedule: Schedule


@dataclass(frozen=True, slots=True, kw_only=True)
class KeptTensors:
    """Indices of what the forward pass keeps; -1 for what a layer does not have."""

    first_spikes: int = -1
    masks: tuple[int, int] = (-1, -1)  # per neuron stage
    membranes: tuple[int, int] = (-1, -1)
    winners: int = -1
    compressed: bool = False  # the membranes, by their masks


NOTHING_KEPT = KeptTensors()


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerTensors:
    """Indices of a layer's tensors in the program's tensor table; -1 where it has none."""

    source: int
    output: int
    weights: int = -1
    neuron: int = -1
    states: tuple[int, ...] = ()  # per neuron stage, where time is split
    kept: KeptTensors = NOTHING_KEPT


def forward_tensors(
    table: TableBuilder,
    given: TensorType,
    plans: Sequence[LayerPlan],
    timesteps: int,
    kept: Sequence[Kept] = (),
) -> tuple[LayerTensors, ...]:
    """The tensors of a chain of layers; each layer's source is the output before it.

    In training (`kept` is given) what a layer makes lives until its weights' gradients are done: with L layers,
    stage L is the host's loss and stage 2 L - l the backward pass of layer l, beside which the weight gradients
    of layer l + 1 may still run.
    """
    layers: list[LayerTensors] = []
    first = plans[0].layer
    steps = 1 if first.held and first.synapse is not None else timesteps
    last = 2 * len(plans) + 1 if kept else 0
    source = table.maps("input", given, Role.INPUT, 0, (-1, last), steps)
    for number, plan in enumerate(plans):
        is_last = number == len(plans) - 1
        life = (number, 2 * len(plans) - number if kept else number + 1)
        role = Role.OUTPUT if is_last else Role.ACTIVATION
        output = table.maps(f"{number}.{plan.layer.output}", plan.layer.output_type, role, number, life, timesteps)
        layers.append(
            LayerTensors(
                source=source,
                output=output,
                weights=_weights(table, number, plan),
                neuron=_neuron(table, number, plan),
                states=_states(table, number, plan),
                kept=_kept(table, number, plan, kept[number], life, timesteps) if kept else NOTHING_KEPT,
            )
        )
        source = output
    return tuple(layers)


def stage_kinds(layer: NetworkLayer, stages: int) -> tuple[TensorType, ...]:
    """The resolution of each neuron stage."""
    kinds = [layer.pool1_type, layer.output_type] if stages == 2 or layer.pool2 is not None else [layer.output_type]
    return tuple(kinds[:stages])


def _weights(table: TableBuilder, number: int, plan: LayerPlan) -> int:
    if plan.constants.weights is None:
        return -1
    return table.constant(f"{number}.weights", weight_values(plan.constants), Role.WEIGHT, number)


def _neuron(table: TableBuilder, number: int, plan: LayerPlan) -> int:
    if not plan.constants.stages:
        return -1
    return table.constant(f"{number}.neuron", neuron_values(plan.constants), Role.NEURON, number)


def _states(table: TableBuilder, number: int, plan: LayerPlan) -> tuple[int, ...]:
    """Membrane potentials between the chunks of a split time axis."""
    if len(plan.schedule.times) == 1:
        return ()
    return tuple(
        table.maps(f"{number}.state{stage}", kind.of(DType.F32), Role.STATE, number, (number, number), 1)
        for stage, kind in enumerate(stage_kinds(plan.layer, len(plan.constants.stages)))
    )


def _kept(table: TableBuilder, number: int, plan: LayerPlan, kept: Kept, life: Life, timesteps: int) -> KeptTensors:
    kinds = stage_kinds(plan.layer, len(plan.constants.stages))
    is_conv = plan.layer.synapse is not None and isinstance(plan.layer.synapse.op, Conv2d)

    def tensor(what: str, kind: TensorType, form: Format) -> int:
        return table.maps(f"{number}.{what}", kind, Role.KEPT, number, life, timesteps, form=form)

    masks, membranes = [-1, -1], [-1, -1]
    for neuron in kept.neurons:
        stage = neuron.stage
        masks[stage] = tensor(f"mask{stage}", kinds[stage], Format.S1)
        if neuron.membrane:
            form = Format.MCOMP if is_conv else Format.FP16
            membranes[stage] = tensor(f"membrane{stage}", kinds[stage], form)
    return KeptTensors(
        first_spikes=tensor("spikes0", kinds[0], Format.S1) if kept.first_spikes else -1,
        masks=(masks[0], masks[1]),
        membranes=(membranes[0], membranes[1]),
        winners=tensor("winners", plan.layer.synapse_type, Format.S1) if kept.winners else -1,
        compressed=is_conv,
    )
