"""Small networks with a loop over time, for the tests of their import."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from compiler.evaluate import evaluate
from compiler.ir import Graph, Reset
from frontends.from_torch import from_torch, import_module
from frontends.torch_import.axes import Lead
from tests.frontends.step_cells import Cell, on_grid, reset

T = 4
LAYERS = ["fc1", "lif1", "fc2", "lif2"]


class Loop(nn.Module):
    """A forward given as a function, over two layers with neurons."""

    def __init__(self, function: Callable[[Loop, Tensor], object], first: type[Cell] = Cell) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.function = function
        self.fc1, self.lif1 = nn.Linear(5, 6), first()
        self.fc2, self.lif2 = nn.Linear(6, 3), Cell(decay=0.75, threshold=0.5, reset=Reset.SOFT)
        on_grid(self)

    def forward(self, x: Tensor) -> object:
        return self.function(self, x)

    def steps(self, inputs: object) -> list[Tensor]:
        """The spikes of each step."""
        v1 = v2 = None
        outputs = []
        for x in inputs:
            spikes, v1 = self.lif1(self.fc1(x), v1)
            spikes, v2 = self.lif2(self.fc2(spikes), v2)
            outputs.append(spikes)
        return outputs


def grid(*shape: int, seed: int = 0) -> Tensor:
    return torch.randint(-8, 17, shape, generator=torch.Generator().manual_seed(seed)) / 8


def imported(net: nn.Module, x: Tensor, **options: object) -> Graph:
    """The graph, once its result equals the module's."""
    graph = from_torch(net.eval(), x, T, **options)
    with torch.no_grad():
        want = net(x)
    reset(net)
    if isinstance(want, tuple):
        want = want[options["output"]]
    lead = import_module(net, x, T, **options).input.lead
    got = evaluate(graph, x.transpose(0, 1) if lead is Lead.SAMPLES_FIRST else x).output
    assert torch.equal(got, want)
    assert want.any()
    return graph


def names(graph: Graph) -> list[str]:
    return [node.name for node in graph.nodes]
