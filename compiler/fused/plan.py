"""How a network is trained in stages: what each fused op spans, and what stays with torch."""

from __future__ import annotations

from dataclasses import dataclass

from compiler.fused.population import Population
from compiler.ir.graph import Graph, Node
from compiler.ir.ops import AvgPool2d, MaxPool2d

Part = Population | AvgPool2d | MaxPool2d  # pooling that no window of a population expresses stands alone


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """From one layer's result through its neurons to the next layers' results: one op that keeps its input alone.

    Forward: x -> batch norm -> parts -> flatten -> each of `linears`. Backward, all between is computed again.
    With `packed`, x is spikes: there are no parts, and what is kept is one bit for each.

    Source: figures 4.3 and 4.4.
    """

    name: str  # of the node that it ends with
    source: str  # the value that it takes
    repeated: bool  # the source has no time axis: it is the same at each step
    batch_norm: Node | None
    parts: tuple[Part, ...]  # the first one holds the batch norm
    lifs: tuple[Node, ...]  # of the populations, in order
    flatten: Node | None
    linears: tuple[Node, ...]  # Conv2d or Linear nodes that read the spikes
    spikes: str | None  # the value of the spikes, if something else reads them too or nothing does
    packed: bool = False
    encode: Node | None = None  # the direct encoding that repeats the source
    results: tuple[str, ...] = ()  # the value that each part gives, before flatten

    @property
    def nodes(self) -> tuple[str, ...]:
        """The nodes of the graph that it computes, in order."""
        lifs = iter(self.lifs)
        names = [node.name for node in (self.encode, self.batch_norm) if node is not None]
        for part, result in zip(self.parts, self.results, strict=True):
            names += [next(lifs).name, result] if isinstance(part, Population) else [result]
        names += [node.name for node in (self.flatten, *self.linears) if node is not None]
        return tuple(dict.fromkeys(names))

    @property
    def outputs(self) -> tuple[str, ...]:
        """The values that it hands on: each layer's result, then the spikes if anything else reads them."""
        return (*(node.name for node in self.linears), *([self.spikes] if self.spikes is not None else []))


@dataclass(frozen=True, slots=True, kw_only=True)
class TorchStep:
    """One node that torch computes and differentiates.

    `repeats`: time steps that the value stands for, where the given network computed it at each one. A batch norm's
    running variance, corrected for the number of values, counts each value that often.
    """

    node: Node
    repeats: int = 1

    @property
    def nodes(self) -> tuple[str, ...]:
        """The node of the graph that it computes."""
        return (self.node.name,)

    @property
    def outputs(self) -> tuple[str, ...]:
        """The value that it hands on."""
        return (self.node.name,)


Step = Stage | TorchStep


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """The steps of one pass through the network, in order.

    `graph` is the network that the steps compute: the given one with a Flatten behind neurons and a direct encoding
    behind layers. Each of its nodes belongs to one step; names of layers, neurons and parameters are those given.
    """

    graph: Graph
    network: str
    timesteps: int
    input: str
    output: str
    steps: tuple[Step, ...]
