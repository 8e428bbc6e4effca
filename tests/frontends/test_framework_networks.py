"""Whole networks of other frameworks: imported, fused and compiled, against the framework's own run."""

from __future__ import annotations

import copy
from collections.abc import Collection, Iterable

import numpy as np
import pytest
import torch

import spikec
from compiler.evaluate import evaluate
from compiler.h2learn.compile import compile_inference
from compiler.ir import CompileError, Graph
from compiler.ir.ops import Lif
from frontends.from_torch import from_torch
from frontends.to_torch import to_torch
from hwmodel.config import load_config
from runtime.engines import fast, golden
from runtime.session import run_program
from runtime.traces import agreement, same_bits
from tests.frontends.framework_networks import CASES, Case, N, T, on_grid, spike_input

# H2Learn has no residual sums, averages only before a neuron, and soft resets that act in the step of the spike
REFUSED = {
    "SpikingJelly, residual": "no unit for a residual sum",
    "snnTorch, residual": "no unit for a residual sum",
    "norse, residual": "no unit for a residual sum",
    "sinabs, residual": "no unit for a residual sum",
    "snnTorch, loop": "resets in the step of the spike",
    "snnTorch, hidden": "resets in the step of the spike",
    "sinabs, sums": "Scale stands neither",
}
QUICK_TO_FUSE = ("SpikingJelly, residual", "snnTorch, hidden", "sinabs, squeezed", "sinabs, residual", "sinabs, sums")
QUICK_TO_RUN = ("norse, SequentialState",)


def marked(names: Iterable[str], quick: Collection[str]) -> list[object]:
    return [pytest.param(name, marks=() if name in quick else pytest.mark.slow) for name in names]


def case_of(name: str) -> Case:
    framework, build = CASES[name]
    pytest.importorskip(framework, reason=f"{framework} is not installed")
    return build()


def graph_of(case: Case) -> Graph:
    return from_torch(case.module, case.example, T)


@pytest.mark.parametrize("name", CASES)
def test_every_layer_spikes_as_in_its_framework(name: str) -> None:
    case = case_of(name)
    graph = graph_of(case)
    neurons = [node.name for node in graph.nodes if isinstance(node.op, Lif)]
    for seed in range(3):
        x = spike_input(seed)
        output, spikes = case.spikes(x)
        got = evaluate(graph, x, traces=neurons)
        assert torch.equal(got.output, output)
        for path in neurons:
            assert torch.equal(got.traces[path], spikes[path]), path
            assert 0.01 < float(spikes[path].mean()) < 0.99, path


@pytest.mark.parametrize("name", [name for name in CASES if name != "sinabs, sums"])
def test_input_gradients_are_those_of_the_framework(name: str) -> None:
    case = case_of(name)
    x = spike_input(1).requires_grad_()
    module = to_torch(graph_of(case)).eval()
    upstream = torch.randn(module(x).shape, generator=torch.Generator().manual_seed(5))
    (want,) = torch.autograd.grad((case.run(case.module, x) * upstream).sum(), x)
    (got,) = torch.autograd.grad((module(x) * upstream).sum(), x)
    assert want.abs().max() > 0
    # the same sums of products in 32 bits, in another order
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5 * float(want.abs().max()))


def test_a_sum_of_nothing_passes_no_gradient_in_sinabs() -> None:
    """Its pooling is torch's lp_pool2d, whose derivative at a sum of 0 is 0; the graph's is 1 there, as elsewhere."""
    layers = pytest.importorskip("sinabs.layers")
    x = torch.zeros(1, 1, 2, 2, requires_grad=True)
    layers.SumPool2d(2)(x).sum().backward()
    assert x.grad is not None
    assert not x.grad.any()
    graph = from_torch(torch.nn.Sequential(layers.SumPool2d(2)), torch.zeros(T, 1, 1, 2, 2).flatten(0, 1), T)
    sequence = torch.zeros(T, 1, 1, 2, 2, requires_grad=True)
    to_torch(graph)(sequence).sum().backward()
    assert sequence.grad is not None
    assert bool((sequence.grad == 1).all())


@pytest.mark.parametrize("name", marked(CASES, QUICK_TO_FUSE))
def test_fused_networks_compute_the_same(name: str) -> None:
    """On this grid every sum is exact in any order, hence outputs are equal; gradients are up to roundings."""
    case = case_of(name)
    case.module.requires_grad_(False)  # time constants and betas are not trained by fused stages
    if not case.time_first:
        with pytest.raises(CompileError, match="fused stages take time first"):
            spikec.fuse(case.module, case.example, T)
        return
    fused = spikec.fuse(copy.deepcopy(case.module), case.example, T)
    x = spike_input(1).requires_grad_()
    want, got = case.run(case.module, x), fused(x)
    assert torch.equal(got, want)
    upstream = torch.randn(want.shape, generator=torch.Generator().manual_seed(5))
    grads = [torch.autograd.grad((y * upstream).sum(), x)[0] for y in (want, got)]
    torch.testing.assert_close(grads[1], grads[0], rtol=1e-4, atol=1e-4 * float(grads[0].abs().max()))


@pytest.mark.parametrize("name", marked([name for name in CASES if name not in REFUSED], QUICK_TO_RUN))
def test_they_run_on_the_accelerator(name: str) -> None:
    """The fast engine gives the golden one's bits, and in FP16, which this grid fits, all of the framework's spikes."""
    case = case_of(name)
    graph = graph_of(case)
    program = compile_inference(graph, load_config("h2learn"), batch=N).program
    x = spike_input(2).numpy()
    runs = [run_program(program, x, engines, trace=True).traces for engines in (golden(), fast())]
    assert runs[0] is not None
    assert runs[1] is not None
    assert same_bits(runs[0], runs[1])
    _, spikes = case.spikes(spike_input(2))
    reference = {
        path: spikes[path].numpy().astype(np.uint8).reshape(of_machine.shape)
        for path, of_machine in runs[1].spikes.items()
    }
    equal, compared = agreement(runs[1], reference)
    assert compared
    assert equal == compared


@pytest.mark.parametrize("name", REFUSED)
def test_what_the_accelerator_has_no_unit_for(name: str) -> None:
    graph = graph_of(case_of(name))
    with pytest.raises(CompileError, match=REFUSED[name]):
        compile_inference(graph, load_config("h2learn"), batch=N)


def test_one_of_several_outputs() -> None:
    """init_hidden with output=True returns spikes and membrane."""
    snn = pytest.importorskip("snntorch")
    module = on_grid(
        torch.nn.Sequential(torch.nn.Linear(3, 2), snn.Leaky(0.75, threshold=0.25, init_hidden=True, output=True))
    )
    x = (torch.rand(T, N, 3, generator=torch.Generator().manual_seed(4)) < 0.5).float()
    got = evaluate(from_torch(module, x[0], T, output=0), x).output
    assert torch.equal(got, torch.stack([module(step)[0] for step in x]))
    assert got.any()


def test_sequences_with_their_states() -> None:
    """norse's layers over a sequence return the last state beside it, which the graph has no place for."""
    norse = pytest.importorskip("norse.torch")
    net = on_grid(
        norse.SequentialState(norse.Lift(torch.nn.Linear(3, 4)), norse.IAF(), norse.Lift(torch.nn.Linear(4, 2)))
    )
    x = (torch.rand(T, N, 3, generator=torch.Generator().manual_seed(4)) < 0.7).float()
    got = evaluate(from_torch(net, x, T, output=0), x).output
    assert torch.equal(got, net(x)[0])
    with pytest.raises(CompileError, match=r"output|state"):
        from_torch(net, x, T, output=1)
