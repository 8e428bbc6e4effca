"""First stage of the H2Learn compiler: a chain of graph nodes becomes layers that one engine can run."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from compiler.ir import DType, Encoding, Graph, Node, Reading, Reset, TensorType
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
from hwmodel.errors import CompileError

POOLS = (AvgPool2d, MaxPool2d)
Pool = AvgPool2d | MaxPool2d


@dataclass(frozen=True, slots=True, kw_only=True)
class NetworkLayer:
    """What runs as one pass over an engine: a weighted layer (or none), then the Soma's stages.

    x = synapse(source); x = pool1(x); s = neuron1(x); s = pool2(s); s = neuron2(s).
    Without a synapse the Soma reads `source` straight from memory, through pool1 and neuron1 alone.
    Without a neuron the last value is stored as it is.
    """

    name: str
    source: str  # value names of the graph
    output: str
    source_type: TensorType  # as the engine reads it
    synapse_type: TensorType  # after the synapse
    pool1_type: TensorType
    output_type: TensorType
    synapse: Node | None = None
    pool1: Node | None = None
    neuron1: Node | None = None
    pool2: Node | None = None
    neuron2: Node | None = None
    kernel: tuple[int, int] = (1, 1)  # of a convolution
    held: bool = False  # a directly encoded source: the same at every time step
    real: bool = False  # the source is real-valued

    @property
    def nodes(self) -> tuple[Node, ...]:
        """The graph nodes of the layer, in order."""
        parts = (self.synapse, self.pool1, self.neuron1, self.pool2, self.neuron2)
        return tuple(node for node in parts if node is not None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Network:
    """The layers in order, and how the host reads the last one's output."""

    graph: Graph
    layers: tuple[NetworkLayer, ...]
    readout: Reading | None
    encode: Node | None  # done by the host, except a direct encoding


def split_layers(graph: Graph) -> Network:
    """Group the nodes of a chain into layers.

    Raises: CompileError for what H2Learn cannot run: residual sums, real values where an engine needs
    spikes, ops without a unit; with the node and a hint.
    """
    chain = _chain(graph)
    encode = chain.pop(0) if chain and isinstance(chain[0].op, Encode) else None
    readout, chain = _readout(graph, chain)
    chain = [node for node in chain if not isinstance(node.op, Flatten)]
    if not chain:
        raise CompileError("the network has no layer to run", graph.input.loc)
    for node in chain:
        _refuse_unsupported(graph, node)
    held = encode is not None and isinstance(encode.op, Encode) and encode.op.kind is Encoding.DIRECT
    source = (encode or graph.input).name
    if not graph.types[source].has("T"):
        raise graph.site(graph.input).fail("the input has no time steps", "encode it over time")
    layers: list[NetworkLayer] = []
    position = 0
    while position < len(chain):
        layer, used = _take_layer(graph, chain[position:], source)
        is_first = not layers
        real = graph.types[source].dtype is not DType.SPIKE
        if real and layer.synapse is not None and not is_first:
            raise _real_input(graph, layer.synapse, source)
        layers.append(replace(layer, held=held and is_first, real=real))
        source = layer.output
        position += used
    return Network(graph=graph, layers=tuple(layers), readout=readout, encode=encode)


def _chain(graph: Graph) -> list[Node]:
    """All nodes after the input, each taking the value before it."""
    nodes = [node for node in graph.nodes if not isinstance(node.op, Input)]
    for node in nodes:
        if isinstance(node.op, Add):
            raise graph.site(node).fail(
                "H2Learn has no unit for a residual sum",
                "use a network without skip connections on this target",
            )
    previous = graph.input.name
    for node in nodes:
        if node.inputs != (previous,):
            raise graph.site(node).fail(
                f"takes %{node.inputs[0]}, not the value before it (%{previous})",
                "H2Learn runs chains; branches are not supported",
            )
        previous = node.name
    if previous != graph.output:
        raise CompileError(f"the output %{graph.output} is not the last value %{previous}", graph.input.loc)
    return nodes


def _readout(graph: Graph, chain: list[Node]) -> tuple[Reading | None, list[Node]]:
    kinds = [node.op.kind for node in chain if isinstance(node.op, Readout)]
    body = [node for node in chain if not isinstance(node.op, Readout)]
    after = list(reversed(chain))
    for node in after:
        if isinstance(node.op, Readout):
            break
        if kinds and not isinstance(node.op, Flatten):
            raise graph.site(node).fail(
                "stands after the readout over time", "only a mean over time may be followed by linear layers"
            )
    if len(kinds) > 1:
        raise CompileError("the network reads out over time twice", graph.input.loc)
    return (kinds[0] if kinds else None), body


def _refuse_unsupported(graph: Graph, node: Node) -> None:
    site = graph.site(node)
    match node.op:
        case BatchNorm() | Scale():
            raise site.fail(f"{type(node.op).__name__} is left in the graph", "fold it first")
        case Encode():
            raise site.fail("encodes inside the network", "encode the input, before the first layer")
        case Lif(reset=Reset.SOFT, reset_delay=True):
            raise site.fail("H2Learn's Soma resets in the step of the spike", "set reset_delay to False")
        case Conv2d() | Linear() | AvgPool2d() | MaxPool2d() | Lif() | Li():
            return
    raise site.fail(f"H2Learn has no unit for {type(node.op).__name__}")


def _take_layer(graph: Graph, chain: list[Node], source: str) -> tuple[NetworkLayer, int]:
    """The longest layer at the head of the chain, and how many nodes it takes."""
    nodes = iter(chain)
    ahead = next(nodes, None)
    parts: dict[str, Node] = {}

    def accept(part: str, kinds: type | tuple[type, ...], rest: Iterator[Node]) -> Node | None:
        nonlocal ahead
        if ahead is None or not isinstance(ahead.op, kinds):
            return None
        parts[part] = ahead
        ahead = next(rest, None)
        return parts[part]

    synapse = accept("synapse", (Conv2d, Linear), nodes)
    accept("pool1", POOLS, nodes)
    accept("neuron1", (Lif, Li), nodes)
    fires = "neuron1" in parts and isinstance(parts["neuron1"].op, Lif)
    if synapse is not None and fires and accept("pool2", POOLS, nodes) is not None:
        accept("neuron2", (Lif, Li), nodes)
    _check_ends_in_spikes(graph, list(parts.values()), ahead)
    last = list(parts.values())[-1]
    first = parts.get("synapse")
    source_type = graph.types[first.inputs[0] if first is not None else source]
    synapse_type = graph.types[first.name] if first is not None else source_type
    pool1 = parts.get("pool1")
    layer = NetworkLayer(
        name=next(iter(parts.values())).name,
        source=source,
        output=last.name,
        source_type=source_type,
        synapse_type=synapse_type,
        pool1_type=graph.types[pool1.name] if pool1 is not None else synapse_type,
        output_type=graph.types[last.name],
        synapse=first,
        kernel=_kernel(graph, first),
        pool1=pool1,
        neuron1=parts.get("neuron1"),
        pool2=parts.get("pool2"),
        neuron2=parts.get("neuron2"),
    )
    return layer, len(parts)


def _kernel(graph: Graph, synapse: Node | None) -> tuple[int, int]:
    if synapse is None or not isinstance(synapse.op, Conv2d):
        return (1, 1)
    height, width = graph.parameters[synapse.op.weight.name].shape[2:]
    return height, width


def _check_ends_in_spikes(graph: Graph, parts: list[Node], following: Node | None) -> None:
    """A layer that another layer follows must end in spikes."""
    last = parts[-1]
    if following is None or graph.types[last.name].dtype is DType.SPIKE:
        return
    if isinstance(last.op, AvgPool2d) and graph.types[last.inputs[0]].dtype is DType.SPIKE:
        raise graph.site(last).fail(
            "averages spikes to values that no neuron turns into spikes again",
            "use conv -> pool -> LIF or conv -> LIF -> pool -> LIF, so that every layer takes spikes",
        )
    if isinstance(following.op, Conv2d | Linear):
        raise _real_input(graph, following, last.name)
    raise graph.site(following).fail(
        f"takes real values from %{last.name}", "put a spiking neuron (LIF) between the two"
    )


def _real_input(graph: Graph, node: Node, source: str) -> CompileError:
    return graph.site(node).fail(
        f"takes real values from %{source}; H2Learn's Forward Engine takes spikes",
        "only the first layer may take real values; elsewhere put a LIF before it "
        "(conv -> pool -> LIF, or conv -> LIF -> pool -> LIF)",
    )
