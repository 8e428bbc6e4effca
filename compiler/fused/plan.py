"""How a network is trained in stages: what each fused op spans, and what stays with torch."""

from __future__ import annotations

from dataclasses import dataclass

from compiler.fused.population import Population
from compiler.ir.graph import Node
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


@dataclass(frozen=True, slots=True, kw_only=True)
class TorchStep:
    """One node that torch computes and differentiates."""

    node: Node


Step = Stage | TorchStep


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """The steps of one pass through the network, in order."""

    network: str
    timesteps: int
    input: str
    output: str
    steps: tuple[Step, ...]
