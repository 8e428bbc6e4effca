"""Networks whose neurons are written out in operators, and what they are checked with."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from compiler.evaluate import evaluate
from compiler.ir import Graph
from compiler.ir.ops import Lif
from frontends.from_torch import import_module


class Fire(torch.autograd.Function):
    """A spike with a gradient of its own."""

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, u: Tensor) -> Tensor:
        ctx.save_for_backward(u)
        return (u > 0).float()

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, gradient: Tensor) -> Tensor:
        (u,) = ctx.saved_tensors  # type: ignore[attr-defined]
        return gradient * (u.abs() < 0.5)


def put(values: Tensor, mask: Tensor, number: float) -> Tensor:
    values = values.clone()
    values[mask] = number
    return values


class Layers(nn.Module):
    """A forward over named layers with dyadic weights."""

    def __init__(self, forward: Callable[[Layers, Tensor], Tensor], **layers: nn.Module | nn.Parameter) -> None:
        super().__init__()
        self.forward_of = forward
        for name, layer in layers.items():
            setattr(self, name, layer)
        generator = torch.Generator().manual_seed(3)
        for layer in self.children():
            for array in layer.parameters():
                array.data = torch.randint(-3, 6, array.shape, generator=generator) / 8

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_of(self, x)


def loop(body: Callable[..., tuple[Tensor, Tensor]], *, returns: str = "spikes") -> Layers:
    """m, s = body(net, m, s, x) at each step."""

    def forward(net: Layers, x: Tensor) -> Tensor:
        m, s, found = torch.zeros(16, 5), torch.zeros(16, 5), []
        for step in x:
            m, s = body(net, m, s, step)
            found.append(s if returns == "spikes" else m)
        return torch.stack(found)

    return Layers(forward, fc=nn.Linear(5, 5))


def reset(m: Tensor, threshold: float | Tensor = 1.0) -> tuple[Tensor, Tensor]:
    """The potential after a hard reset, and the spikes."""
    s = (m > threshold).float()
    return m * (1 - s), s


def drives(timesteps: int, seed: int, channels: int = 5) -> Tensor:
    """Multiples of 1/8, so that potentials meet their threshold."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(-4, 13, (timesteps, 16, channels), generator=generator) / 8


def images(*shape: int) -> Tensor:
    return torch.randint(0, 9, shape, generator=torch.Generator().manual_seed(5)) / 8


def only(graph: Graph, kind: type) -> list[Lif]:
    return [node.op for node in graph.nodes if isinstance(node.op, kind)]


def check(net: nn.Module, x: Tensor, timesteps: int) -> Graph:
    graph = import_module(net, x, timesteps, name="net").graph
    out = net(x)
    assert torch.equal(evaluate(graph, x).output, out)
    assert out.mean() > 0
    assert out.std() > 0
    return graph
