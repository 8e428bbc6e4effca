"""What attacks need of a network, and gradients of networks that autograd goes through."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from torch import Tensor

from compiler.attack.victim import BLOCK, places_of, spread
from compiler.differentiate import Loss
from compiler.differentiate.steps import Arrays, LossValue
from compiler.evaluate import Execution, execute
from compiler.ir import CompileError, Encoding, Graph, Node
from compiler.ir.ops import Lif


class Network(Protocol):
    """Scores and input gradients of a network, as `Victim` gives them."""

    @property
    def graph(self) -> Graph:
        """The network as it was given."""

    @property
    def encoding(self) -> Encoding | None:
        """How the attacked input becomes what the gradient is taken by."""

    @property
    def classes(self) -> int:
        """How many classes there are."""

    @property
    def has_time(self) -> bool:
        """Whether what the gradient is taken by is a sequence."""

    def scores(self, x: Tensor, places: Sequence[int] | None = None) -> Tensor:
        """Class scores."""

    def gradient(self, x: Tensor, classes: Tensor, places: Sequence[int] | None = None) -> Tensor:
        """The gradient of each sample's loss by its input."""


NeuronRule = Callable[[Lif, Tensor, Node, Execution], Tensor]


def output_with(graph: Graph, x: Tensor, neuron: NeuronRule) -> Tensor:
    """The output by the rules of `evaluate`, but for neurons, which take a rule of their own; autograd goes through.

    Shapes: x as the graph's input.
    """
    run = Execution(graph)
    values: dict[str, Tensor] = {}
    for node in graph.nodes:
        inputs = [values[name] for name in node.inputs] or [x]
        match node.op:
            case Lif() as op:
                values[node.name] = neuron(op, inputs[0], node, run)
            case op:
                values[node.name] = execute(op, inputs, node, run)
    return values[graph.output]


def in_blocks(scores: Callable[[Tensor], Tensor], x: Tensor, places: Sequence[int] | None, axis: int) -> Tensor:
    """Scores of samples at their places in blocks, without autograd. Shapes: N at `axis` of x -> (N, K)."""
    at = places_of(places, x.shape[axis])
    with torch.no_grad():
        return torch.cat([scores(block) for block in torch.split(spread(x, at, axis), BLOCK, axis)])[at]


def loss_gradient(
    graph: Graph,
    scores: Callable[[Tensor], Tensor],
    loss: Loss,
    x: Tensor,
    classes: Tensor,
    places: Sequence[int] | None,
    axis: int,
) -> Tensor:
    """The gradient of each sample's loss by its input, over BLOCK, by autograd through `scores`.

    Shapes: N at `axis` of x, classes (N,) -> as x.
    Raises: CompileError where it is not finite, or none reaches the input.
    """
    at = places_of(places, x.shape[axis])
    arrays = Arrays(parameters=graph.parameters, given={}, dtype=torch.float32, first_sample=0)
    step = LossValue(loss=loss)
    parts: list[Tensor] = []
    blocks = torch.split(spread(x, at, axis), BLOCK, axis)
    for block, own in zip(blocks, torch.split(spread(classes, at, 0), BLOCK), strict=True):
        with torch.enable_grad():
            source = block.clone().requires_grad_()
            (value,) = step.run([scores(source), own], arrays)
            if not value.requires_grad:
                raise CompileError(f"{graph.input.name}: no gradient of the scores reaches the input", graph.input.loc)
            parts += torch.autograd.grad(value, source)
    gradient = torch.cat(parts, axis).index_select(axis, at)
    if not bool(torch.isfinite(gradient).all()):
        node = graph.input
        raise CompileError(f"{node.name}: the gradient of the loss by the input is not finite", node.loc)
    return gradient
