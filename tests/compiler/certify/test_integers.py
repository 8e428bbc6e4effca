"""Exact integer execution against the f32 reference on dyadic networks, and what it refuses."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from torch.nn import functional

from compiler.certify.integer_matrices import averages, memberships
from compiler.certify.integer_network import Neurons, lower
from compiler.certify.integers import execute, inexact_in_f32, is_alone_highest, magnitudes, scores
from compiler.certify.quantise import quantise_dyadic
from compiler.evaluate import evaluate
from compiler.ir import CompileError, DType, Graph, Loc, Node, Param, Reading, Reset, TensorType
from compiler.ir.ops import AvgPool2d, BatchNorm, Flatten, Input, Li, Lif, Linear, MaxPool2d, Op, Readout
from tests.strategies import RandomNetwork, networks

INPUT_BITS = 4  # images of dyadic random networks are multiples of 1/16
LOC = Loc("integers.py")
Rows = Sequence[Sequence[float]]
SMALL = {"free_neurons": True, "max_size": 7, "max_channels": 5, "max_timesteps": 6, "max_batch": 3, "blocks": (0, 2)}


@settings(max_examples=100, deadline=None)
@given(networks(dyadic=True, **SMALL))
def test_integers_are_what_f32_computes_on_dyadic_networks(network: RandomNetwork) -> None:
    graph = quantise_dyadic(network.graph, fraction_bits=10, decay_bits=6).graph
    lowered = lower(graph, input_bits=INPUT_BITS)
    rounding = inexact_in_f32(lowered, 2**INPUT_BITS)
    names = [node.name for node in graph.nodes]
    reference = evaluate(graph, torch.from_numpy(network.example), traces=names)
    exact = execute(lowered, network.example)
    for name in names:
        if name in rounding:
            return  # what follows may differ
        same_bits(exact.values[name], lowered.scales[name], reference.traces[name], has_time=graph.types[name].has("T"))
        step = lowered.steps[name]
        if isinstance(step, Neurons):
            same_bits(exact.membranes[name], step.scales, reference.membranes[name], has_time=True)


def same_bits(
    numerators: Sequence[npt.NDArray[np.int64]], scales: Sequence[int], values: torch.Tensor, *, has_time: bool
) -> None:
    """Numerators over scales, rounded to f32 once, are the f32 values."""
    by_step = values.numpy() if has_time else values.numpy()[None]
    assert len(by_step) == len(scales)
    for part, scale, want in zip(numerators, scales, by_step, strict=True):
        got = (part.T.astype(np.float64) / scale).astype(np.float32)
        np.testing.assert_array_equal(got.reshape(want.shape), want)


@pytest.mark.parametrize("padding", [(0, 0), (1, 1)], ids=["plain", "padded"])
@pytest.mark.parametrize("ceil_mode", [False, True], ids=["floor", "ceil"])
@pytest.mark.parametrize("count_include_pad", [False, True], ids=["inside", "all"])
def test_pools_of_partial_windows(padding: tuple[int, int], ceil_mode: bool, count_include_pad: bool) -> None:
    """Averages and maxima over windows that reach over the edge, against f64."""
    x = TensorType((1, "N", 2, 5, 7), DType.SPIKE, "TNCHW")
    values = torch.arange(70, dtype=torch.float64).remainder(11).reshape(1, 2, 5, 7)
    mean = AvgPool2d(
        kernel=(2, 3), stride=(2, 2), padding=padding, ceil_mode=ceil_mode, count_include_pad=count_include_pad
    )
    largest = MaxPool2d(kernel=(2, 3), stride=(2, 2), padding=padding, ceil_mode=ceil_mode)
    want = functional.avg_pool2d(values, (2, 3), (2, 2), padding, ceil_mode, count_include_pad)
    y = x.resized(H=want.shape[2], W=want.shape[3])
    matrix, divisor = averages(mean, x, y)
    got = matrix @ values.numpy().reshape(-1) / divisor
    np.testing.assert_allclose(got.reshape(want.shape), want.numpy(), rtol=1e-12)
    most = functional.max_pool2d(values, (2, 3), (2, 2), padding, ceil_mode=ceil_mode)
    members = memberships(largest, x, y)
    flat = values.numpy().reshape(-1)[members.indices]
    np.testing.assert_array_equal(np.maximum.reduceat(flat, members.indptr[:-1]), most.numpy().reshape(-1))


@settings(max_examples=40, deadline=None)
@given(networks(dyadic=True, **SMALL))
def test_magnitudes_hold(network: RandomNetwork) -> None:
    lowered = lower(quantise_dyadic(network.graph, fraction_bits=10, decay_bits=6).graph, input_bits=INPUT_BITS)
    run = execute(lowered, network.example)
    for name, bound in magnitudes(lowered, 2**INPUT_BITS).items():
        for part, most in zip(run.values[name], bound.values, strict=True):
            assert (np.abs(part) <= most[:, None]).all()
        assert all(np.abs(part).max() <= bound.peak for part in run.membranes.get(name, ()))


def chain(*ops: Op, weight: Rows = ((1.0, 0.0), (0.0, 1.0)), timesteps: int = 2) -> Graph:
    """Two bits, a linear layer, and the ops one after the other."""
    names = ["x", "fc", *(type(op).__name__.lower() for op in ops)]
    first = (Input(shape=(timesteps, "N", 2), dtype=DType.SPIKE, axes="TNC"), Linear(weight=Param("w")))
    nodes = tuple(
        Node(name, op, (names[i - 1],) if i else (), LOC)
        for i, (name, op) in enumerate(zip(names, (*first, *ops), strict=True))
    )
    return Graph("chain", nodes, names[-1], {"w": np.array(weight, np.float32)})


@pytest.mark.parametrize(
    ("threshold", "potentials", "spikes"),
    [(1.0, ("3/4", "15/16", "63/64"), [0, 0, 0]), (0.9375, ("3/4", "15/16", "3/4"), [0, 1, 0])],
    ids=["silent", "fires"],
)
def test_potentials_by_hand(threshold: float, potentials: tuple[str, ...], spikes: list[int]) -> None:
    """m = 3/4, then a quarter of it + 3/4 = 15/16, then 15/64 + 3/4, or, after a soft reset to 0, 3/4 again."""
    weight = ((0.75, 0.0), (0.0, 0.75))
    graph = chain(Lif(decay=0.25, threshold=threshold, reset=Reset.SOFT), weight=weight, timesteps=3)
    network = lower(graph)
    step = network.steps["lif"]
    assert isinstance(step, Neurons)
    run = execute(network, np.ones((3, 1, 2), np.float32))
    found = zip(run.membranes["lif"], step.scales, strict=True)
    assert [Fraction(int(part[0, 0]), scale) for part, scale in found] == [Fraction(text) for text in potentials]
    assert [int(part[0, 0]) for part in run.values["lif"]] == spikes


def test_thirds_and_means_stay_exact() -> None:
    """m = 2/3, then 1/3 + 1/3; their mean is 2/3."""
    nodes = (
        Node("x", Input(shape=(2, "N", 1, 1, 3), dtype=DType.SPIKE, axes="TNCHW"), (), LOC),
        Node("pool", AvgPool2d(kernel=(1, 3), stride=(1, 3)), ("x",), LOC),
        Node("flat", Flatten(), ("pool",), LOC),
        Node("li", Li(decay=0.5), ("flat",), LOC),
        Node("out", Readout(kind=Reading.RATE), ("li",), LOC),
    )
    network = lower(Graph("thirds", nodes, "out"))
    x = np.array([[1, 1, 0], [0, 1, 0]], np.float32).reshape(2, 1, 1, 1, 3)
    assert int(scores(network, x)[0, 0]) * 3 == 2 * network.scales["out"][0]
    assert inexact_in_f32(network) == ("pool", "flat", "li", "out")


def test_f32_is_exact_up_to_24_bits() -> None:
    """1 + 2**-20 in units of 2**-20, and 16 times it, which exceeds 2**24 of them."""
    lif = Lif(decay=0.0, threshold=1.0)
    assert inexact_in_f32(lower(chain(lif, weight=[[1 + 2**-20, 0], [0, 1]]))) == ()
    assert "fc" in inexact_in_f32(lower(chain(lif, weight=[[16 + 2**-19, 2**-20], [0, 1]])))


def test_a_tie_is_no_win() -> None:
    numerators = np.array([[3, 2, 1], [3, 3, 1], [1, 3, 3]])
    assert is_alone_highest(numerators, 0).tolist() == [True, False, False]


@pytest.mark.parametrize(
    ("ops", "weight", "message"),
    [
        ((), [[0.1, 0], [0, 1]], r"fc: weight 0\.100000001 is no multiple of 2\*\*-20"),
        ((Lif(decay=0.9, threshold=1.0),), [[1, 0], [0, 1]], r"lif: decay 0\.899999976 is no multiple of 2\*\*-20"),
        ((Lif(decay=0.5, threshold=0.3),), [[1, 0], [0, 1]], r"lif: threshold 0\.300000012 is no multiple"),
    ],
    ids=["weight", "decay", "threshold"],
)
def test_numbers_off_the_grid_are_named(ops: tuple[Op, ...], weight: Rows, message: str) -> None:
    with pytest.raises(CompileError, match=message):
        lower(chain(*ops, weight=weight))


def test_too_fine_units_are_refused() -> None:
    with pytest.raises(
        CompileError, match=r"lif: needs units of 1/.* finer than 64-bit integers hold|do not fit 64-bit"
    ):
        lower(chain(Lif(decay=1023 / 1024, threshold=1.0), timesteps=8))


def test_numerators_that_overflow_are_refused() -> None:
    graph = chain(Li(decay=1.0), weight=[[2.0**50, 2.0**-9], [0, 1]], timesteps=4)
    with pytest.raises(CompileError, match=r"li: numerators of up to .* do not fit 64-bit integers"):
        execute(lower(graph), np.ones((4, 1, 2), np.float32))


def test_a_batch_norm_has_to_be_folded() -> None:
    arrays = {name: np.ones(2, np.float32) for name in ("gain", "shift", "mean", "var")}
    norm = BatchNorm(weight=Param("gain"), bias=Param("shift"), mean=Param("mean"), var=Param("var"))
    base = chain(Lif(decay=0.5, threshold=1.0))
    nodes = (*base.nodes[:2], Node("bn", norm, ("fc",), LOC), Node("lif", base.nodes[2].op, ("bn",), LOC))
    graph = Graph("norm", nodes, "lif", {**base.parameters, **arrays})
    with pytest.raises(CompileError, match="bn: no rule to compute BatchNorm in integers"):
        lower(graph)
    lower(quantise_dyadic(graph).graph)


def test_inputs_that_do_not_fit_are_refused() -> None:
    network = lower(chain(Lif(decay=0.5, threshold=1.0)))
    with pytest.raises(CompileError, match=r"x: input has shape \(2, 1, 3\)"):
        execute(network, np.zeros((2, 1, 3), np.float32))
    with pytest.raises(CompileError, match="x: input is no multiple of 1/1"):
        execute(network, np.full((2, 1, 2), 0.5, np.float32))
    with pytest.raises(CompileError, match=r"is .* not one score a class"):
        scores(network, np.zeros((2, 1, 2), np.float32))


def test_rounding_is_to_the_nearest_and_reported() -> None:
    graph = chain(Lif(decay=0.9, threshold=0.3), weight=[[0.26, -0.24], [1.0, 0.125]])
    made = quantise_dyadic(graph, fraction_bits=3, decay_bits=2)
    lif = made.graph.node("lif").op
    assert isinstance(lif, Lif)
    fc = made.graph.node("fc").op
    assert isinstance(fc, Linear)
    np.testing.assert_array_equal(made.graph.parameters[fc.weight.name], [[0.25, -0.25], [1.0, 0.125]])
    assert (lif.decay, lif.threshold) == (1.0, 0.25)
    changed = {(change.node, change.what): change.largest_change for change in made.changes}
    assert changed == pytest.approx(
        {("fc", "weight"): 0.01, ("lif", "decay"): 0.1, ("lif", "threshold"): 0.05}, abs=1e-6
    )
    again = quantise_dyadic(made.graph, fraction_bits=3, decay_bits=2)
    assert again.changes == ()
    assert again.graph == made.graph
    with pytest.raises(CompileError, match=r"fraction_bits is 17, not inside 0 \.\. 16"):
        quantise_dyadic(graph, fraction_bits=17)


def test_a_number_for_each_channel_is_rounded_too() -> None:
    base = chain(Lif(decay=0.5, threshold=1.0))
    nodes = (*base.nodes[:2], Node("lif", Lif(decay=0.5, threshold=Param("th")), ("fc",), LOC))
    graph = Graph("thresholds", nodes, "lif", {**base.parameters, "th": np.array([0.3, 0.7], np.float32)})
    made = quantise_dyadic(graph, fraction_bits=2)
    (name,) = {name for name in made.graph.parameters if "threshold" in name}
    np.testing.assert_array_equal(made.graph.parameters[name], [0.25, 0.75])
