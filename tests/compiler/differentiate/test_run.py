"""Runs of training graphs: values given in place of computed ones, texts, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from torch import Tensor

from compiler.differentiate import (
    BatchStatistics,
    KeepAll,
    KeepCompressed,
    Loss,
    TrainingGraph,
    TrainingRun,
    differentiate,
    run_training,
)
from compiler.ir import CompileError, DType, Encoding, Graph, Loc, Node, Param, Reading, Reset, TensorType
from compiler.ir.ops import (
    Add,
    BatchNorm,
    Conv2d,
    Encode,
    Flatten,
    Input,
    Lif,
    Linear,
    MaxPool2d,
    Op,
    Readout,
    Site,
)
from tests.compiler.differentiate.small import chain, normal
from tests.golden import Golden

X = torch.rand(2, 1, 4, 4, generator=torch.Generator().manual_seed(0))
LABELS = torch.tensor([1, 4])


def residual_network() -> Graph:
    """Direct encoding, batch norm, a residual sum, both pools' kinds of values, a linear layer on the spikes."""
    ops: list[tuple[str, Op, tuple[str, ...]]] = [
        ("x", Input(shape=("N", 1, 4, 4), dtype=DType.F32, axes="NCHW"), ()),
        ("code", Encode(kind=Encoding.DIRECT, timesteps=3), ("x",)),
        ("conv1", Conv2d(weight=Param("conv1.weight"), bias=Param("conv1.bias"), padding=(1, 1)), ("code",)),
        (
            "norm",
            BatchNorm(
                weight=Param("norm.weight"), bias=Param("norm.bias"), mean=Param("norm.mean"), var=Param("norm.var")
            ),
            ("conv1",),
        ),
        ("lif1", Lif(decay=0.5, threshold=0.5), ("norm",)),
        ("conv2", Conv2d(weight=Param("conv2.weight"), padding=(1, 1)), ("lif1",)),
        ("sum", Add(), ("conv2", "lif1")),
        ("lif2", Lif(decay=0.5, threshold=0.5, reset=Reset.SOFT), ("sum",)),
        ("pool", MaxPool2d(kernel=(2, 2), stride=(2, 2)), ("lif2",)),
        ("flat", Flatten(), ("pool",)),
        ("fc", Linear(weight=Param("fc.weight")), ("flat",)),
        ("out", Readout(kind=Reading.RATE), ("fc",)),
    ]
    arrays = {
        "conv1.weight": normal(2, 1, 3, 3),
        "conv1.bias": normal(2),
        "norm.weight": np.array([1.0, 0.5]),
        "norm.bias": np.array([0.25, 0.0]),
        "norm.mean": np.zeros(2),
        "norm.var": np.ones(2),
        "conv2.weight": normal(2, 2, 3, 3),
        "fc.weight": normal(5, 8),
    }
    nodes = tuple(Node(name, op, inputs, Loc("net.py", i)) for i, (name, op, inputs) in enumerate(ops, 1))
    return Graph("net", nodes, "out", arrays)


def equal(got: TrainingRun, want: TrainingRun) -> bool:
    """Whether all parameter gradients have the same bits."""
    assert got.gradients.keys() == want.gradients.keys()
    return all(torch.equal(got.gradients[name], want.gradients[name]) for name in want.gradients)


@pytest.mark.parametrize("policy", [KeepAll(), KeepCompressed()])
def test_text(policy: Callable[[TrainingGraph], TrainingGraph], golden: Golden) -> None:
    training = policy(differentiate(residual_network(), Loss.MSE))
    golden(f"{training.policy}.txt", str(training))


def test_text_without_a_loss_and_with_running_statistics(golden: Golden) -> None:
    training = differentiate(residual_network(), None, statistics=BatchStatistics.RUNNING)
    golden("no_loss.txt", str(replace(training, outputs=("d.x",))))


def test_another_machines_forward_pass_takes_the_place_of_ours() -> None:
    """Given all that is kept, no forward value is computed: the input may then be anything."""
    training = KeepCompressed()(differentiate(residual_network(), Loss.MSE))
    kept = [value.name for value in training.kept]
    want = run_training(training, X, LABELS, want=[*kept, "d.out"])
    given = {name: want.values[name] for name in kept}
    assert equal(run_training(training, torch.zeros_like(X), LABELS, given=given), want)
    given["d.out"] = want.values["d.out"]
    alone = run_training(training, torch.zeros_like(X), given=given)
    assert alone.loss is None
    assert equal(alone, want)
    half = run_training(training, X, given={**given, "d.out": given["d.out"] / 2})
    assert torch.equal(half.gradients["fc.weight"], want.gradients["fc.weight"] / 2)


def test_given_values_are_used_in_place_of_their_node() -> None:
    """Mask and membrane potential of the last Lif, by hand: rectangle of height 1, two steps, decay 0.5.

    m = 9, 9 would lie outside the window. Given mask 1, 0 and membrane potentials 0.75, 0, spikes 0, 0:
    dm[1] = 0; dm[0] = 1 * 1 + 0.
    """
    graph = chain(Lif(decay=0.5, threshold=1.0), shape=(2, "N", 1), axes="TNC")
    training = KeepCompressed()(differentiate(graph, None))
    x, ones = torch.full((2, 1, 1), 9.0), torch.ones(2, 1, 1)
    assert run_training(training, x, given={"d.n2": ones}, want=["d.x"]).values["d.x"].flatten().tolist() == [0, 0]
    given = {
        "d.n2": ones,
        "n2": torch.zeros(2, 1, 1),
        "n2.mask": torch.tensor([1.0, 0.0]).reshape(2, 1, 1),
        "n2.membrane": torch.tensor([0.75, 0.0]).reshape(2, 1, 1),
    }
    run = run_training(training, x, given=given, want=["d.x"])
    assert run.values["d.x"].flatten().tolist() == [1, 0]
    assert run.scores is not None
    assert not run.scores.any()


def test_a_given_result_counts_where_its_node_is_still_executed() -> None:
    """m = 1, 0.5 + 1: both lie inside the window (0.75, 1.75), by the given mask none does."""
    graph = chain(Lif(decay=0.5, threshold=1.25), shape=(2, "N", 1), axes="TNC")
    training = KeepCompressed()(differentiate(graph, None))
    ones, zeros = torch.ones(2, 1, 1), torch.zeros(2, 1, 1)
    run = run_training(training, ones, given={"d.n2": ones, "n2.mask": zeros}, want=["d.x", "n2.membrane"])
    assert not run.values["d.x"].any()
    assert run.values["n2.membrane"].flatten().tolist() == [1.0, 1.5]


def test_given_spikes_reset_the_membrane_potentials() -> None:
    """x = 2, 2, decay 0.5: m = 2, 2 with its own spikes, m = 2, 3 without them."""
    graph = chain(Lif(decay=0.5, threshold=1.0), shape=(2, "N", 1), axes="TNC")
    training = replace(differentiate(graph, None), outputs=())
    x = torch.full((2, 1, 1), 2.0)
    own = run_training(training, x, want=["n2.membrane"])
    silent = run_training(training, x, given={"n2": torch.zeros(2, 1, 1)}, want=["n2.membrane"])
    assert own.values["n2.membrane"].flatten().tolist() == [2, 2]
    assert silent.values["n2.membrane"].flatten().tolist() == [2, 3]


def test_given_parameters_stand_for_the_graphs_own() -> None:
    graph = residual_network()
    other = graph.with_nodes(graph.nodes, parameters={"conv2.weight": normal(2, 2, 3, 3, seed=9)})
    given = {"@conv2.weight": torch.from_numpy(np.array(other.parameters["conv2.weight"]))}
    want = run_training(differentiate(other, Loss.MSE), X, LABELS)
    assert equal(run_training(differentiate(graph, Loss.MSE), X, LABELS, given=given), want)


def test_only_what_is_asked_for_is_computed() -> None:
    """The scores alone need neither labels nor a gradient of the output."""
    training = replace(differentiate(residual_network(), Loss.MSE), outputs=("out",))
    run = run_training(training, X)
    assert set(run.values) == {"out"}
    assert not run.gradients


def test_draws_follow_the_index_of_the_first_sample() -> None:
    graph = chain(Encode(kind=Encoding.BERNOULLI, timesteps=4, seed=3), shape=("N", 5), axes="NC")
    training = replace(differentiate(graph, None), outputs=("n2",))
    x = torch.full((3, 5), 0.5)
    whole = run_training(training, x).values["n2"]
    assert torch.equal(run_training(training, x[1:], first_sample=1).values["n2"], whole[:, 1:])
    assert torch.equal(run_training(training, x, dtype=torch.float64).values["n2"], whole.double())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"labels": None}, "x: %labels is not given\n  hint: give labels, or the output's gradient as given="),
        ({"labels": torch.tensor([1])}, r"labels are torch.int64 \(1,\), must be 2 class indices"),
        ({"labels": torch.tensor([1.0, 2.0])}, "labels are torch.float32"),
        ({"labels": torch.tensor([0, 5])}, "a label lies outside the classes 0 to 4"),
        ({"x": X[0]}, r"net.py:1: error: x: input has shape \(1, 4, 4\), the network takes f32\[N, C=1, H=4, W=4\]"),
        ({"x": X / 0}, "NaN or infinite"),
        ({"want": ["d.nothing"]}, "%d.nothing is no value of the training graph\n  hint: values are x, code, conv1"),
        ({"given": {"lif1.mask": X}}, "%lif1.mask is given, but is no value of the training graph"),
        ({"given": {"@nothing": X}}, "%@nothing is given, but is no value"),
        ({"given": {"lif1": X}}, r"%lif1 is given with shape \(2, 1, 4, 4\), must be \(3, 2, 2, 4, 4\)"),
        ({"given": {"@fc.weight": X}}, r"%@fc.weight is given with shape \(2, 1, 4, 4\), must be \(5, 8\)"),
    ],
)
def test_runs_that_do_not_fit_are_refused(arguments: dict[str, object], message: str) -> None:
    training = differentiate(residual_network(), Loss.MSE)
    with pytest.raises(CompileError, match=message):
        run_training(training, **{"x": X, "labels": LABELS, **arguments})  # type: ignore[arg-type]


def test_labels_without_a_loss_are_refused() -> None:
    with pytest.raises(CompileError, match="labels are given, but the training graph has no loss"):
        run_training(differentiate(residual_network(), None), X, LABELS)


@dataclass(frozen=True, slots=True, kw_only=True)
class Quiet(Op):
    """An op of which the analysis knows nothing."""

    def infer(self, inputs: tuple[TensorType, ...], site: Site) -> TensorType:
        return inputs[0]


def test_an_op_without_a_rule_is_named() -> None:
    with pytest.raises(CompileError) as fault:
        differentiate(chain(Quiet(), shape=("N", 3), axes="NC"), Loss.MSE)
    assert str(fault.value) == "net.py:2: error: n2: no rule to differentiate Quiet"


def test_a_loss_of_a_sequence_is_refused() -> None:
    with pytest.raises(CompileError) as fault:
        differentiate(chain(Lif(decay=0.5, threshold=1.0), shape=(2, "N", 3), axes="TNC"), Loss.MSE)
    assert str(fault.value) == (
        "net.py:2: error: n2: the output spike[T=2, N, C=3] is no vector of class scores, so there is no mse of it\n"
        "  hint: end the network in a readout over time, or give the output's gradient instead of a loss"
    )


@pytest.mark.parametrize(
    ("name", "parameter", "message"),
    [
        ("w", "w", "w: node and parameter @w would have one gradient, d.w\n  hint: rename the parameter"),
        ("d.x", "w", "value %d.x has two meanings in the training graph"),
        ("labels", "w", "value %labels has two meanings in the training graph"),
    ],
)
def test_names_that_clash_are_refused(name: str, parameter: str, message: str) -> None:
    nodes = (
        Node("x", Input(shape=("N", 3), dtype=DType.F32, axes="NC"), (), Loc("net.py", 1)),
        Node(name, Linear(weight=Param(parameter)), ("x",), Loc("net.py", 2)),
    )
    with pytest.raises(CompileError, match=message):
        differentiate(Graph("net", nodes, name, {parameter: normal(3, 3)}), Loss.MSE)


def test_batch_statistics_are_those_of_the_batch() -> None:
    """Mean and biased variance over time, samples, rows and columns; what a trainer's running statistics follow."""
    training = replace(differentiate(residual_network(), Loss.MSE), outputs=())
    values = run_training(training, X, want=["conv1", "norm.mean", "norm.var"], dtype=torch.float64).values
    conv: Tensor = values["conv1"].transpose(0, 2).flatten(1)
    torch.testing.assert_close(values["norm.mean"], conv.mean(1))
    torch.testing.assert_close(values["norm.var"], conv.var(1, correction=0))
