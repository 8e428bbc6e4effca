"""Orders the channels between convolutions, so that channels of like density meet in the blocks of the engine."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from compiler.ir import Encoding, Graph, Node
from compiler.ir.ops import (
    Array,
    AvgPool2d,
    BatchNorm,
    Conv2d,
    Encode,
    Flatten,
    Li,
    Lif,
    Linear,
    MaxPool2d,
    Readout,
    Scale,
    parameter_names,
)
from hwmodel.config import H2LearnConfig

Floats = npt.NDArray[np.floating]
Order = tuple[int, ...]  # the channel that comes to each place
_CHANNELWISE = (BatchNorm, Scale, Lif, Li, AvgPool2d, MaxPool2d, Flatten, Readout)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ChannelDensity:
    """Ones of the masks of a convolution's input gradient, channel by channel, over their elements.

    Shapes: inputs (its output channels), equation 3.2; outputs (its input channels), equation 3.1.
    """

    inputs: Floats
    outputs: Floats


@dataclass(frozen=True, slots=True)
class OrderChannels:
    """Permute the output channels of convolutions, by their names, in all that reads them.

    Needs: a verified graph in which each of them, up to the next convolution or linear layer, is a chain of one reader
    each. Ensures: the same names and shapes; the same function up to the order of sums.
    Raises: CompileError for a name that is no convolution, groups, a parameter of several nodes, channels that reach
    the output or a branch.
    """

    orders: Mapping[str, Order]

    def __call__(self, graph: Graph) -> Graph:
        for name, order in self.orders.items():
            node = next((node for node in graph.nodes if node.name == name), None)
            if node is None or not isinstance(node.op, Conv2d):
                raise graph.site(node or graph.input).fail(f"{name} is no convolution", "orders go by convolution")
            channels = graph.types[name].size("C")
            if sorted(order) != list(range(channels)):
                raise graph.site(node).fail(f"the order is no permutation of {channels} channels")
            graph = graph.with_nodes(graph.nodes, parameters=dict(_ordered(graph, node, np.array(order))))
        return graph


def balanced_orders(graph: Graph, densities: Mapping[str, ChannelDensity], config: H2LearnConfig) -> dict[str, Order]:
    """An order for each convolution of whose output channels a density is known; those with groups stay as they are.

    `densities` go by convolution: its output channels are rows of the Backward Engine while its own input gradient is
    computed, and columns for that of the next convolution.
    """
    orders: dict[str, Order] = {}
    for node in graph.nodes:
        if not isinstance(node.op, Conv2d):
            continue
        behind = _reader(graph, node)
        if behind is None or any(isinstance(n.op, Conv2d) and n.op.groups > 1 for n in (node, behind)):
            continue
        own, later = densities.get(node.name), densities.get(behind.name)
        rows = own.inputs if own is not None else None
        columns = later.outputs if later is not None else None
        if rows is not None or columns is not None:
            orders[node.name] = balanced_order(rows, columns, config)
    return orders


def balanced_order(rows: Floats | None, columns: Floats | None, config: H2LearnConfig) -> Order:
    """Channels from dense to sparse as rows, in blocks of the array's rows; then, inside a block, dealt to columns.

    Shared columns lie cols / shared_columns places apart: the places of a block of rows belong to different lists of
    output IDs, and the densest column goes to the list that has the least so far. Where the blocks do not fit that
    pattern, or one density is not known, the other decides alone.
    """
    backward = config.backward
    lists = backward.cols // backward.shared_columns
    by_density = rows if rows is not None else columns
    assert by_density is not None
    order = np.argsort(-by_density, kind="stable")
    if columns is None:
        return tuple(order.tolist())
    loads = np.zeros(lists)
    for first in range(0, len(order), backward.rows):
        if first % backward.cols == 0:
            loads[:] = 0
        places = np.arange(first, min(first + backward.rows, len(order)))
        block = order[places][np.argsort(-columns[order[places]], kind="stable")]
        at = places[np.argsort(loads[places % lists], kind="stable")]
        order[at] = block
        np.add.at(loads, at % lists, columns[block])
    return tuple(order.tolist())


def _reader(graph: Graph, producer: Node) -> Node | None:
    """The convolution or linear layer that reads a convolution's channels through a chain; None where there is none."""
    chain = _chain(graph, producer)
    return chain[-1] if isinstance(chain[-1].op, Conv2d | Linear) else None


def _chain(graph: Graph, producer: Node) -> list[Node]:
    """What reads the producer's channels, up to the first that mixes them or lets several read them."""
    chain: list[Node] = []
    name = producer.name
    while len(readers := graph.consumers(name)) == 1 and name != graph.output:
        chain.append(readers[0])
        if not _keeps_channels(readers[0]):
            break
        name = readers[0].name
    return chain or [producer]


def _keeps_channels(node: Node) -> bool:
    return isinstance(node.op, _CHANNELWISE) or (isinstance(node.op, Encode) and node.op.kind is Encoding.DIRECT)


def _ordered(graph: Graph, producer: Node, order: npt.NDArray[np.intp]) -> Iterator[tuple[str, Array]]:
    """The arrays that change."""
    *between, reader = _chain(graph, producer)
    if reader is producer or not isinstance(reader.op, Conv2d | Linear):
        raise graph.site(producer).fail(
            "its channels reach the output or a branch, where their order matters", "leave its order as it is"
        )
    for node in (producer, *between, reader):
        _check(graph, node)
    yield from _permuted(graph, producer, order)
    features = order
    for node in between:
        if isinstance(node.op, Flatten) and graph.types[node.inputs[0]].has("H"):
            maps = graph.types[node.inputs[0]]
            positions = maps.size("H") * maps.size("W")
            features = (order[:, None] * positions + np.arange(positions)).reshape(-1)
        yield from _permuted(graph, node, features)
    weight = reader.op.weight.name
    yield weight, graph.parameters[weight][:, features]


def _check(graph: Graph, node: Node) -> None:
    """Refuse what a permutation would break."""
    if isinstance(node.op, Conv2d) and node.op.groups > 1:
        raise graph.site(node).fail(f"has {node.op.groups} groups, whose channels keep their places")
    names = parameter_names(node.op)
    for other in graph.nodes:
        shared = set(names) & set(parameter_names(other.op)) if other.name != node.name else set()
        if shared:
            raise graph.site(node).fail(f"shares @{min(shared)} with {other.name}", "give each node its own parameters")


def _permuted(graph: Graph, node: Node, order: npt.NDArray[np.intp]) -> Iterator[tuple[str, Array]]:
    """All arrays of a node, whose first axis are its channels."""
    for name in parameter_names(node.op):
        yield name, graph.parameters[name][order]
