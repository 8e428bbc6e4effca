"""The reference execution against scalar arithmetic written out from the definitions."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from compiler.evaluate import evaluate
from compiler.ir import Compare, CompileError, DType, Encoding, Graph, Loc, Node, Param, Reading, Reset
from compiler.ir.ops import Add, AvgPool2d, Encode, Flatten, Input, Li, Lif, MaxPool2d, Op, Readout, Scale

GRID = st.integers(-24, 24).map(lambda value: value / 16)


def network(
    *ops: Op, shape: tuple[int | str, ...], axes: str, parameters: dict[str, np.ndarray] | None = None
) -> Graph:  # type: ignore[type-arg]
    nodes = [Node("x", Input(shape=shape, dtype=DType.F32, axes=axes), (), Loc("net.py", 1))]
    for line, op in enumerate(ops, 2):
        nodes.append(Node(f"n{line}", op, (nodes[-1].name,), Loc("net.py", line)))
    return Graph("net", tuple(nodes), nodes[-1].name, parameters or {})


@settings(max_examples=200, deadline=None)
@given(
    inputs=st.lists(GRID, min_size=1, max_size=9),
    reset=st.sampled_from(Reset),
    compare=st.sampled_from(Compare),
    delay=st.booleans(),
    decay=st.sampled_from([0.0, 0.25, 0.5, 1.0]),
    threshold=st.sampled_from([0.25, 0.5, 1.0]),
    reset_value=st.sampled_from([0.0, -0.25, 0.125]),
    initial=st.sampled_from([0.0, 0.5]),
    scale=st.sampled_from([1.0, 0.5]),
    leak=st.sampled_from([0.0, 0.125]),
)
def test_neuron_follows_its_definition(
    inputs: list[float],
    reset: Reset,
    compare: Compare,
    delay: bool,
    decay: float,
    threshold: float,
    reset_value: float,
    initial: float,
    scale: float,
    leak: float,
) -> None:
    """Dyadic numbers of few bits: f32 is exact, so the scalar loop in f64 must agree in every bit."""
    op = Lif(
        decay=decay, threshold=threshold, input_scale=scale, leak_bias=leak, reset=reset, reset_value=reset_value,
        reset_delay=delay, compare=compare, initial=initial,
    )  # fmt: skip
    graph = network(op, shape=(len(inputs), "N", 1), axes="TNC")
    got = evaluate(graph, torch.tensor(inputs).reshape(-1, 1, 1), traces=["n2"])
    late = delay and reset is Reset.SOFT
    v, previous, spikes, membranes = initial, 0, [], []
    for x in inputs:
        m = decay * v + scale * x + leak - (threshold * previous if late else 0.0)
        s = int(m >= threshold) if compare is Compare.GE else int(m > threshold)
        match reset:
            case Reset.HARD:
                v = reset_value if s else m
            case Reset.SOFT:
                v = m if late else m - threshold * s
            case Reset.NONE:
                v = m
        previous = s
        spikes.append(float(s))
        membranes.append(m)
    assert got.traces["n2"].flatten().tolist() == spikes
    assert got.membranes["n2"].flatten().tolist() == membranes


def test_ties_decide_by_the_compare_rule() -> None:
    x = torch.full((1, 1, 1), 0.5)
    for compare, fires in ((Compare.GE, 1.0), (Compare.GT, 0.0)):
        graph = network(Lif(decay=0.5, threshold=0.5, compare=compare), shape=(1, "N", 1), axes="TNC")
        assert evaluate(graph, x).output.item() == fires


def test_per_channel_numbers_follow_the_channel_axis() -> None:
    op = Lif(decay=Param("d"), threshold=Param("t"))
    arrays = {"d": np.array([0.0, 1.0]), "t": np.array([1.0, 2.0])}
    graph = network(op, shape=(2, "N", 2, 1, 3), axes="TNCHW", parameters=arrays)
    spikes = evaluate(graph, torch.ones(2, 1, 2, 1, 3)).output
    assert spikes[:, 0, 0, 0, 0].tolist() == [1.0, 1.0]
    assert spikes[:, 0, 1, 0, 2].tolist() == [0.0, 1.0]


def test_leaky_integrator_and_readouts() -> None:
    x = torch.tensor([1.0, -2.0, 4.0]).reshape(3, 1, 1)
    for reading, want in ((Reading.LAST, 3.25), (Reading.MAX, 3.25), (Reading.RATE, (1 - 1.5 + 3.25) / 3)):
        graph = network(Li(decay=0.5), Readout(kind=reading), shape=(3, "N", 1), axes="TNC")
        assert evaluate(graph, x).output.item() == pytest.approx(want, abs=1e-7)  # one division by 3 rounds


def test_threshold_override_changes_only_its_node() -> None:
    lif = Lif(decay=0.0, threshold=1.0)
    graph = network(lif, lif, shape=(1, "N", 1), axes="TNC")
    x = torch.full((1, 1, 1), 0.75)
    assert evaluate(graph, x).output.item() == 0.0
    assert evaluate(graph, x, thresholds={"n2": 0.5}).output.item() == 1.0
    assert evaluate(graph, x, thresholds={"n2": 0.5, "n3": 2.0}).output.item() == 0.0


def test_latency_code_spikes_once_and_early_for_strong_inputs() -> None:
    graph = network(Encode(kind=Encoding.LATENCY, timesteps=5), shape=("N", 4), axes="NC")
    spikes = evaluate(graph, torch.tensor([[1.0, 0.5, 0.25, 0.0]])).output[:, 0]
    assert spikes.argmax(0)[:3].tolist() == [0, 2, 3]
    assert spikes.sum(0).tolist() == [1.0, 1.0, 1.0, 0.0]


def test_pools_scale_and_flatten() -> None:
    x = torch.arange(16.0).reshape(1, 1, 4, 4)
    pools = (AvgPool2d(kernel=(2, 2), stride=(2, 2)), MaxPool2d(kernel=(2, 1), stride=(2, 1)), Scale(factor=2.0))
    graph = network(*pools, Flatten(), shape=("N", 1, 4, 4), axes="NCHW")
    assert evaluate(graph, x).output.tolist() == [[21.0, 25.0]]


def test_sum_of_two_values() -> None:
    nodes = (
        Node("x", Input(shape=("N", 2), dtype=DType.F32, axes="NC"), (), Loc("net.py", 1)),
        Node("double", Scale(factor=2.0), ("x",), Loc("net.py", 2)),
        Node("sum", Add(), ("x", "double"), Loc("net.py", 3)),
    )
    assert evaluate(Graph("net", nodes, "sum"), torch.tensor([[1.0, -2.0]])).output.tolist() == [[3.0, -6.0]]


def test_inputs_that_do_not_fit_are_refused() -> None:
    graph = network(Lif(decay=0.5, threshold=1.0), shape=(2, "N", 3), axes="TNC")
    for x, message in (
        (
            torch.zeros(3, 1, 3),
            r"net.py:1: error: x: input has shape \(3, 1, 3\), the network takes f32\[T=2, N, C=3\]",
        ),
        (torch.full((2, 1, 3), torch.nan), "NaN or infinite"),
    ):
        with pytest.raises(CompileError, match=message):
            evaluate(graph, x)
    with pytest.raises(CompileError, match="nowhere is not a node of the graph"):
        evaluate(graph, torch.zeros(2, 1, 3), traces=["nowhere"])
