"""The H2Learn compiler: graph in, checked program out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from compiler.h2learn.emit import LayerEmitter
from compiler.h2learn.isolate_pools import isolate_pools
from compiler.h2learn.keep import NOTHING, kept_of
from compiler.h2learn.layers import Network, NetworkLayer, split_layers
from compiler.h2learn.quantise import SomaStage, quantise
from compiler.h2learn.schedule_dataflow import Schedule, schedule_dataflow
from compiler.h2learn.synchronise import Action, synchronise
from compiler.h2learn.table import TableBuilder
from compiler.h2learn.tensors import LayerPlan, forward_tensors
from compiler.ir import Encoding, Graph, TensorType
from compiler.ir.ops import Conv2d, Encode
from compiler.passes import FoldBatchNorm, HoistEncode, MeanLast, PassReport, SinkFlatten, run_passes
from hwmodel.checker import check
from hwmodel.config import H2LearnConfig, TileConfig
from hwmodel.errors import CompileError, Loc
from hwmodel.isa import Load, most
from hwmodel.program import Host, Layer, NeuronFacts, Program

PASSES = (HoistEncode(), FoldBatchNorm(), MeanLast(), SinkFlatten())


@dataclass(frozen=True, slots=True, kw_only=True)
class Compiled:
    """A program, and what the compiler did to get there."""

    program: Program
    graph: Graph  # after the passes: what the program computes, in real numbers
    passes: tuple[PassReport, ...]
    flushed_weights: int  # not zero in f32, zero in FP16
    weights: int


def compile_inference(
    graph: Graph,
    config: H2LearnConfig,
    *,
    batch: int | None = None,
    print_after: str = "",
    show: Callable[[str], None] = print,
) -> Compiled:
    """Compile a network's inference for one sub-batch; the configuration's own size by default.

    Raises: CompileError for what the accelerator cannot run, with node and hint.
    """
    samples = config.sub_batch if batch is None else batch
    check_counts(graph, samples)
    lowered, reports = run_passes(graph, PASSES, print_after=print_after, show=show)
    network = split_layers(lowered)
    plans = [plan for layer in network.layers for plan in plan_layers(lowered, layer, config, samples, config.tile)]
    program = _program(network, plans, config, samples)
    check(program)
    return Compiled(
        program=program,
        graph=lowered,
        passes=reports,
        flushed_weights=sum(plan.constants.flushed for plan in plans),
        weights=sum(plan.constants.total for plan in plans),
    )


def check_counts(graph: Graph, samples: int) -> None:
    """Refuse a sub-batch or a number of time steps that the instruction set cannot state."""
    if graph.timesteps < 1:
        raise CompileError("the network has no time steps", graph.input.loc, hint="encode the input over time")
    for what, count, field in (("batch", samples, "n0"), ("timesteps", graph.timesteps, "t0")):
        limit = most(Load, field) + 1
        if not 1 <= count <= limit:
            raise CompileError(f"{what} is {count}, must be from 1 to {limit}", Loc(graph.name))


def plan_layers(
    graph: Graph,
    layer: NetworkLayer,
    config: H2LearnConfig,
    batch: int,
    tile: TileConfig,
    *,
    training: bool = False,
) -> list[LayerPlan]:
    """The layer as passes over an engine: pooling that a tile, or a buffer, cannot hold is a pass of its own.

    For training the parameters stay unfolded, and buffers hold what the backward pass needs.
    Raises: CompileError where the smallest choice exceeds a buffer.
    """
    plans = []
    for part in isolate_pools(graph, layer, (tile.h, tile.w)):
        constants = quantise(graph, part, fold=not training)
        kept = kept_of(part) if training else NOTHING
        schedule = schedule_dataflow(part, constants, config, graph.timesteps, batch, kept)
        if isinstance(schedule, Schedule):
            plans.append(LayerPlan(layer=part, constants=constants, schedule=schedule))
        elif part.synapse is not None and (part.pool1 or part.pool2):
            plans += plan_layers(graph, part, config, batch, replace(tile, h=0, w=0), training=training)
        else:
            raise CompileError(
                f"{part.name}: one output of one sample at one step exceeds {schedule}",
                part.nodes[0].loc,
                hint="use a configuration with larger buffers",
            )
    return plans


def _program(network: Network, plans: Sequence[LayerPlan], config: H2LearnConfig, batch: int) -> Program:
    graph = network.graph
    table = TableBuilder(config, batch)
    layers = forward_tensors(table, graph.types[plans[0].layer.source], plans, graph.timesteps)
    actions: list[Action] = []
    for number, (plan, tensors) in enumerate(zip(plans, layers, strict=True)):
        emitter = LayerEmitter(number, plan, tensors, config)
        actions.extend(emitter.actions())
    return Program(
        name=graph.name,
        config=config,
        timesteps=graph.timesteps,
        batch=batch,
        streams=synchronise(actions, graph.input.loc),
        tensors=table.placed(graph.input.loc),
        constants=table.constants,
        layers=tuple(layer_facts(graph, plan) for plan in plans),
        host=host_of(network),
        meta={"graph": graph.digest()},
    )


def layer_facts(graph: Graph, plan: LayerPlan) -> Layer:
    """What a program says of a layer."""
    layer = plan.layer
    op = layer.synapse.op if layer.synapse is not None else None
    kind = "pool" if op is None else "conv" if isinstance(op, Conv2d) else "fc"
    maps = layer.synapse_type
    return Layer(
        name=layer.name,
        engine=plan.schedule.engine,
        kind=kind,
        nodes=tuple(node.name for node in layer.nodes),
        neurons=tuple(_neuron_facts(graph, stage) for stage in plan.constants.stages),
        c_in=layer.source_type.size("C"),
        c_out=maps.size("C"),
        kernel=layer.kernel,
        stride=op.stride if isinstance(op, Conv2d) else (1, 1),
        out_h=max(tile.rows.start + tile.rows.size for tile in plan.schedule.tiles),
        out_w=max(tile.columns.start + tile.columns.size for tile in plan.schedule.tiles),
        groups=op.groups if isinstance(op, Conv2d) else 1,
        hold=layer.held,
    )


def _neuron_facts(graph: Graph, stage: SomaStage) -> NeuronFacts:
    shape = _maps(graph.types[stage.node]) if stage.node else (1, 1, 1)
    return NeuronFacts(node=stage.node, fires=stage.fire, shape=shape)


def _maps(kind: TensorType) -> tuple[int, int, int]:
    if not kind.has("H"):
        return kind.size("C"), 1, 1
    return kind.size("C"), kind.size("H"), kind.size("W")


def host_of(network: Network) -> Host:
    """What the host does around the program.

    Raises: CompileError for an encoding that a program cannot state.
    """
    graph = network.graph
    kind = graph.types[graph.input.name]
    encode = network.encode.op if network.encode is not None else None
    seed = 0
    if isinstance(encode, Encode) and encode.kind is Encoding.BERNOULLI:
        if encode.seed is None:
            assert network.encode is not None
            raise graph.site(network.encode).fail(
                "draws from a mask, which a program does not carry", "encode with a seed"
            )
        seed = encode.seed
    return Host(
        input_shape=_maps(kind) if kind.has("H") else (kind.size("C"),),
        input_has_time=kind.has("T"),
        encoding=str(encode.kind) if isinstance(encode, Encode) else "none",
        seed=seed,
        output_is_flat=not graph.types[graph.output].has("H"),
        readout=str(network.readout) if network.readout is not None else "none",
    )
