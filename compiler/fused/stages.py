"""Cuts a network into stages: from one layer's result through its neurons to the next layers' results."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from compiler.fused.plan import Part, Plan, Stage, Step, TorchStep
from compiler.fused.population import PER_CHANNEL, Norm, Population, Window
from compiler.ir import CompileError, DType, Graph, Node, Number, Param
from compiler.ir.ops import (
    Add,
    AvgPool2d,
    BatchNorm,
    Conv2d,
    Encode,
    Flatten,
    Input,
    Li,
    Lif,
    Linear,
    MaxPool2d,
    Readout,
    Scale,
)
from compiler.passes.postpone_encode import PostponeEncode, is_direct, is_neuron_norm
from compiler.passes.sink_flatten import SinkFlatten

TORCH = (Input, Encode, Conv2d, Linear, BatchNorm, Scale, Add, AvgPool2d, MaxPool2d, Flatten, Li, Readout)
MOST_PIXELS = 16  # of a window inside a population: kernels unroll them, and larger windows stand where maps are small


def plan_stages(graph: Graph) -> Plan:
    """The steps of one pass through the network: stages, and the nodes that torch computes.

    Raises: CompileError for an op that has no rule here.
    """
    given = graph
    graph = PostponeEncode()(_sunk(given))
    refused = [node for node in graph.nodes if not isinstance(node.op, (Lif, *TORCH))]
    if refused:
        kind = type(refused[0].op).__name__
        raise graph.site(refused[0]).fail(f"no rule to train {kind} in stages", "train the network with torch")
    sequences = {name for name, kind in given.types.items() if kind.has("T")}
    finder = _Finder(graph, {name for name in sequences if name in graph.types and not graph.types[name].has("T")})
    position = {node.name: at for at, node in enumerate(graph.nodes)}
    # A stage's nodes all descend from its one source, so that no step waits for a later one in this order.
    steps = sorted(finder.steps(), key=lambda step: min(position[name] for name in step.nodes))
    return Plan(
        graph=graph,
        network=graph.name,
        timesteps=graph.timesteps,
        input=graph.input.name,
        output=graph.output,
        steps=tuple(steps),
    )


def _sunk(graph: Graph) -> Graph:
    """With each Flatten behind its neurons; as it is if neurons have a number of their own for each feature."""
    try:
        return SinkFlatten()(graph)
    except CompileError:
        return graph  # a Flatten before neurons costs a copy and changes no value


@dataclass(slots=True)
class _Chain:
    """What stands between a stage's source and its layers, as it is followed through the graph."""

    value: str  # the last value
    parts: list[Part] = field(default_factory=list)
    lifs: list[Node] = field(default_factory=list)
    results: list[str] = field(default_factory=list)


@dataclass(slots=True)
class _Finder:
    graph: Graph
    repeated: set[str]  # values that had a time axis before the encoding moved
    taken: set[str] = field(default_factory=set)  # nodes that a stage holds

    def steps(self) -> Iterator[Step]:
        """All steps, stages of neurons first."""
        for node in self.graph.nodes:
            if isinstance(node.op, Lif) and node.name not in self.taken:
                yield self._keep(self._neurons(node))
        for node in self.graph.nodes:
            is_free = isinstance(node.op, Conv2d | Linear) and node.name not in self.taken
            if is_free and self.graph.types[node.inputs[0]].dtype is DType.SPIKE:
                yield self._keep(self._packed(node.inputs[0]))
        for node in self.graph.nodes:
            if node.name not in self.taken:
                yield TorchStep(node=node, repeats=self.graph.timesteps if node.name in self.repeated else 1)

    def _keep(self, stage: Stage) -> Stage:
        self.taken.update(stage.nodes)
        return stage

    def _neurons(self, lif: Node) -> Stage:
        graph = self.graph
        before = graph.node(lif.inputs[0])
        batch_norm = before if is_neuron_norm(graph, before) else None
        if batch_norm is not None:
            before = graph.node(batch_norm.inputs[0])
        encode = before if is_direct(before) and self._only_reader(before.name) is not None else None
        chain = self._follow(lif, repeated=encode is not None, has_norm=batch_norm is not None)
        behind = self._only_reader(chain.value)
        flatten = behind if behind is not None and isinstance(behind.op, Flatten) else None
        value = chain.value if flatten is None else flatten.name
        linears, spikes = self._layers(value), self._read_by_others(value)
        return Stage(
            name=linears[-1].name if linears else value,
            source=encode.inputs[0] if encode is not None else before.name,
            repeated=encode is not None,
            batch_norm=batch_norm,
            parts=tuple(chain.parts),
            lifs=tuple(chain.lifs),
            flatten=flatten,
            linears=linears,
            spikes=value if spikes else None,
            encode=encode,
            results=tuple(chain.results),
        )

    def _follow(self, lif: Node, *, repeated: bool, has_norm: bool) -> _Chain:
        """The neurons, and as long as each value has one reader, the neurons and pooling behind them."""
        chain = _Chain(lif.name)
        node: Node | None = lif
        while node is not None and isinstance(node.op, Lif | AvgPool2d | MaxPool2d):
            if isinstance(node.op, Lif):
                is_first = not chain.parts
                window, chain.value = self._window(node)
                norm = Norm.BATCH if is_first and has_norm else Norm.NONE
                kept = _population(node.op, self.graph.timesteps, norm, window, repeated=is_first and repeated)
                chain.lifs.append(node)
                chain.parts.append(kept)
            else:
                chain.value = node.name
                chain.parts.append(node.op)
            chain.results.append(chain.value)
            node = self._only_reader(chain.value)
        return chain

    def _window(self, lif: Node) -> tuple[Window | None, str]:
        """The pooling that goes into a population's kernels, and the value of both."""
        pool = self._only_reader(lif.name)
        if pool is None or not isinstance(pool.op, AvgPool2d | MaxPool2d):
            return None, lif.name
        op, maps = pool.op, self.graph.types[lif.name]
        pixels = op.kernel[0] * op.kernel[1]
        if op.stride != op.kernel or op.padding != (0, 0) or pixels > MOST_PIXELS:
            return None, lif.name
        is_exact = all(maps.size(axis) % size == 0 for axis, size in zip("HW", op.kernel, strict=True))
        is_partial = op.ceil_mode and not is_exact
        window = Window(kernel=op.kernel, average=isinstance(op, AvgPool2d), exact=is_exact, ceil=is_partial)
        return window, pool.name

    def _packed(self, source: str) -> Stage:
        linears = self._layers(source)
        return Stage(
            name=linears[-1].name,
            source=source,
            repeated=False,
            batch_norm=None,
            parts=(),
            lifs=(),
            flatten=None,
            linears=linears,
            spikes=None,
            packed=True,
        )

    def _layers(self, value: str) -> tuple[Node, ...]:
        return tuple(node for node in self.graph.consumers(value) if isinstance(node.op, Conv2d | Linear))

    def _read_by_others(self, value: str) -> bool:
        """Whether something else than layers reads a value, or nothing does."""
        readers = self.graph.consumers(value)
        return self.graph.output == value or not readers or len(readers) > len(self._layers(value))

    def _only_reader(self, value: str) -> Node | None:
        readers = self.graph.consumers(value)
        return readers[0] if len(readers) == 1 and self.graph.output != value else None


def _population(op: Lif, timesteps: int, norm: Norm, window: Window | None, *, repeated: bool) -> Population:
    return Population(
        timesteps=timesteps,
        decay=_scalar(op.decay),
        threshold=_scalar(op.threshold),
        input_scale=_scalar(op.input_scale),
        leak_bias=_scalar(op.leak_bias),
        reset=op.reset,
        reset_value=_scalar(op.reset_value),
        reset_delay=op.reset_delay,
        compare=op.compare,
        detach_reset=op.detach_reset,
        initial=_scalar(op.initial),
        surrogate=op.surrogate,
        norm=norm,
        window=window,
        repeated=repeated,
    )


def _scalar(number: Number) -> float | None:
    return PER_CHANNEL if isinstance(number, Param) else float(number)
