"""Small graphs and the second path to a gradient: torch's autograd over `to_torch`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from compiler.differentiate import BatchStatistics
from compiler.ir import DType, Graph, Loc, Node
from compiler.ir.ops import Array, Input, Lif, Op
from frontends.to_torch import to_torch


def chain(*ops: Op, shape: tuple[int | str, ...], axes: str, arrays: Mapping[str, Array] | None = None) -> Graph:
    """A network of one op after the other: x, n2, n3, ... at the lines 1, 2, 3, ... of net.py."""
    nodes = [Node("x", Input(shape=shape, dtype=DType.F32, axes=axes), (), Loc("net.py", 1))]
    for line, op in enumerate(ops, 2):
        nodes.append(Node(f"n{line}", op, (nodes[-1].name,), Loc("net.py", line)))
    return Graph("net", tuple(nodes), nodes[-1].name, dict(arrays or {}))


def normal(*shape: int, seed: int = 0) -> Array:
    """Standard normal numbers."""
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


@dataclass(frozen=True, slots=True, kw_only=True)
class Autograd:
    """What torch computed for sum of output * seed gradient."""

    output: Tensor
    spikes: Mapping[str, Tensor]  # by Lif node
    gradients: Mapping[str, Tensor]  # by trained parameter, and "x" of the input


def autograd(graph: Graph, x: Tensor, dy: Tensor, statistics: BatchStatistics) -> Autograd:
    """Gradients by autograd, in the number format of x."""
    module = to_torch(graph).to(x.dtype).train(statistics is BatchStatistics.BATCH)
    spikes: dict[str, Tensor] = {}
    for node in graph.nodes:
        if isinstance(node.op, Lif):
            module.neuron(node.name).register_forward_hook(
                lambda _, __, result, name=node.name: spikes.update({name: result.detach()})
            )
    leaf = x.clone().requires_grad_()
    output = module(leaf)
    if output.requires_grad:
        (output * dy.to(x.dtype)).sum().backward()
    named = {"x": leaf, **{k: v for k, v in module.arrays().items() if v.requires_grad}}
    gradients = {k: torch.zeros_like(v) if v.grad is None else v.grad for k, v in named.items()}
    return Autograd(output=output.detach(), spikes=spikes, gradients=gradients)


def random_like(value: Tensor, seed: int = 1) -> Tensor:
    """Normal f32 numbers in the shape of a value."""
    return torch.randn(value.shape, generator=torch.Generator().manual_seed(seed))


def relative_error(got: Tensor, want: Tensor) -> float:
    """Norm of the difference over the norm of `want`; 0 where both are 0."""
    difference = (got.double() - want.double()).norm().item()
    return difference / want.double().norm().item() if difference else 0.0
