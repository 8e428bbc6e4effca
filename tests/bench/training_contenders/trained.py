"""Weights of the benchmark's networks, trained on real images by `spikec.fuse` and kept in the cache folder."""

from __future__ import annotations

import hashlib
import json
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

import spikec
from frontends.datasets import Samples, train_and_test
from hwmodel.errors import CompileError
from hwmodel.folders import cache_folder
from tests.bench.training_contenders.images import DESCRIPTION, coded, fitted
from tests.bench.training_contenders.networks import DECAY, NETWORKS, SEED, THRESHOLD
from tests.bench.training_contenders.setting import CLASSES, Setting
from tests.bench.training_contenders.vanilla import WINDOW, own_layers
from tests.bench.training_contenders.weights import Batch, load_facts, save_weights

FORMAT = 1  # raised when training gives other weights for the same recipe
DATA = ("mnist", "digits")  # the first that is on this machine, unless told otherwise
BATCH = 16
RELATIVE_RATE = 0.003  # of each tensor's deviation: one rate drives neurons of wide linear layers out of their windows
NORM_RATE = 1e-3
RIGHT_RATE, WRONG_RATE = 0.9, 0.1  # of the last neurons: one that is to be silent closes its window and stays so
OPTIMISER = f"Adam, {RELATIVE_RATE:.1%} of a tensor's deviation to 0 along a cosine, squared error of the rates"
TEST_SAMPLES = 512  # at most, by which the accuracy is told


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """What a network is trained on and for how long; plain values."""

    network: str
    timesteps: int
    input: str
    data: str  # as `frontends.datasets` names it; "" for the first of `DATA`
    samples: int
    epochs: int
    threads: int  # no part of the key

    def key(self, train: Samples, test: Samples) -> str:
        """sha256 of all that decides the weights and the images in the file."""
        parts = asdict(self) | {"format": FORMAT, "version": spikec.__version__, "seed": SEED}
        parts |= {
            "batch": BATCH,
            "optimiser": OPTIMISER,
            "rates": (NORM_RATE, RIGHT_RATE, WRONG_RATE),
            "test samples": TEST_SAMPLES,
            "images": DESCRIPTION,
        }
        shape = NETWORKS[self.network]
        parts |= {"network": shape.notation, "input shape": shape.input_shape, "timed": shape.batch}
        parts |= {"neurons": f"{DECAY} {THRESHOLD} {WINDOW!r}"}
        parts |= {"train": train.digest(), "test": test.digest()}
        del parts["threads"], parts["data"]  # the samples' digests stand for their source
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()

    def setting(self, path: str = "") -> Setting:
        """Of the network that is trained, or of its file."""
        return Setting(
            contender="spikec",
            network=self.network,
            timesteps=self.timesteps,
            input=self.input,
            layout="channels_last",
            threads=self.threads,
            trained=path,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What training reached, on held-out images in evaluation mode."""

    data: str
    samples: int
    epochs: int
    batch: int
    optimiser: str
    images: str
    test_samples: int
    test_accuracy: float
    training_s: float


def trained(recipe: Recipe) -> tuple[Path, Facts]:
    """The file of the trained network, made now unless it is there."""
    train, test = samples_of(recipe)
    path = cache_folder() / "bench" / f"{recipe.network}-{recipe.key(train, test)[:16]}.safetensors"
    try:
        return path, Facts(**json.loads(load_facts(path)))
    except FileNotFoundError:
        pass
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        _talk(f"  {path}: {error!r}; it is made again")
    start = time.perf_counter()
    model = _train(recipe, train)
    facts = Facts(
        data=train.name,
        samples=len(train),
        epochs=recipe.epochs,
        batch=BATCH,
        optimiser=OPTIMISER,
        images=DESCRIPTION,
        test_samples=len(test),
        test_accuracy=_accuracy(model, recipe, test),
        training_s=time.perf_counter() - start,
    )
    shape = NETWORKS[recipe.network]
    first = test.take(slice(shape.batch))
    batch = Batch(fitted(torch.tensor(first.x), shape.input_shape), torch.tensor(first.y))
    save_weights(path, model, batch, json.dumps(asdict(facts)))
    return path, facts


def samples_of(recipe: Recipe) -> tuple[Samples, Samples]:
    """For training and for tests. Raises: CompileError for data that is not on this machine."""
    names = [recipe.data] if recipe.data else list(DATA)
    for name in names:
        try:
            train, test = train_and_test(name)
        except CompileError:
            if name == names[-1]:
                raise
        else:
            return _part(train, recipe.samples), _part(test, TEST_SAMPLES)
    raise AssertionError(names)


def _part(samples: Samples, count: int) -> Samples:
    """Whole batches, one at least, as many samples at most, in an order of our own: some sets are sorted by class.

    A batch of another size would have the costs of its kernels measured too.
    """
    whole = max(BATCH, min(len(samples), count) // BATCH * BATCH)
    return samples.take(np.random.default_rng(SEED).permutation(len(samples))[:whole])


def _train(recipe: Recipe, train: Samples) -> nn.Module:
    generator = torch.Generator().manual_seed(SEED)
    images, labels = fitted(torch.tensor(train.x), NETWORKS[recipe.network].input_shape), torch.tensor(train.y)
    wanted = WRONG_RATE + (RIGHT_RATE - WRONG_RATE) * nn.functional.one_hot(labels, CLASSES)
    model = spikec.fuse(
        own_layers(recipe.setting()), _input(recipe, images[:BATCH], generator), timesteps=recipe.timesteps
    )
    optimiser = torch.optim.Adam([{"params": [p], "lr": _learning_rate(p)} for p in model.parameters()])
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, recipe.epochs * len(images) // BATCH)
    for epoch in range(recipe.epochs):
        losses = []
        for index in torch.split(torch.randperm(len(images), generator=generator), BATCH):
            optimiser.zero_grad()
            loss = nn.functional.mse_loss(model(_input(recipe, images[index], generator)), wanted[index])
            loss.backward()  # type: ignore[no-untyped-call]
            optimiser.step()
            schedule.step()
            losses.append(loss.item())
        _talk(f"  {recipe.network}, epoch {epoch + 1} of {recipe.epochs}: mean loss {np.mean(losses):.3f}")
    return model


def _learning_rate(parameter: nn.Parameter) -> float:
    if parameter.ndim == 1:
        return NORM_RATE
    return RELATIVE_RATE * parameter.detach().std().item()


def _accuracy(model: nn.Module, recipe: Recipe, test: Samples) -> float:
    generator = torch.Generator().manual_seed(SEED)
    images, labels = fitted(torch.tensor(test.x), NETWORKS[recipe.network].input_shape), torch.tensor(test.y)
    right = 0
    model.eval()
    with torch.no_grad():
        for x, y in zip(torch.split(images, BATCH), torch.split(labels, BATCH), strict=True):
            right += int((model(_input(recipe, x, generator)).argmax(1) == y).sum())
    return right / len(labels)


def _input(recipe: Recipe, images: Tensor, generator: torch.Generator) -> Tensor:
    return images if recipe.input == "repeated" else coded(images, recipe.timesteps, generator)


def _talk(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
