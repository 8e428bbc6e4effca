"""The machine: golden against fast bit for bit, and both against f32 where FP16 is exact."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, assume, given, note, settings
from hypothesis import strategies as st

from compiler.evaluate import evaluate
from compiler.h2learn.compile import compile_inference
from compiler.ir import CompileError, DType, Encoding, Graph, Loc, Node, Param, Reading, Reset
from compiler.ir.ops import AvgPool2d, Conv2d, Encode, Flatten, Input, Li, Lif, Linear, MaxPool2d, Readout
from hwmodel.config import H2LearnConfig, config_from_mapping, load_config
from runtime.engines import Engines, fast, golden
from runtime.host import F32
from runtime.session import RunResult, run_program
from runtime.traces import agreement, same_bits
from tests.strategies import RandomNetwork, networks

CONFIG = load_config("h2learn")
SLOW_DATA = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much]


def small_config(**buffers_kb: float) -> H2LearnConfig:
    """The preset with smaller buffers, so that small layers are split."""
    table = CONFIG.as_mapping()
    forward = table["forward"]
    assert isinstance(forward, dict)
    forward["buffers_kb"] |= buffers_kb
    return config_from_mapping(table, Loc("small"))


SMALL = small_config(psum=5.0, s_in=2.0, state=5.0)


def run(graph: Graph, x: F32, engines: Engines, config: H2LearnConfig = CONFIG, batch: int = 2) -> RunResult:
    return run_program(compile_inference(graph, config, batch=batch).program, x, engines, trace=True)


@settings(max_examples=40, deadline=None, suppress_health_check=SLOW_DATA)
@given(
    network=networks(dyadic=False, encodings=(Encoding.DIRECT, Encoding.BERNOULLI, Encoding.LATENCY), late_encode=True),
    config=st.sampled_from([CONFIG, SMALL]),
    batch=st.integers(1, 5),
)
def test_fast_equals_golden_bit_for_bit(network: RandomNetwork, config: H2LearnConfig, batch: int) -> None:
    results = [run(network.graph, network.example, engines, config, batch) for engines in (golden(), fast())]
    assert np.array_equal(results[0].outputs.view(np.uint32), results[1].outputs.view(np.uint32))
    left, right = results[0].traces, results[1].traces
    assert left is not None
    assert right is not None
    assert same_bits(left, right)


@settings(max_examples=40, deadline=None, suppress_health_check=SLOW_DATA)
@given(
    network=networks(dyadic=True, affine=False, input_scale=False, per_channel=False, image_input=False),
    config=st.sampled_from([CONFIG, SMALL]),
)
def test_machine_equals_f32_where_fp16_is_exact(network: RandomNetwork, config: H2LearnConfig) -> None:
    """Multiples of 1/16 below 128 have 11 bits, so every FP16 sum is exact; decays are 0 or 1 to stay there."""
    graph = exact_neurons(network.graph)
    assume(not any(isinstance(node.op, AvgPool2d) for node in graph.nodes))
    neurons = [node.name for node in graph.nodes if isinstance(node.op, Lif)]
    reference = evaluate(graph, torch.from_numpy(network.example), traces=neurons)
    for name in neurons:
        assume(float(reference.membranes[name].abs().max()) < 64)
    assume(_sums_of_magnitudes(graph) < 64)
    machine = run(graph, network.example, fast(), config)
    assert machine.traces is not None
    spikes = {
        name: reference.traces[name].numpy().astype(np.uint8).reshape(machine.traces.spikes[name].shape)
        for name in neurons
    }
    equal, compared = agreement(machine.traces, spikes)
    note(f"{compared - equal} of {compared} spikes differ")
    assert equal == compared


def exact_neurons(graph: Graph) -> Graph:
    """Decays 0 or 1, and values that stay on the grid."""
    nodes = []
    for node in graph.nodes:
        match node.op:
            case Lif() as op:
                decay = 1.0 if isinstance(op.decay, float) and op.decay >= 0.5 and op.reset is Reset.HARD else 0.0
                nodes.append(replace(node, op=replace(op, decay=decay)))
            case Li() as op:
                nodes.append(replace(node, op=replace(op, decay=0.0)))
            case _:
                nodes.append(node)
    return graph.with_nodes(tuple(nodes))


def _sums_of_magnitudes(graph: Graph) -> float:
    """The largest sum of a filter's absolute weights: no partial sum of spikes exceeds it."""
    sums = [0.0]
    for node in graph.nodes:
        if isinstance(node.op, Conv2d | Linear):
            weight = graph.parameters[node.op.weight.name]
            sums.append(float(np.abs(weight).reshape(len(weight), -1).sum(1).max()))
    return max(sums)


@pytest.mark.parametrize("batch", [1, 2, 3, 4, 7])
def test_result_does_not_depend_on_the_sub_batch(batch: int) -> None:
    graph, x = _network(timesteps=11)
    whole = run(graph, x, fast(), CONFIG, 7)
    part = run(graph, x, fast(), CONFIG, batch)
    assert np.array_equal(whole.outputs, part.outputs)
    assert whole.traces is not None
    assert part.traces is not None
    assert same_bits(whole.traces, part.traces)


def test_split_layers_give_the_same_bits() -> None:
    """Smaller buffers split time, samples and tiles, but not the order of any sum."""
    graph, x = _network(timesteps=12)
    whole, split = run(graph, x, fast(), CONFIG, 4), run(graph, x, fast(), SMALL, 4)
    assert whole.traces is not None
    assert split.traces is not None
    assert same_bits(whole.traces, split.traces)


@pytest.mark.parametrize(
    ("weight", "threshold", "what", "step"),
    [(3000.0, 60000.0, "partial sum", 0), (900.0, 65000.0, "membrane potential", 2)],
)
@pytest.mark.parametrize("make", [golden, fast])
def test_overflow_is_reported_with_its_place(
    weight: float, threshold: float, what: str, step: int, make: Callable[[], Engines]
) -> None:
    graph = _overflowing(weight, threshold)
    x = np.ones((6, 1, 4, 5, 5), np.float32)
    with pytest.raises(CompileError) as caught:
        run(graph, x, make(), CONFIG, 1)
    assert (
        caught.value.message == f"conv: a {what} overflows FP16 at step {step}, channel 19, sample 0 of the sub-batch"
    )


def test_input_that_does_not_fit_is_refused() -> None:
    graph, x = _network(timesteps=3)
    for bad, message in (
        (x[:, :, :4], r"input has shape \(7, 2, 4, 9\), the program takes \(N, 2, 9, 9\)"),
        (x[:0], "has no samples"),
        (np.full_like(x, np.nan), "NaN or infinite"),
        (np.full_like(x, 70000.0), "input 70000 overflows FP16"),
    ):
        with pytest.raises(CompileError, match=message):
            run(graph, bad, fast())


def test_spikes_that_are_not_binary_are_refused() -> None:
    graph = _overflowing(0.5, 1.0)
    with pytest.raises(CompileError, match="input is not binary"):
        run(graph, np.full((6, 1, 4, 5, 5), 0.5, np.float32), fast())


def _network(timesteps: int) -> tuple[Graph, F32]:
    rng = np.random.default_rng(5)
    loc = Loc("network.py", 1)

    def lif(name: str, source: str, **numbers: float) -> Node:
        return Node(name, Lif(**{"decay": 0.75, "threshold": 0.6, **numbers}), (source,), loc)  # type: ignore[arg-type]

    nodes = (
        Node("x", Input(shape=("N", 2, 9, 9), dtype=DType.F32, axes="NCHW"), (), loc),
        Node("encode", Encode(kind=Encoding.DIRECT, timesteps=timesteps), ("x",), loc),
        Node("conv1", Conv2d(weight=Param("w1"), padding=(1, 1)), ("encode",), loc),
        lif("lif1", "conv1"),
        Node("conv2", Conv2d(weight=Param("w2"), padding=(2, 2)), ("lif1",), loc),
        lif("lif2", "conv2", initial=0.25),
        Node("pool", AvgPool2d(kernel=(2, 2), stride=(2, 2)), ("lif2",), loc),
        lif("lif3", "pool", threshold=0.4),
        Node("flat", Flatten(), ("lif3",), loc),
        Node("linear", Linear(weight=Param("w3")), ("flat",), loc),
        lif("lif4", "linear"),
        Node("rate", Readout(kind=Reading.RATE), ("lif4",), loc),
    )
    parameters = {
        "w1": rng.normal(0.1, 0.3, (20, 2, 3, 3)),
        "w2": rng.normal(0.02, 0.1, (18, 20, 5, 5)),
        "w3": rng.normal(0.02, 0.1, (10, 18 * 16)),
    }
    return Graph("network", nodes, "rate", parameters), rng.random((7, 2, 9, 9), np.float32)


def _overflowing(weight: float, threshold: float) -> Graph:
    """All weights of channel 19 are large: 36 taps x 3000 > 65504, or 36 x 900 with decay 1 > 65504 at step 2."""
    loc = Loc("network.py", 1)
    weights = np.zeros((20, 4, 3, 3), np.float32)
    weights[19] = weight
    nodes = (
        Node("x", Input(shape=(6, "N", 4, 5, 5), dtype=DType.SPIKE, axes="TNCHW"), (), loc),
        Node("conv", Conv2d(weight=Param("w")), ("x",), loc),
        Node("lif", Lif(decay=1.0, threshold=threshold), ("conv",), loc),
    )
    return Graph("overflow", nodes, "lif", {"w": weights})


@settings(max_examples=15, deadline=None, suppress_health_check=SLOW_DATA)
@given(features=st.integers(1, 40), outputs=st.integers(1, 70), timesteps=st.integers(1, 12), seed=st.integers(0, 99))
def test_linear_layer_on_real_values(features: int, outputs: int, timesteps: int, seed: int) -> None:
    """An encoding layer without a convolution; weights and inputs on a grid that FP16 holds exactly."""
    rng = np.random.default_rng(seed)
    loc = Loc("network.py", 1)
    nodes = (
        Node("x", Input(shape=("N", features), dtype=DType.F32, axes="NC"), (), loc),
        Node("encode", Encode(kind=Encoding.DIRECT, timesteps=timesteps), ("x",), loc),
        Node("linear", Linear(weight=Param("w"), bias=Param("b")), ("encode",), loc),
        Node("lif", Lif(decay=0.0, threshold=0.5), ("linear",), loc),
        Node("rate", Readout(kind=Reading.LAST), ("lif",), loc),
    )
    weights = {"w": rng.integers(-8, 9, (outputs, features)) / 8, "b": rng.integers(-8, 9, outputs) / 8}
    graph = Graph("linear", nodes, "rate", {name: array.astype(np.float32) for name, array in weights.items()})
    x = (rng.integers(0, 3, (5, features)) / 2).astype(np.float32)
    want = evaluate(graph, torch.from_numpy(x)).output.numpy()
    for engines in (golden(), fast()):
        assert np.array_equal(run(graph, x, engines).outputs, want)


@pytest.mark.parametrize("pools", ["avg", "max", "max-avg", "avg-overlapping"])
def test_network_that_ends_in_pooling(pools: str) -> None:
    """Pooled spikes need no neuron where no layer follows; averages of 4 or 9 spikes, read out in f32."""
    loc = Loc("network.py", 1)
    ops = {
        "avg": [AvgPool2d(kernel=(2, 2), stride=(2, 2))],
        "max": [MaxPool2d(kernel=(2, 2), stride=(2, 2))],
        "max-avg": [MaxPool2d(kernel=(2, 2), stride=(2, 2)), AvgPool2d(kernel=(2, 2), stride=(2, 2))],
        "avg-overlapping": [AvgPool2d(kernel=(4, 4), stride=(2, 2), padding=(1, 1))],
    }[pools]
    nodes = [
        Node("x", Input(shape=(3, "N", 2, 12, 9), dtype=DType.SPIKE, axes="TNCHW"), (), loc),
        Node("conv", Conv2d(weight=Param("w"), padding=(1, 1)), ("x",), loc),
        Node("lif", Lif(decay=0.5, threshold=1.0), ("conv",), loc),
    ]
    for number, op in enumerate(ops):
        nodes.append(Node(f"pool{number}", op, (nodes[-1].name,), loc))
    nodes.append(Node("rate", Readout(kind=Reading.RATE), (nodes[-1].name,), loc))
    rng = np.random.default_rng(3)
    weights = rng.integers(-4, 9, (20, 2, 3, 3)) / 8
    graph = Graph("network", tuple(nodes), "rate", {"w": weights.astype(np.float32)})
    x = (rng.random((3, 5, 2, 12, 9)) < 0.4).astype(np.float32)
    want = evaluate(graph, torch.from_numpy(x)).output.numpy()
    for engines in (golden(), fast()):
        assert np.allclose(run(graph, x, engines).outputs, want, rtol=0, atol=2e-3)  # FP16 of 1/16 multiples, mean
