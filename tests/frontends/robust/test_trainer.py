"""Training against sets of inputs: what it does to a network, its schedule, and what it refuses."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from compiler.ir import Encoding, Graph
from compiler.losses import RATE_SCALE, Loss
from compiler.passes import PrependEncode
from frontends import zoo
from frontends.datasets import Split, load
from frontends.descent import F32, DescentRecipe, Labels, Optimiser, Schedule
from frontends.from_torch import from_torch
from frontends.robust.certified import certified
from frontends.robust.recipes import default_robust_recipe, robust_recipe
from frontends.robust.settings import FewFlips, Linf, PickedFlips, RobustSettings, Threat, parse_threat
from frontends.robust.surroundings import surroundings
from frontends.robust.trainer import RobustTrainer
from frontends.spiking_network import spiking_network
from frontends.torch_training import TorchTrainer
from hwmodel.errors import CompileError

STEPS = 3
RECIPE = DescentRecipe(
    epochs=1,
    batch=32,
    learning_rate=4e-3,
    optimiser=Optimiser.ADAM,
    loss=Loss.CROSS_ENTROPY,
    schedule=Schedule.CONSTANT,
    threads=1,
)
THREATS: dict[str, Threat] = {"linf": Linf(eps=0.05), "l0": FewFlips(k=2), "box": PickedFlips(share=0.05)}


def network(name: str = "certify-fc", notation: str = "32FC-10FC", steps: int = STEPS, coded: bool = True) -> Graph:
    entry = replace(zoo.entry(name), notation=notation, input_shape=(1, 8, 8), batch_norm=False)
    graph = from_torch(
        spiking_network(entry, seed=0, timesteps=steps), torch.zeros(entry.example_shape(2, steps)), steps, name="net"
    )
    return PrependEncode(Encoding.BERNOULLI, 3)(graph) if coded else graph


def direct() -> Graph:
    return network("certify-conv-direct", "4C3S2(Encoding)-10FC", coded=False)


def batches(count: int, size: int = 32) -> list[tuple[F32, Labels]]:
    train = load("digits", split=Split.TRAIN)
    return [
        (train.x[at : at + size], train.y[at : at + size])
        for at in (n * size % (len(train) - size) for n in range(count))
    ]


def trained(graph: Graph, settings: RobustSettings, steps: int) -> RobustTrainer:
    trainer = RobustTrainer(graph, RECIPE, settings, steps * RECIPE.batch)
    for x, labels in batches(steps):
        trainer.step(x, labels, RECIPE.learning_rate)
    return trainer


@pytest.mark.parametrize("name", ["linf", pytest.param("l0", marks=pytest.mark.slow)])
def test_more_samples_are_certified_than_of_a_plainly_trained_twin(name: str) -> None:
    """Of 100 test digits, 50 under linf when written, and none of the twin's."""
    test = load("digits", split=Split.TEST).take(slice(100))
    threat = Linf(eps=0.05) if name == "linf" else FewFlips(k=1)
    graph = network(notation="64FC-32FC-10FC")
    plain, robust = (trained(graph, RobustSettings(threat=threat, weight=weight), 320) for weight in (0.0, 0.8))
    shares = [certified(trainer.graph(), test, threat).mean() for trainer in (plain, robust)]
    accuracies = [(trainer.predict(test.x) == test.y).mean() for trainer in (plain, robust)]
    assert shares[0] <= 0.05
    assert shares[1] >= shares[0] + 0.2
    assert accuracies[1] >= 0.6


def test_without_weight_it_is_ordinary_training() -> None:
    graph = network()
    plain = TorchTrainer(graph, RECIPE)
    robust = RobustTrainer(graph, RECIPE, RobustSettings(threat=Linf(eps=0.05), weight=0.0), 96)
    for x, labels in batches(3):
        assert plain.step(x, labels, 4e-3) == robust.step(x, labels, 4e-3)
    for ours, theirs in zip(robust.weights().values(), plain.weights().values(), strict=True):
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("name", THREATS)
@pytest.mark.parametrize("kappa", [0.0, 0.5, 1.0])
def test_every_mixture_trains_and_continues_bit_for_bit(name: str, kappa: float) -> None:
    settings = RobustSettings(threat=THREATS[name], kappa=kappa, warmup=0.5, timesteps=2)
    graph = network()
    one, other = (RobustTrainer(graph, RECIPE, settings, 128) for _ in range(2))
    shown = batches(4)
    for x, labels in shown[:2]:
        one.step(x, labels, 4e-3)
    other.restore(one.state())
    results = [[trainer.step(x, labels, 4e-3) for x, labels in shown[2:]] for trainer in (one, other)]
    assert results[0] == results[1]
    assert all(np.isfinite(result.loss) for result in results[0])
    for ours, theirs in zip(one.weights().values(), other.weights().values(), strict=True):
        np.testing.assert_array_equal(ours, theirs)
        assert np.isfinite(ours).all()


def test_the_loss_is_the_mixture_of_natural_and_worst_case() -> None:
    graph, (x, labels) = direct(), batches(1)[0]
    weights = (0.0, 0.5, 1.0)
    losses = []
    for weight in weights:
        settings = RobustSettings(threat=Linf(eps=0.02), weight=weight, warmup=0.0)
        losses.append(RobustTrainer(graph, RECIPE, settings, 100).step(x, labels, 0.0).loss)
    assert losses[1] == pytest.approx((losses[0] + losses[2]) / 2, rel=1e-5)
    assert losses[2] > losses[0]
    trainer = RobustTrainer(graph, RECIPE, RobustSettings(threat=Linf(eps=0.02)), 100)
    _, given = surroundings(graph, Linf(eps=0.02), STEPS).around(torch.from_numpy(x), 0, 1.0)
    margins = trainer.margins(given, torch.from_numpy(labels)).detach()
    assert (margins.gather(1, torch.from_numpy(labels)[:, None]) == 0).all()
    want = torch.logsumexp(-RATE_SCALE * margins, 1).mean()
    assert losses[2] == pytest.approx(float(want), rel=1e-5)


def test_sets_grow_until_the_warm_up_is_over() -> None:
    settings = RobustSettings(threat=Linf(eps=0.1), warmup=0.8)
    assert [settings.growth(done) for done in (0.0, 0.4, 0.8, 0.9)] == [0.0, 0.5, 1.0, 1.0]
    around = surroundings(direct(), Linf(eps=0.1), STEPS)
    x = torch.tensor([0.0, 0.5, 0.98]).expand(1, 1, 1, 3)
    _, half = around.around(x, 0, 0.5)
    torch.testing.assert_close(half.lower.flatten(), torch.tensor([0.0, 0.45, 0.93]))
    torch.testing.assert_close(half.upper.flatten(), torch.tensor([0.05, 0.55, 1.0]))


@pytest.mark.parametrize("name", THREATS)
def test_inputs_around_a_sample_contain_it_and_are_its_own(name: str) -> None:
    graph = network()
    around = surroundings(graph, THREATS[name], STEPS)
    x = torch.from_numpy(batches(1)[0][0])
    clean, given = around.around(x, 10, 1.0)
    assert ((given.lower <= clean) & (clean <= given.upper)).all()
    assert all(set(end.flatten().tolist()) <= {0.0, 1.0} for end in (given.lower, given.upper))
    later, own = around.around(x[4:], 14, 1.0)
    assert torch.equal(later, clean[:, 4:])
    assert torch.equal(own.upper, given.upper[:, 4:])
    share = float((given.lower < given.upper).float().mean())
    assert {"linf": 0.03 < share < 0.1, "box": 0.03 < share < 0.07, "l0": share == 1.0}[name]


def test_recorded_spikes_are_cut_to_the_training_steps() -> None:
    graph = network(coded=False, steps=6)
    around = surroundings(graph, FewFlips(k=1), 2)
    x = (torch.rand(6, 4, 1, 8, 8, generator=torch.Generator().manual_seed(0)) < 0.3).float()
    starts = set()
    for first in range(0, 40, 4):
        clean, _ = around.around(x, first, 1.0)
        (start,) = [t for t in range(5) if torch.equal(x[t : t + 2], clean)]
        starts.add(start)
    assert len(starts) > 2
    trainer = RobustTrainer(graph, RECIPE, RobustSettings(threat=FewFlips(k=1), timesteps=2), 10)
    trainer.step(x.numpy(), np.arange(4), 1e-3)
    assert trainer.predict(x.numpy()).shape == (4,)


@pytest.mark.parametrize(
    ("text", "threat"),
    [
        ("linf:eps=0.05", Linf(eps=0.05)),
        ("linf:width=0.1", Linf(eps=0.05)),
        ("l0:k=4", FewFlips(k=4)),
        ("box:share=0.02", PickedFlips(share=0.02)),
    ],
)
def test_words_for_threats(text: str, threat: Threat) -> None:
    assert parse_threat(text) == threat


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("l2:eps=1", "'l2:eps=1' is no set of inputs"),
        ("", "'' is no set of inputs"),
        ("linf", "'linf' is no set of inputs"),
        ("linf:eps", "'linf:eps' is no set of inputs"),
        ("linf:eps=wide", "'wide' is no number"),
        ("linf:eps=0", "half the width is 0"),
        ("linf:eps=-0.1", "half the width is -0.1"),
        ("linf:width=3", "half the width is 1.5"),
        ("linf:eps=nan", "nan is not finite"),
        ("l0:k=0", "k is 0"),
        ("l0:k=1.5", "k is 1.5"),
        ("box:share=0", "the share is 0"),
        ("box:share=2", "the share is 2"),
    ],
)
def test_words_that_are_no_threat(text: str, message: str) -> None:
    with pytest.raises(CompileError, match=message):
        parse_threat(text)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"timesteps": 0}, "timesteps: error: is 0"),
        ({"warmup": -0.1}, "warmup: error: is -0.1"),
        ({"weight": 1.5}, "weight: error: is 1.5"),
        ({"kappa": float("nan")}, "kappa: error: is nan"),
    ],
    ids=str,
)
def test_numbers_out_of_range(change: dict[str, float], message: str) -> None:
    with pytest.raises(CompileError, match=message):
        replace(RobustSettings(threat=Linf(eps=0.1)), **change).verify()  # type: ignore[arg-type]


def test_threats_that_do_not_fit_the_network() -> None:
    spikes = network(coded=False)
    for graph, threat, steps, message in (
        (spikes, Linf(eps=0.1), STEPS, "the network takes spikes"),
        (direct(), FewFlips(k=1), STEPS, "the network takes real values"),
        (spikes, FewFlips(k=1000), STEPS, "1000 flips of an input of 192 elements"),
        (spikes, FewFlips(k=1), 9, "robust training of 9 steps, the network's spikes have 3"),
    ):
        with pytest.raises(CompileError, match=message):
            RobustTrainer(graph, RECIPE, RobustSettings(threat=threat, timesteps=steps), 10)
    latency = PrependEncode(Encoding.LATENCY)(spikes)
    with pytest.raises(CompileError, match="latency code has no bounds in training"):
        RobustTrainer(latency, RECIPE, RobustSettings(threat=Linf(eps=0.1)), 10)


def test_images_out_of_range_are_refused() -> None:
    trainer = RobustTrainer(direct(), RECIPE, RobustSettings(threat=Linf(eps=0.1)), 100)
    x, labels = batches(1)[0]
    with pytest.raises(CompileError, match=r"values from 0 to 16, not in \[0, 1\]"):
        trainer.step(16 * x, labels, 1e-3)


def test_recipes_are_sound() -> None:
    for recipe in (default_robust_recipe(), *(robust_recipe(name) for name in zoo.names())):
        recipe.verify()
        assert recipe.loss is Loss.CROSS_ENTROPY
    with pytest.raises(CompileError, match="is no network of the zoo"):
        robust_recipe("certify-tiny")
