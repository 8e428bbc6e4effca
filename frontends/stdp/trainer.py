"""A layer in training: presentations, competition, plasticity and homeostasis, batch by batch."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional

from compiler.codes import bernoulli_draws
from compiler.ir import Graph
from frontends.datasets import Samples
from frontends.descent import F32, BatchResult, Labels, State
from frontends.recipe import torch_threads
from frontends.stdp.freeze import frozen
from frontends.stdp.plasticity import PairStdp
from frontends.stdp.population import competing
from frontends.stdp.recipe import StdpRecipe
from hwmodel.errors import CompileError, Loc

_FIRST_SPIKE_STEPS = 3.0  # of mean drive, which the first thresholds ask for
_THREADS = 1  # makes the weights independent of the number of cores
_EVALUATION_BATCH = 256


class StdpTrainer:
    """One fully connected layer that learns without labels; they only count which class each neuron answers to.

    A presentation is a Bernoulli code of the sample, drawn from the seed and the number of samples presented before
    it. The samples of a batch are presented side by side and meet the same weights and thresholds; with a batch of 1
    weights still change after a presentation, not within it.

    Thresholds rise by `homeostasis` with each spike of their neuron and sink by as much as `spikes_per_sample` evenly
    spread over the neurons would raise them.

    Shapes: samples (N, C, H, W) in [0, 1].
    Raises: CompileError for samples that are no images in [0, 1] with labels.
    """

    def __init__(self, recipe: StdpRecipe, samples: Samples, seed: int) -> None:
        check_images(samples)
        self._recipe, self._samples, self._seed = recipe, samples, seed
        self._rule = PairStdp(tau_plus=recipe.tau_plus, tau_minus=recipe.tau_minus, depression=recipe.depression)
        features = math.prod(samples.x.shape[1:])
        generator = np.random.default_rng(seed)
        self._weight = self._scaled(torch.from_numpy(generator.random((recipe.neurons, features), np.float32)))
        mean_drive = float(samples.x.mean()) * features * recipe.mean_weight
        self._first_threshold = max(_FIRST_SPIKE_STEPS * mean_drive, float(np.finfo(np.float32).tiny))
        self._threshold = torch.full((recipe.neurons,), self._first_threshold)
        self._answers = torch.zeros(int(samples.y.max()) + 1, recipe.neurons)
        self._presented = 0

    def step(self, x: F32, labels: Labels, learning_rate: float) -> BatchResult:
        """One batch of presentations and its update; the loss is the mean change of a weight, of their mean."""
        with torch_threads(_THREADS):
            pre = self._presentation(x, self._presented)
            post = competing(self._drive(pre), self._threshold, self._recipe.decay)
            counts = post.sum(0)
            correct = int((self._classes(counts) == labels).sum())
            weight = self._scaled(self._rule.updated(self._weight, pre, post, learning_rate))
            change = float((weight - self._weight).abs().mean()) / self._recipe.mean_weight
            self._weight = weight
            self._settle(counts)
            self._answers.mul_(math.exp(-len(labels) / len(self._samples))).index_add_(
                0, torch.from_numpy(labels), counts
            )
        self._presented += len(labels)
        return BatchResult(loss=change, correct=correct, samples=len(labels))

    def predict(self, x: F32) -> Labels:
        """The class of each sample, under lateral inhibition: of the neurons that fired, by their usual answers."""
        classes = []
        with torch_threads(_THREADS):
            for first in range(0, len(x), _EVALUATION_BATCH):
                pre = self._presentation(x[first : first + _EVALUATION_BATCH], first)
                classes.append(self._classes(competing(self._drive(pre), self._threshold, self._recipe.decay).sum(0)))
        return np.concatenate(classes)

    def weights(self) -> Mapping[str, F32]:
        """What the layer has learned."""
        return {"layer.weight": self._weight.numpy().copy(), "neurons.threshold": self._threshold.numpy().copy()}

    def graph(self) -> Graph:
        """The layer without its inhibition, with thresholds that make up for it, and its votes for the classes."""
        with torch_threads(_THREADS):
            return frozen(self._recipe, self._weight, self._samples, self._seed)

    def state(self) -> State:
        """All that later batches depend on."""
        return {
            "presented": np.array(self._presented),
            "answers": self._answers.numpy().copy(),
            **self.weights(),
        }

    def restore(self, state: Mapping[str, npt.NDArray[np.generic]]) -> None:
        """Continue from a state of the same layer, bit for bit.

        Raises: CompileError for a state of another layer.
        """
        try:
            for mine, name in (
                (self._weight, "layer.weight"),
                (self._threshold, "neurons.threshold"),
                (self._answers, "answers"),
            ):
                mine.copy_(torch.from_numpy(state[name]))
            self._presented = int(state["presented"])
        except (KeyError, ValueError, RuntimeError) as fault:
            raise CompileError(f"the state does not fit the layer: {fault}", Loc("stdp")) from fault

    def _presentation(self, x: F32, first: int) -> Tensor:
        """Shapes: x (N, ...) -> spikes (T, N, I)."""
        draws = bernoulli_draws(self._seed, self._recipe.timesteps, x.shape, first)
        return torch.from_numpy(draws < x).to(torch.float32).flatten(2)

    def _drive(self, pre: Tensor) -> Tensor:
        return functional.linear(pre, self._weight)

    def _scaled(self, weight: Tensor) -> Tensor:
        """Each neuron's weights with the recipe's mean."""
        return weight * (self._recipe.mean_weight / weight.mean(1, keepdim=True).clamp(min=1e-12))

    def _settle(self, counts: Tensor) -> None:
        """Homeostasis."""
        recipe = self._recipe
        even = recipe.spikes_per_sample * len(counts) / recipe.neurons
        self._threshold += recipe.homeostasis * self._first_threshold * (counts.sum(0) - even)
        self._threshold.clamp_(min=self._first_threshold / 10)

    def _classes(self, counts: Tensor) -> Labels:
        """Each neuron votes for classes by the share of its spikes that they got of it."""
        shares = self._answers / self._answers.sum(0).clamp(min=1e-12)
        classes: Labels = (counts @ shares.T).argmax(1).numpy()
        return classes


def check_images(samples: Samples) -> None:
    """Refuse what has no Bernoulli code.

    Raises: CompileError for events, values outside [0, 1], no labels or no samples.
    """
    loc = Loc(f"data {samples.name}")
    if samples.has_time:
        raise CompileError("has a time axis of its own; plasticity trains on images", loc)
    if not samples.labelled:
        raise CompileError("has no labels, which the neurons are assigned to after training", loc)
    if not len(samples):
        raise CompileError("has no samples to train on", loc)
    low, high = float(samples.x.min()), float(samples.x.max())
    if low < 0.0 or high > 1.0:
        raise CompileError(
            f"holds values from {low:g} to {high:g}; as probabilities of spikes they must be in [0, 1]",
            loc,
            hint="scale the images: x = (x - x.min()) / (x.max() - x.min())",
        )
