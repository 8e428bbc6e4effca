"""Neurons written out in operators, in networks as people have them, through PyTorch's exporters."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from compiler.evaluate import evaluate
from compiler.ir import CompileError
from compiler.ir.ops import Lif
from frontends.from_onnx import load_onnx
from tests.frontends.onnx_models import exported

T = 4


class WrittenOut:
    """One population over the steps of one forward; its first step has no state."""

    def __init__(self, decay: float, threshold: float = 1.0, *, soft: bool = False) -> None:
        self.decay, self.threshold, self.soft = decay, threshold, soft
        self.m: Tensor | None = None

    def __call__(self, current: Tensor) -> Tensor:
        m = current if self.m is None else self.decay * self.m + current
        fired = (m >= self.threshold).float()
        self.m = m - fired * self.threshold if self.soft else torch.where(fired > 0, 0.0, m)
        return fired


class Residual(nn.Module):
    """Batch norm, groups, a residual block, pooling; read out in one of the usual ways."""

    def __init__(self, end: str) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(1, 4, 3, padding=1, bias=False), nn.Linear(4 * 4 * 4, 5)
        self.grouped, self.plain = nn.Conv2d(4, 4, 3, padding=1, groups=2), nn.Conv2d(4, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4, eps=0.0)
        self.end = end
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.copy_(torch.randint(-10, 11, parameter.shape, generator=generator) / 16)
            self.norm.weight.fill_(0.5)
            self.norm.running_mean.fill_(0.25)  # type: ignore[union-attr]  # it has one

    def forward(self, x: Tensor) -> Tensor:
        neurons = [WrittenOut(0.5), WrittenOut(0.25, 1.5, soft=True), WrittenOut(0.5), WrittenOut(0.75)]
        membrane, outputs = torch.zeros(x.shape[1], 5), []
        for t in range(T):
            spikes = neurons[0](self.norm(self.first(x[t])))
            inner = neurons[1](self.grouped(spikes))
            spikes = neurons[2](self.plain(inner) + spikes)
            current = self.last(functional.avg_pool2d(spikes, 2).flatten(1))
            membrane = 0.5 * membrane + current
            outputs.append(membrane if "membrane" in self.end else neurons[3](current))
        sequence = torch.stack(outputs)
        match self.end:
            case "mean":
                return sequence.mean(0)
            case "sum":
                return sequence.sum(0)
            case "max":
                return sequence.amax(0)
            case "last membrane":
                return sequence[-1]
        return sequence


@pytest.mark.parametrize(
    ("end", "dynamo"),
    [
        *((end, False) for end in ("spikes", "mean", "sum", "max", "membranes", "last membrane")),
        *(pytest.param(end, True, marks=pytest.mark.slow) for end in ("mean", "last membrane")),
    ],
)
def test_a_residual_network(end: str, dynamo: bool, tmp_path: Path) -> None:
    net = Residual(end).eval()
    x = torch.randint(-8, 9, (T, 3, 1, 8, 8), generator=torch.Generator().manual_seed(1)) / 8
    exported(net, x, tmp_path / "net.onnx", dynamo=dynamo)
    imported = load_onnx(tmp_path / "net.onnx")
    want = net(x).detach()
    assert torch.equal(evaluate(imported.graph, x).output, want)
    assert len(want.unique()) > 1
    assert imported.findings[0].text == "4 time steps, the first of the input's five axes"


class OneStep(nn.Module):
    """Layers of neurons that fire on their input alone, as an exporter leaves them without their state."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(5, 5) for _ in range(count)])

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = (layer(x) >= 1.0).float()
        return x


@pytest.mark.parametrize("timesteps", [None, 2, 4, 8])
@pytest.mark.parametrize("layers", [2, 4])
def test_as_many_layers_as_steps_are_no_loop(layers: int, timesteps: int | None, tmp_path: Path) -> None:
    """No exporter says where neurons stand here: that none hears of an earlier one shows that the state is gone."""
    exported(OneStep(layers).eval(), torch.rand(3, 5), tmp_path / "net.onnx", dynamo=False)
    with pytest.raises(CompileError, match="the exporter kept no state: none of its"):
        load_onnx(tmp_path / "net.onnx", timesteps=timesteps)
    graph = load_onnx(tmp_path / "net.onnx", timesteps=1).graph
    assert sum(isinstance(node.op, Lif) for node in graph.nodes) == layers
