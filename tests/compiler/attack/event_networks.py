"""Plainly trained networks that take events, with samples of the digits to attack them on."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from compiler.attack import Case, Victim
from compiler.attack.goal import wins
from compiler.ir import Graph
from frontends.datasets import Samples, train_and_test
from frontends.from_torch import from_torch
from frontends.recipe import train
from frontends.spiking_network import spiking_network
from frontends.zoo import InputKind, ZooEntry


@dataclass(frozen=True, slots=True, kw_only=True)
class Trained:
    """A network, the samples that it was not trained on, and its accuracy on them."""

    graph: Graph
    test: Samples
    accuracy: float

    def cases(self, victim: Victim, count: int, *, next_target: bool = False) -> list[Case]:
        """The first samples that the network gets right."""
        found: list[Case] = []
        for sample, (x, y) in enumerate(zip(self.test.x, self.test.y, strict=True)):
            scores = victim.scores(torch.from_numpy(x).unsqueeze(1), [sample % 16])
            if len(found) < count and bool(wins(scores, torch.tensor([int(y)]))[0]):
                target = (int(y) + 1) % victim.classes if next_target else None
                found.append(Case(sample=sample, x=x, label=int(y), target=target))
        assert len(found) == count
        return found


def events(images: Samples, timesteps: int, *, seed: int, copies: int = 1) -> Samples:
    """Spikes of each image, drawn once for each copy with a pixel's value as their probability."""
    x, y = np.tile(images.x, (copies, 1, 1, 1)), np.tile(images.y, copies)
    draws = np.random.default_rng(seed).random((len(x), timesteps, *x.shape[1:]), np.float32)
    return Samples(x=(draws < x[:, None]).astype(np.float32), y=y, name="events")


def latencies(images: Samples, timesteps: int) -> Samples:
    """One spike of each pixel that is not dark, the brighter the earlier: what counts is when, not how many."""
    step = np.floor((1 - images.x) * timesteps).astype(np.int64)
    x = (step[:, None] == np.arange(timesteps)[:, None, None, None]).astype(np.float32)
    return Samples(x=x, y=images.y, name="latencies")


def pooled(images: Samples, size: tuple[int, int], classes: int) -> Samples:
    """Images of the first classes at a lower resolution and a higher contrast."""
    kept = images.y < classes
    x = torch.nn.functional.adaptive_avg_pool2d(torch.from_numpy(images.x[kept]), size)
    contrast = (4 * (x - 0.4) + 0.5).clamp(0.03, 0.97)
    return Samples(x=contrast.numpy(), y=images.y[kept], name="pooled")


def trained(notation: str, learnt: Samples, unseen: Samples, epochs: int) -> Trained:
    """A chain of the notation, trained on events by the repository's recipe."""
    timesteps = learnt.x.shape[1]
    entry = ZooEntry(
        name="events",
        source="ours",
        notation=notation,
        input_shape=learnt.x.shape[2:],
        input_kind=InputKind.SPIKES,
        coding=None,
        batch_norm=True,
        timesteps=timesteps,
    )
    module = spiking_network(entry, seed=0, timesteps=timesteps)
    result = train(module, learnt, unseen, epochs=epochs, batch=64, lr=4e-3, seed=0, threads=1)
    graph = from_torch(module, torch.from_numpy(unseen.x[:2]).transpose(0, 1), timesteps, name="events")
    return Trained(graph=graph, test=unseen, accuracy=result.accuracy_test)


def conv_on_digits() -> Trained:
    """10 steps of 8x8 events, 10 classes."""
    learnt, unseen = train_and_test("digits")
    return trained("8C3-AP2-64FC-10FC", events(learnt, 10, seed=1, copies=4), events(unseen, 10, seed=2), epochs=3)


def tiny() -> Trained:
    """4 steps of 4x3 events (48 bits), 3 classes: small enough for the least number of flips by enumeration."""
    learnt, unseen = (pooled(part, (4, 3), 3) for part in train_and_test("digits"))
    return trained("24FC-3FC", events(learnt, 4, seed=1, copies=4), events(unseen, 4, seed=2), epochs=15)


def on_latencies() -> Trained:
    """8 steps of 8x8 events, 10 classes, told apart by when spikes are."""
    learnt, unseen = (latencies(part, 8) for part in train_and_test("digits"))
    return trained("128FC-10FC", learnt, unseen, epochs=15)
