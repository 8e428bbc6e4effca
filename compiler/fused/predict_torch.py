"""The vanilla dataflow: each operator of eager torch a kernel, neurons step by step, autograd keeps what it wants."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from compiler.fused.predict_facts import (
    F32_BYTES,
    Direction,
    Family,
    Launch,
    NodeFacts,
    Unit,
    Work,
    elements,
    roots,
    training_facts,
)
from compiler.ir import Graph, Node
from compiler.ir.ops import Add, AvgPool2d, BatchNorm, Conv2d, Encode, Flatten, Input, Lif, Linear, MaxPool2d, Readout

INDEX_BYTES = 8  # of the places that maximum pooling keeps
TEMPORARIES = 3  # values of one time step that an operator's result and inputs take beside the lists

F, B = F32_BYTES, 1  # bytes of a value, of a boolean
Row = tuple[str, int, int]  # operator, bytes read and written for each neuron


@dataclass(frozen=True, slots=True, kw_only=True)
class EagerNeuron:
    """Operators of one population in eager torch, in bytes for each neuron and time step, and what autograd keeps.

    once: before the first step. forward: at each step. backward: at each step. recurrent: backward at each step but
    the last, whose membrane potential nobody reads. Then the spikes are stacked, and backward the steps' gradients.
    kept_each, kept_recurrent: values kept for each neuron at each step, and at each step but the last. The stacked
    spikes are kept by whoever reads them.
    """

    name: str
    once: tuple[Row, ...]
    forward: tuple[Row, ...]
    backward: tuple[Row, ...]
    recurrent: tuple[Row, ...]
    kept_each: int
    kept_recurrent: int


_FIRE = (("ge", F, B), ("to", B, F))
_RECTANGLE = (("sub", F, F), ("abs", F, F), ("lt", F, B), ("to", B, F))

# hard reset and rectangle, as the networks of the zoo have them
MODULE = EagerNeuron(
    name="frontends.nn.LIF",
    once=(("zeros_like", 0, F),),
    forward=(("mul", F, F), ("add", 2 * F, F), *_FIRE, ("gt", F, B), ("where", B + F, F)),
    backward=(*_RECTANGLE, ("sub", F, F), ("mul", F, F), ("mul", 2 * F, F)),
    recurrent=(
        ("mul", F, F),  # decay
        ("rsub", F, F),
        ("mul", 2 * F, F),
        ("rsub", F, F),
        ("mul", 2 * F, F),
        ("add", 2 * F, F),  # two gradients of s
        ("add_", 2 * F, F),  # two gradients of m
    ),
    kept_each=1,  # m
    kept_recurrent=1,  # s
)
# m = decay * m * (1 - s) + y operator by operator, the spike function alone with a gradient of its own
EQUATION = EagerNeuron(
    name="equation 4.1",
    once=(("zeros_like", 0, F), ("zeros_like", 0, F)),
    forward=(("mul", F, F), ("rsub", F, F), ("mul", 2 * F, F), ("add", 2 * F, F), *_FIRE),
    backward=(*_RECTANGLE, ("mul", 2 * F, F)),
    recurrent=(
        ("mul", 2 * F, F),
        ("mul", 2 * F, F),
        ("mul", F, F),  # decay
        ("neg", F, F),
        ("add", 2 * F, F),
        ("add_", 2 * F, F),
    ),
    kept_each=1,  # m
    kept_recurrent=2,  # decay * m and 1 - s, the operands of a product
)


def vanilla_work(graph: Graph, batch: int, neuron: EagerNeuron = MODULE) -> Work:
    """One training step of the network as torch runs it, time merged with the batch in all layers.

    Raises: CompileError for an op that has no rule here.
    """
    rules = TorchRules(graph, batch, neuron)
    units = tuple(unit for node in graph.nodes for unit in rules.units(node))
    return Work(
        network=graph.name,
        dataflow=f"vanilla, {neuron.name}",
        timesteps=graph.timesteps,
        batch=batch,
        units=units,
    )


@dataclass(slots=True)
class TorchRules:
    """How torch computes nodes of a graph."""

    graph: Graph
    batch: int
    neuron: EagerNeuron = MODULE
    facts: Mapping[str, NodeFacts] = field(init=False)
    roots: Mapping[str, str] = field(init=False)

    def __post_init__(self) -> None:
        self.facts = training_facts(self.graph, self.batch)
        self.roots = roots(self.graph)

    def units(self, node: Node) -> Iterator[Unit]:
        """The node's work, none for what only names values or views them; then sums of several readers' gradients."""
        if isinstance(node.op, Input | Flatten):
            return
        yield self._unit(node)

    def _unit(self, node: Node) -> Unit:
        facts = self.facts[node.name]
        forward_bytes, backward_bytes = self._transient(node)
        return Unit(
            name=node.name,
            kind=facts.kind,
            reads=self.values(*node.inputs),
            writes=self.values(node.name),
            launches=(*self._launches(node, facts), *self.accumulations(node.name)),
            kept=self._kept(node),
            forward_bytes=forward_bytes,
            backward_bytes=backward_bytes,
            parameter_bytes=facts.parameter_bytes,
            input_gradient=facts.input_gradient,
        )

    def values(self, *names: str) -> Mapping[str, int]:
        """Bytes of values by the name of what holds them."""
        return {self.roots[name]: elements(self.graph, name, self.batch) * F32_BYTES for name in names}

    def accumulations(self, value: str) -> Iterator[Launch]:
        """Sums of the gradients of a value that several nodes read."""
        readers = sum(node.inputs.count(value) for node in self.graph.consumers(value))
        size = self.facts[value].outputs * F32_BYTES
        has_gradient = self.facts[value].input_gradient or self.facts[value].parameter_bytes > 0
        if readers > 1 and has_gradient:
            yield Launch(
                kernel="add_",
                direction=Direction.BACKWARD,
                read_bytes=2 * size,
                written_bytes=size,
                count=readers - 1,
            )

    def _kept(self, node: Node) -> Mapping[str, int]:
        facts = self.facts[node.name]
        trains = facts.parameter_bytes > 0 or facts.input_gradient
        if not trains:
            return {}
        match node.op:
            case Conv2d() | Linear() | AvgPool2d():
                return self.values(*node.inputs)
            case BatchNorm():
                return {**self.values(*node.inputs), f"{node.name}.moments": 2 * facts.channels * F32_BYTES}
            case MaxPool2d():
                return {**self.values(*node.inputs), f"{node.name}.places": facts.outputs * INDEX_BYTES}
            case Lif():
                step = facts.outputs // facts.steps * F32_BYTES
                values = self.neuron.kept_each * facts.steps + self.neuron.kept_recurrent * (facts.steps - 1)
                return {f"{node.name}.state": values * step}
        return {}

    def _transient(self, node: Node) -> tuple[int, int]:
        """Memory of neurons beside inputs, results and what is kept: temporaries, and the list of steps' gradients."""
        if not isinstance(node.op, Lif):
            return 0, 0
        facts = self.facts[node.name]
        size = facts.outputs * F32_BYTES
        return (1 + TEMPORARIES) * size // facts.steps, size + TEMPORARIES * size // facts.steps

    def _launches(self, node: Node, facts: NodeFacts) -> Iterator[Launch]:
        match node.op:
            case Conv2d():
                yield from layer_launches(facts, "conv2d", Family.CONVOLUTION)
            case Linear():
                yield from layer_launches(facts, "linear", Family.MATRIX_MULTIPLY)
            case BatchNorm():
                yield from _norm_launches(facts)
            case Lif():
                yield from neuron_launches(self.neuron, facts)
            case Encode():
                yield _launch("repeat", Direction.FORWARD, facts.inputs[0], facts.outputs)
            case Add():
                yield _launch("add", Direction.FORWARD, sum(facts.inputs), facts.outputs)
            case AvgPool2d() | MaxPool2d() | Readout():
                yield _launch(facts.kind, Direction.FORWARD, facts.inputs[0], facts.outputs)
                if facts.input_gradient:
                    yield _launch(facts.kind, Direction.BACKWARD, facts.outputs, facts.inputs[0])
            case _:
                raise self.graph.site(node).fail(f"no rule to predict {facts.kind} in torch")


def layer_launches(facts: NodeFacts, kernel: str, family: Family) -> Iterator[Launch]:
    """A convolution or linear layer: its result and bias; gradients of bias, weight and, where wanted, input."""
    taken, given, weights = facts.inputs[0], facts.outputs, facts.weights

    def multiply(direction: Direction, read: int, written: int) -> Launch:
        return Launch(
            kernel=kernel,
            direction=direction,
            read_bytes=read * F32_BYTES,
            written_bytes=written * F32_BYTES,
            family=family,
            multiply_adds=facts.multiply_adds,
        )

    yield multiply(Direction.FORWARD, taken + weights, given)
    if facts.biases and family is Family.CONVOLUTION:  # cuBLAS adds it itself
        yield _launch("add_", Direction.FORWARD, given, given)
    if facts.input_gradient:
        yield multiply(Direction.BACKWARD, given + weights, taken)
    yield multiply(Direction.BACKWARD, given + taken, weights)
    if facts.biases:
        yield _launch("sum", Direction.BACKWARD, given, facts.biases)


def _norm_launches(facts: NodeFacts) -> Iterator[Launch]:
    """Statistics and result read x, sums and gradient read x and the gradient: each twice, in one operator."""
    size = facts.outputs
    yield _launch("add_", Direction.FORWARD, 0, 0)  # counts the batches
    yield _launch("batch_norm", Direction.FORWARD, 2 * size, size)
    yield _launch("batch_norm", Direction.BACKWARD, 4 * size, size)


def neuron_launches(neuron: EagerNeuron, facts: NodeFacts) -> Iterator[Launch]:
    """One population over all steps."""
    steps, size = facts.steps, facts.outputs // facts.steps

    def rows(table: tuple[Row, ...], direction: Direction, count: int) -> Iterator[Launch]:
        for kernel, read, written in table if count else ():
            yield Launch(
                kernel=kernel,
                direction=direction,
                read_bytes=read * size,
                written_bytes=written * size,
                count=count,
            )

    yield from rows(neuron.once, Direction.FORWARD, 1)
    yield from rows(neuron.forward, Direction.FORWARD, steps)
    yield _launch("stack", Direction.FORWARD, steps * size, steps * size)
    if facts.input_gradient:
        yield from rows(neuron.backward, Direction.BACKWARD, steps)
        yield from rows(neuron.recurrent, Direction.BACKWARD, steps - 1)
        yield _launch("stack", Direction.BACKWARD, steps * size, steps * size)


def _launch(kernel: str, direction: Direction, read: int, written: int) -> Launch:
    """A kernel on so many f32 values."""
    return Launch(kernel=kernel, direction=direction, read_bytes=read * F32_BYTES, written_bytes=written * F32_BYTES)
