"""Refuses networks that H2Learn cannot train, before anything is compiled."""

from __future__ import annotations

import math

import numpy as np

from compiler.differentiate import KeepCompressed, differentiate
from compiler.h2learn.emit_sgd import Descent
from compiler.ir import DType, Graph, Node, SurrogateKind
from compiler.ir.ops import (
    AvgPool2d,
    BatchNorm,
    Conv2d,
    Lif,
    Linear,
    MaxPool2d,
    Readout,
    Scale,
    parameter_names,
)
from compiler.losses import Loss
from hwmodel.checker.parameters import MOST_MACHINES
from hwmodel.errors import CompileError, Loc


def check_descent(descent: Descent, loc: Loc) -> None:
    """Refuse numbers that no update can work with.

    Raises: CompileError naming the option and what it may be.
    """
    rate, momentum, decay, inverse = (
        f32(value)
        for value in (
            descent.learning_rate,
            descent.momentum,
            descent.weight_decay,
            1.0 / descent.loss_scale if descent.loss_scale else math.inf,
        )
    )
    faults = [
        (descent.learning_rate, "learning rate", 0.0 < rate < math.inf, "positive and finite in f32"),
        (descent.momentum, "momentum", 0.0 <= momentum < 1.0, "at least 0 and below 1"),
        (descent.weight_decay, "weight decay", 0.0 <= decay < math.inf, "at least 0 and finite in f32"),
        (descent.loss_scale, "loss scale", 0.0 < inverse < math.inf, "positive, and it and its inverse finite in f32"),
        (descent.batch_group, "batch group", 1 <= descent.batch_group < 1 << 16, "from 1 to 65535"),
        (descent.machines, "machines", 1 <= descent.machines <= MOST_MACHINES, f"from 1 to {MOST_MACHINES}"),
    ]
    for value, what, fits, allowed in faults:
        if not fits:
            raise CompileError(f"{what} is {value:g}, must be {allowed}", loc)


def f32(value: float) -> float:
    """The number as an instruction holds it."""
    with np.errstate(over="ignore"):
        return float(np.float32(value))


def check_trainable(graph: Graph, loss: Loss) -> None:
    """Refuse ops without a gradient unit, outputs that are no class scores, and what cannot be kept compressed.

    Raises: CompileError with the node and a hint.
    """
    for node in graph.nodes:
        _check_node(graph, node)
    if not any(isinstance(node.op, Conv2d | Linear) for node in graph.nodes):
        raise CompileError("the network has no weights to train", graph.input.loc)
    if not any(isinstance(node.op, Readout) for node in graph.nodes):
        raise CompileError(
            "the network has no readout over time, so that there are no scores to take a loss of",
            graph.input.loc,
            hint="end the network in the mean over time",
        )
    output = graph.types[graph.output]
    if output.axes != "NC":
        raise CompileError(f"the output {output} is no vector of class scores", graph.input.loc)
    KeepCompressed()(differentiate(graph, loss))


def check_unshared(graph: Graph) -> None:
    """Refuse weights that two layers share: each stands in memory for itself, so that they would drift apart.

    Raises: CompileError naming both layers.
    """
    readers: dict[str, Node] = {}
    for node in graph.nodes:
        if isinstance(node.op, Conv2d | Linear):
            for name in parameter_names(node.op):
                if name in readers:
                    raise graph.site(node).fail(
                        f"shares parameter @{name} with {readers[name].name}",
                        "give each layer its own weights, or use the torch backend",
                    )
                readers[name] = node


def _check_node(graph: Graph, node: Node) -> None:
    site = graph.site(node)
    match node.op:
        case BatchNorm():
            raise site.fail(
                "H2Learn has no unit for the statistics of a batch norm",
                "fold it into the weights first (--fold-batch-norm), or use the torch backend",
            )
        case Scale():
            raise site.fail("H2Learn has no unit for a scale", "multiply it into the weights first")
        case Lif(surrogate=surrogate) if surrogate.kind is not SurrogateKind.RECTANGLE:
            raise site.fail(
                f"the Grad unit has the rectangular surrogate of equation 2.6, not {surrogate.kind}",
                "use Surrogate(kind=rectangle), or the torch backend",
            )
        case AvgPool2d() | MaxPool2d() as pool:
            if pool.kernel != pool.stride or pool.padding != (0, 0):
                raise site.fail(
                    "the Grad unit takes pooling windows side by side, without padding",
                    "make the stride the kernel size and the padding 0, or use the torch backend",
                )
            if isinstance(pool, MaxPool2d) and graph.types[node.inputs[0]].dtype is DType.SPIKE:
                source = graph.node(node.inputs[0])
                if not isinstance(source.op, Lif):
                    raise site.fail("a maximum of spikes must stand directly behind its neuron to be trained")
