"""The training graph: forward, backward and update steps in SSA form over named, typed values."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from types import MappingProxyType

from compiler.differentiate.steps import Forward, Step
from compiler.ir import CompileError, Encoding, Graph, TensorType
from compiler.ir.ops import Encode, Flatten
from compiler.losses import Loss
from hwmodel.errors import Loc

LABELS = "labels"
LOSS = "loss"


def extents(kind: TensorType, batch: int) -> tuple[int, ...]:
    """The shape of a value for a batch."""
    return tuple(batch if isinstance(size, str) else size for size in kind.shape)


def gradient_of(name: str) -> str:
    """The value that holds the loss's gradient by a node's output or a parameter."""
    return f"d.{name}"


class Stage(StrEnum):
    """The three stages of a training step."""

    FP = "FP"  # forward pass
    BP = "BP"  # backward pass
    WU = "WU"  # weight update: gradients of parameters


class BatchStatistics(StrEnum):
    """Which mean and variance a batch norm uses."""

    BATCH = "batch"  # of the values at hand, over T, N, H and W, as in training
    RUNNING = "running"  # the graph's own, as in evaluation


class Format(StrEnum):
    """How a kept value is stored."""

    DENSE = "dense"  # a number per element
    BIT = "bit"
    COMPRESSED = "compressed"  # a number per element inside the surrogate's window; +0 elsewhere
    INDEX = "index"  # of a max pool's winner: its place in the window


@dataclass(frozen=True, slots=True)
class Value:
    """One result of a step."""

    name: str
    type: TensorType
    format: Format = Format.DENSE


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingNode:
    """One step of one network node: what it reads and makes, by value name."""

    name: str  # of the network node; of the output for the loss
    stage: Stage
    step: Step
    inputs: tuple[str, ...]
    results: tuple[Value, ...]
    loc: Loc


@dataclass(frozen=True, eq=False)
class TrainingGraph:
    """The BPTT training of a network as explicit steps, in order of execution.

    Values are named, for a network node NODE and a parameter PARAM:

        NODE                 the node's output
        NODE.membrane        m of a Lif: all (dense), or those inside the window and +0 elsewhere (compressed)
        NODE.mask            1 where m lies inside the surrogate's window, else 0 (only KeepCompressed has it)
        NODE.mean, NODE.var  statistics of a batch norm over the batch, the variance biased
        NODE.winners         of a max pool, row * W + column of each window's winner; of a max readout, 1 at
                             the steps that reach the maximum
        d.NODE               gradient of NODE; of the output, what the loss sends
        d.NODE.by.READER     one reader's part of it, where several read NODE (then d.NODE is their sum);
                             READER.0 and READER.1 where one node reads NODE twice
        d.PARAM              gradient of a parameter; parts as for a node
        loss, labels         the loss, and the label of each sample

    Building one verifies it.
    Raises: CompileError where two values have one name, or a value is read before it is made.
    """

    graph: Graph
    loss: Loss | None  # None: the gradient of the output is given at each run
    statistics: BatchStatistics
    nodes: tuple[TrainingNode, ...]
    outputs: tuple[str, ...]  # what a run makes unless it is asked for more
    policy: str = "KeepAll"  # the pass that decided what is kept
    values: Mapping[str, Value] = field(init=False)  # by name
    makers: Mapping[str, TrainingNode] = field(init=False)  # by name of the value

    def __post_init__(self) -> None:
        results = [(value, node) for node in self.nodes for value in node.results]
        object.__setattr__(self, "values", MappingProxyType({value.name: value for value, _ in results}))
        object.__setattr__(self, "makers", MappingProxyType({value.name: node for value, node in results}))
        self.verify()

    def __str__(self) -> str:
        from compiler.differentiate.text import print_training

        return print_training(self)

    def verify(self) -> None:
        """Check that each value has one maker, which stands before its readers."""
        known = {LABELS} if self.loss else {gradient_of(self.graph.output)}
        for node in self.nodes:
            for name in node.inputs:
                if name not in known:
                    raise CompileError(f"{node.name}: value %{name} is not made yet", node.loc)
            for value in node.results:
                if value.name in known:
                    raise CompileError(
                        f"{node.name}: value %{value.name} has two meanings in the training graph",
                        node.loc,
                        hint="rename the node or parameter: d.NAME, NAME.membrane and the like are taken",
                    )
                known.add(value.name)
        for name in self.outputs:
            if name not in known:
                raise CompileError(f"%{name} is no value of the training graph", self.graph.input.loc)

    @property
    def gradients(self) -> dict[str, str]:
        """By trained parameter that the output depends on, the value of its gradient."""
        names = {name: gradient_of(name) for name in self.graph.parameters}
        return {name: value for name, value in names.items() if self._is_update(value)}

    @property
    def kept(self) -> tuple[Value, ...]:
        """The forward values that the backward and update steps behind `outputs` read, each once.

        A flatten and a direct encoding are views: what they are of is kept in their place.
        """
        readers = [node for node in self.needed(self.outputs) if node.stage is not Stage.FP]
        read = {self._viewed(name) for node in readers for name in node.inputs if self._is_forward(name)}
        return tuple(value for name, value in self.values.items() if name in read)

    def needed(self, wanted: Iterable[str], given: Collection[str] = ()) -> list[TrainingNode]:
        """The nodes that make the wanted values, in order, when the given values need no making."""
        missing = set(wanted).difference(given)
        nodes = []
        for node in reversed(self.nodes):
            if any(value.name in missing for value in node.results):
                nodes.append(node)
                missing.update(name for name in node.inputs if name not in given)
        return nodes[::-1]

    def _is_forward(self, name: str) -> bool:
        return name in self.makers and self.makers[name].stage is Stage.FP

    def _is_update(self, name: str) -> bool:
        return name in self.makers and self.makers[name].stage is Stage.WU

    def _viewed(self, name: str) -> str:
        maker = self.makers[name]
        match maker.step:
            case Forward(op=Flatten()) | Forward(op=Encode(kind=Encoding.DIRECT)):
                return self._viewed(maker.inputs[0])
        return name
