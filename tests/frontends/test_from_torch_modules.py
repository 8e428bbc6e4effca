"""Modules as people hand them in: with weights computed anew, hooks, conversions, tensors made on the way."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parametrizations, prune, weight_norm

import spikec
from compiler.evaluate import evaluate
from compiler.ir import CompileError, Surrogate, SurrogateKind
from frontends.findings import Finding, Ground
from frontends.from_torch import from_torch, import_module
from frontends.nn import LIF
from tests.frontends.step_loops import T, grid


class Written(nn.Module):
    """A forward given as a function."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


def factor(value: float) -> Tensor:
    return torch.full((3, 1, 1), value)


LITERALS: dict[str, Callable[[Tensor], Tensor]] = {
    "one after the other": lambda x: x * factor(0.5) * factor(4.0),
    "beside each other": lambda x: x * factor(0.5) + x * factor(4.0),
    "the same twice": lambda x: x * factor(0.5) + x * factor(0.5),
    "computed from each other": lambda x: x * (factor(0.5) / factor(4.0)),
    "of integers": lambda x: x * (torch.full((3, 1, 1), 7) // torch.full((3, 1, 1), 2)),
}


@pytest.mark.parametrize("form", LITERALS)
def test_each_literal_keeps_its_values(form: str) -> None:
    net, x = Written(LITERALS[form]), grid(2, 3, 4, 4)
    assert torch.equal(evaluate(from_torch(net, x, T), x).output, net(x))


def convolution() -> nn.Conv2d:
    torch.manual_seed(0)
    return nn.Conv2d(3, 4, 3)


def pruned() -> nn.Module:
    conv = convolution()
    prune.l1_unstructured(conv, "weight", 0.5)
    return conv


COMPUTED: dict[str, Callable[[], nn.Module]] = {
    "weight norm": lambda: weight_norm(convolution()),
    "weight norm as a parametrization": lambda: parametrizations.weight_norm(convolution()),
    "spectral norm": lambda: parametrizations.spectral_norm(convolution()),
    "pruning": pruned,
}


class Steps(nn.Module):
    """A layer called once for each step, or once for all."""

    def __init__(self, layer: nn.Module, loops: bool) -> None:
        super().__init__()
        self.layer, self.neuron, self.loops = layer, LIF(decay=0.5, threshold=0.25), loops

    def forward(self, x: Tensor) -> Tensor:
        if self.loops:
            return self.neuron(torch.stack([self.layer(step) for step in x]))
        return self.neuron(self.layer(x.flatten(0, 1)).unflatten(0, x.shape[:2]))


@pytest.mark.filterwarnings("ignore:.*weight_norm:FutureWarning")
@pytest.mark.parametrize("loops", [False, True])
@pytest.mark.parametrize("form", COMPUTED)
def test_weights_computed_from_parameters_are_constants(form: str, loops: bool) -> None:
    net, x = Steps(COMPUTED[form](), loops).eval(), grid(T, 2, 3, 5, 5)
    graph = from_torch(net, x, T)
    with torch.no_grad():
        want = net(x)
    assert want.any()
    assert torch.equal(evaluate(graph, x).output, want)
    assert [type(node.op).__name__ for node in graph.nodes] == ["Input", "Conv2d", "Lif"]


def test_they_are_not_trained_by_fused_kernels() -> None:
    net = Steps(parametrizations.weight_norm(convolution()), False)
    with pytest.raises(CompileError, match=r"original0: this parameter would not be trained"):
        spikec.fuse(net, grid(T, 2, 3, 5, 5), T)


class Voting(nn.Module):
    """Scales each step by its row of a buffer."""

    def __init__(self, rows: Tensor) -> None:
        super().__init__()
        self.register_buffer("rows", rows)

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([step * self.rows[0] + step * self.rows[1] for step in x])


def test_rows_of_a_buffer() -> None:
    net, x = Voting(grid(2, 3, seed=1)), grid(T, 2, 3)
    assert torch.equal(evaluate(from_torch(net, x, T), x).output, net(x))


def test_tensors_with_a_history_do_not_hinder() -> None:
    net = Steps(convolution(), False)
    net.last = [net.layer(torch.ones(3, 5, 5))]
    x = grid(T, 2, 3, 5, 5)
    assert torch.equal(evaluate(from_torch(net, x, T), x).output, net(x))
    assert net.last[0].requires_grad


def test_hooks_on_neurons_are_left_out_and_told() -> None:
    neuron = LIF(decay=0.5)
    seen: list[object] = []
    neuron.register_forward_hook(lambda *_: seen.append(None))
    findings = import_module(nn.Sequential(neuron), grid(T, 2, 3), T).findings
    text = "its forward hooks only look at its spikes, and are left out"
    assert Finding(place="0", ground=Ground.ASSUMED, text=text) in findings
    assert not seen


CONVERSIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "device": lambda x: x.to("cpu", torch.float32),
    "other": lambda x: x.to(torch.ones(1)),
    "type_as": lambda x: x.type_as(torch.ones(1)),
    "swapaxes": lambda x: x.swapaxes(0, 1).swapdims(1, 0),
}


@pytest.mark.parametrize("form", CONVERSIONS)
def test_conversions_that_convert_nothing(form: str) -> None:
    net, x = nn.Sequential(Written(CONVERSIONS[form]), LIF(decay=0.5)), grid(T, 2, 3)
    assert torch.equal(evaluate(from_torch(net, x, T), x).output, net(x))


@pytest.mark.parametrize("convert", [lambda x: x.type_as(torch.ones(1).double()), lambda x: x.to("cpu", torch.half)])
def test_other_conversions_are_refused(convert: Callable[[Tensor], Tensor]) -> None:
    with pytest.raises(CompileError, match=r"converts to torch.float(64|16)"):
        from_torch(nn.Sequential(Written(convert), LIF(decay=0.5)), grid(T, 2, 3), T)


class Entry(nn.Module):
    """Applies a layer as a function says."""

    def __init__(self, function: Callable[[nn.Module, Tensor], Tensor]) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.layer, self.function = nn.Linear(3, 4), function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self.layer, x)


MERGED: dict[str, Callable[[nn.Module, Tensor], Tensor]] = {
    "chunk": lambda layer, x: torch.cat([layer(step) for step in x.chunk(T)]),
    "split": lambda layer, x: torch.cat([layer(step) for step in x.split(len(x) // T)]),
    "cat of an image": lambda layer, x: torch.cat([layer(x)] * T),
}


@pytest.mark.parametrize("form", MERGED)
def test_merged_sequences_in_steps(form: str) -> None:
    net = nn.Sequential(Entry(MERGED[form]), LIF(decay=0.5, threshold=0.25, timesteps=T))
    x = grid(2, 3) if form == "cat of an image" else grid(T * 2, 3)
    graph = from_torch(net, x, T)
    with torch.no_grad():
        want = net(x).unflatten(0, (T, 2))
    assert want.any()
    assert torch.equal(evaluate(graph, x if form == "cat of an image" else x.unflatten(0, (T, 2))).output, want)


class FrameworkDropout(nn.Module):
    """A dropout that is none of PyTorch's, and leaves no trace in evaluation mode."""

    def __init__(self) -> None:
        super().__init__()
        self.p = 0.5

    def forward(self, x: Tensor) -> Tensor:
        return x * (torch.rand_like(x) > self.p) / self.p if self.training else x


DROPOUTS: dict[str, Callable[[], nn.Module]] = {
    "of a framework": FrameworkDropout,
    "in a forward": lambda: Written(lambda x: functional.dropout(x, 0.5, training=False)),
}


@pytest.mark.parametrize("form", DROPOUTS)
def test_dropout_is_not_fused(form: str) -> None:
    net = nn.Sequential(nn.Linear(3, 3), LIF(decay=0.5), DROPOUTS[form]())
    x = grid(T, 2, 3)
    assert torch.equal(evaluate(from_torch(net, x, T), x).output, net.eval()(x))
    with pytest.raises(CompileError, match=r"dropout of 0.5 in training has no place in fused stages"):
        spikec.fuse(net.train(), x, T)


def test_the_surrogate_of_a_neuron_written_out_can_be_given() -> None:
    def forward(x: Tensor) -> Tensor:
        membrane, spikes = torch.zeros_like(x[0]), []
        for step in x:
            membrane = 0.5 * membrane + step
            spikes.append((membrane >= 1.0).float())
            membrane = membrane * (1.0 - spikes[-1])
        return torch.stack(spikes)

    surrogate = Surrogate(kind=SurrogateKind.ATAN, width=0.5, scale=1.0)
    graph = from_torch(Written(forward), grid(T, 2, 3), T, surrogate=surrogate)
    assert [node.op.surrogate for node in graph.nodes if type(node.op).__name__ == "Lif"] == [surrogate]
