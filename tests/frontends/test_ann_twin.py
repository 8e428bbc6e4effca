"""Trained ANN counterparts: the network that was trained is the one that the graph stands for."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from compiler.attack import Settings, Status, attack
from compiler.attack.ann import Activation, AnnTwin
from compiler.attack.settings import Case
from compiler.ir import CompileError, Encoding, Graph
from compiler.ir.file import load_graph, save_graph
from frontends.ann_twin import TrainedTwin, train_ann_twin
from frontends.datasets import Samples, Split, load
from frontends.from_torch import from_torch
from frontends.zoo import build
from tests.compiler.attack.test_ann import residual
from tests.compiler.attack.test_victim import two_layers


@pytest.fixture(scope="module")
def digits() -> tuple[Samples, Samples]:
    return load("digits", split=Split.TRAIN), load("digits", split=Split.TEST)


@pytest.fixture(scope="module")
def network() -> Graph:
    return from_torch(build("digits-fc", timesteps=4), torch.zeros(1, 1, 8, 8), 4)


@pytest.fixture(scope="module")
def trained(network: Graph, digits: tuple[Samples, Samples]) -> TrainedTwin:
    return train_ann_twin(network, *digits, epochs=3)


def random_samples(count: int, seed: int) -> Samples:
    rng = np.random.default_rng(seed)
    return Samples(x=rng.random((count, 2, 6, 6), np.float32), y=rng.integers(3, size=count), name="random")


def scores(graph: Graph, samples: Samples, activation: Activation = Activation.RELU) -> torch.Tensor:
    return AnnTwin(graph, activation=activation).scores(torch.from_numpy(samples.x))


def test_it_learns_and_is_the_twin_of_its_graph(trained: TrainedTwin, digits: tuple[Samples, Samples]) -> None:
    accuracy = float((scores(trained.graph, digits[1]).argmax(1).numpy() == digits[1].y).mean())
    assert accuracy == trained.training.accuracy_test
    assert accuracy >= 0.9


def test_the_graph_is_the_spiking_network_s_but_for_its_arrays(trained: TrainedTwin, network: Graph) -> None:
    assert trained.graph.nodes == network.nodes
    assert trained.graph.parameters.keys() == network.parameters.keys()


def test_a_saved_twin_is_the_same_twin(trained: TrainedTwin, digits: tuple[Samples, Samples], tmp_path: Path) -> None:
    save_graph(trained.graph, tmp_path / "twin.spk")
    again = load_graph(tmp_path / "twin.spk")
    assert torch.equal(scores(again, digits[1]), scores(trained.graph, digits[1]))


@pytest.mark.parametrize("activation", list(Activation))
@pytest.mark.parametrize("kind", [Encoding.DIRECT, Encoding.BERNOULLI])
def test_numbers_of_each_channel_and_branches(kind: Encoding, activation: Activation) -> None:
    """One small step of training, and the module's accuracy is the twin's."""
    graph, samples = residual(kind), random_samples(50, 0)
    made = train_ann_twin(graph, samples, samples, epochs=2, activation=activation)
    hits = (scores(made.graph, samples, activation).argmax(1).numpy() == samples.y).mean()
    assert float(hits) == made.training.accuracy_train
    assert np.array_equal(made.graph.parameters["leak"], graph.parameters["leak"])


def test_the_same_seed_gives_the_same_bytes_whatever_the_network_s_own_weights() -> None:
    graph, samples = residual(Encoding.DIRECT), random_samples(40, 0)
    other = graph.with_nodes(graph.nodes, parameters={**graph.parameters, "w1": graph.parameters["w1"] * 2})
    first, same, third = (
        train_ann_twin(net, samples, samples, epochs=1, seed=seed).graph.parameters
        for net, seed in ((graph, 0), (other, 0), (graph, 1))
    )
    assert all(first[name].tobytes() == same[name].tobytes() for name in first)
    assert not np.array_equal(first["w1"], third["w1"])


def test_it_is_fooled_by_the_plain_attack(trained: TrainedTwin, digits: tuple[Samples, Samples]) -> None:
    test = digits[1]
    start = [Case(sample=n, x=test.x[n], label=int(test.y[n])) for n in range(32)]
    outcomes = list(attack(AnnTwin(trained.graph), start, Settings(step=0.05)))
    found = [outcome for outcome in outcomes if outcome.status is Status.SUCCESS]
    assert len(found) >= 0.9 * sum(outcome.status is not Status.CLEAN_ERROR for outcome in outcomes)


def test_refusals(digits: tuple[Samples, Samples]) -> None:
    with pytest.raises(CompileError, match="an ANN counterpart has no time"):
        train_ann_twin(two_layers(), *digits)
    with pytest.raises(CompileError, match="must be positive"):
        train_ann_twin(residual(Encoding.DIRECT), random_samples(8, 0), random_samples(8, 1), epochs=0)
