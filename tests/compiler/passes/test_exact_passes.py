"""Passes that only move nodes keep every value of the reference execution."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from compiler.evaluate import evaluate
from compiler.ir import CompileError, DType, Encoding, Graph, Loc, Node, Param, Reading
from compiler.ir.ops import Conv2d, Encode, Flatten, Input, Lif, Linear, Readout
from compiler.passes import HoistEncode, MeanLast, PrependEncode, Retime, run_passes
from tests.strategies import RandomNetwork, networks

CHECKS = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])


def neurons(graph: Graph) -> list[str]:
    return [node.name for node in graph.nodes if isinstance(node.op, Lif)]


@CHECKS
@given(networks(dyadic=True, image_input=True, late_encode=True, free_neurons=True))
def test_hoisting_the_encoding_keeps_every_value(network: RandomNetwork) -> None:
    x = torch.from_numpy(network.example)
    hoisted = HoistEncode()(network.graph)
    assert isinstance(hoisted.consumers(hoisted.input.name)[0].op, Encode)
    want = evaluate(network.graph, x, traces=neurons(network.graph))
    got = evaluate(hoisted, x, traces=neurons(network.graph))
    assert torch.equal(got.output, want.output)
    for name, spikes in want.traces.items():
        assert torch.equal(got.traces[name], spikes)


@CHECKS
@given(networks(dyadic=True, affine=False, residual=False))
def test_mean_last_keeps_spikes_and_output(network: RandomNetwork) -> None:
    """Weights on a grid: the sums are exact, so only the division by T rounds, at different places."""
    x = torch.from_numpy(network.example)
    moved = MeanLast()(network.graph)
    readouts = [node for node in moved.nodes if isinstance(node.op, Readout) and node.op.kind is Reading.RATE]
    assert all(not isinstance(c.op, Linear | Flatten) for node in readouts for c in moved.consumers(node.name))
    want = evaluate(network.graph, x, traces=neurons(network.graph))
    got = evaluate(moved, x, traces=neurons(network.graph))
    for name, spikes in want.traces.items():
        assert torch.equal(got.traces[name], spikes)
    magnitude = _absolute_sum(network.graph)
    rounding = 2.0**-23 * magnitude * (network.graph.timesteps + 4)  # each of T + 4 roundings is half an ulp
    assert torch.allclose(got.output, want.output, rtol=0.0, atol=rounding)


def _absolute_sum(graph: Graph) -> float:
    last = [node for node in graph.nodes if isinstance(node.op, Linear)]
    if not last:
        return 1.0
    op = last[-1].op
    assert isinstance(op, Linear)
    bias = np.abs(graph.parameters[op.bias.name]).max() if op.bias is not None else 0.0
    return float(np.abs(graph.parameters[op.weight.name]).sum(1).max() + bias) + 1.0


@CHECKS
@given(networks(dyadic=True, affine=False, free_neurons=True), st.integers(1, 12))
def test_retiming_keeps_the_first_steps(network: RandomNetwork, timesteps: int) -> None:
    """A network is causal; weights on a grid, so that a convolution over fewer maps sums to the same bits."""
    graph, x = network.graph, torch.from_numpy(network.example)
    is_sequence = graph.types[graph.input.name].has("T")
    timesteps = min(timesteps, graph.timesteps) if is_sequence else timesteps
    retimed = Retime(timesteps)(graph)
    assert retimed.timesteps == timesteps
    names = neurons(graph)
    long = evaluate(graph, x, traces=names)
    short = evaluate(retimed, x[:timesteps] if is_sequence else x, traces=names)
    steps = min(timesteps, graph.timesteps)
    for name in names:
        assert short.traces[name].shape[0] == timesteps
        assert torch.equal(long.traces[name][:steps], short.traces[name][:steps])


@CHECKS
@given(networks(dyadic=False, image_input=False))
def test_prepended_encoding_feeds_the_same_network(network: RandomNetwork) -> None:
    encoded = PrependEncode(Encoding.BERNOULLI, 3)(network.graph)
    image = torch.rand(2, *network.example.shape[2:])
    name = f"{network.graph.input.name}.encoded"
    whole = evaluate(encoded, image, traces=[name])
    assert torch.equal(evaluate(network.graph, whole.traces[name]).output, whole.output)


def test_bernoulli_draws_do_not_depend_on_the_batch() -> None:
    loc = Loc("net.py")
    graph = Graph(
        "g",
        (
            Node("x", Input(shape=("N", 1, 5, 5), dtype=DType.F32, axes="NCHW"), (), loc),
            Node("e", Encode(kind=Encoding.BERNOULLI, timesteps=50, seed=7), ("x",), loc),
        ),
        "e",
    )
    x = torch.full((6, 1, 5, 5), 0.3)
    whole = evaluate(graph, x).output
    assert torch.equal(evaluate(graph, x[4:], first_sample=4).output, whole[:, 4:])
    assert abs(float(whole.mean()) - 0.3) < 0.02  # 7,500 draws: four standard deviations


def test_a_mask_fixes_the_timesteps() -> None:
    loc = Loc("net.py", 3)
    nodes = (
        Node("x", Input(shape=("N", 4), dtype=DType.F32, axes="NC"), (), loc),
        Node("e", Encode(kind=Encoding.BERNOULLI, timesteps=2, mask=Param("mask")), ("x",), loc),
    )
    graph = Graph("g", nodes, "e", {"mask": np.full((2, 1, 4), 0.5, np.float32)})
    assert evaluate(graph, torch.tensor([[0.2, 0.6, 0.5, 1.0]])).output[0].tolist() == [[0.0, 1.0, 0.0, 1.0]]
    with pytest.raises(CompileError, match="fixes the number of time steps"):
        Retime(3)(graph)


def test_the_driver_names_the_pass_and_prints() -> None:
    loc = Loc("net.py", 3)
    nodes = (
        Node("x", Input(shape=("N", 1, 4, 4), dtype=DType.F32, axes="NCHW"), (), loc),
        Node("c", Conv2d(weight=Param("w")), ("x",), loc),
        Node("e", Encode(kind=Encoding.DIRECT, timesteps=2), ("c",), loc),
    )
    graph = Graph("g", nodes, "e", {"w": np.ones((1, 1, 2, 2), np.float32)})
    shown: list[str] = []
    result, reports = run_passes(graph, (HoistEncode(), MeanLast()), print_after="HoistEncode", show=shown.append)
    assert [report.name for report in reports] == ["HoistEncode", "MeanLast"]
    assert [node.name for node in result.nodes] == ["x", "e", "c"]
    assert len(shown) == 1
    with pytest.raises(CompileError) as caught:
        run_passes(graph, (Retime(0),))
    assert caught.value.__notes__ == ["in pass Retime"]
