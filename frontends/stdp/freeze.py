"""What plasticity has learned as a graph: no inhibition, fixed thresholds, and a layer of votes for the classes."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from compiler.codes import bernoulli_draws
from compiler.evaluate import evaluate
from compiler.ir import DType, Encoding, Graph, Loc, Node, Param, Reading, Reset
from compiler.ir.ops import Encode, Flatten, Input, Lif, Linear, Readout
from frontends.datasets import Samples
from frontends.stdp.population import uncoupled_counts
from frontends.stdp.recipe import StdpRecipe

_CALIBRATION_SAMPLES = 1000
_HALVINGS = 16
# Of all steps, each of J neurons fires in this share / sqrt(J): fewer spikes say less, more come from worse matches.
_FIRING_SHARE = 0.06
_EVALUATION_BATCH = 256
_LAYER, _NEURONS, _VOTES = "layer", "neurons", "votes"


def frozen(recipe: StdpRecipe, weight: Tensor, samples: Samples, seed: int) -> Graph:
    """The layer as a graph whose scores `evaluate` computes.

    A graph has no lateral inhibition. In its place the mean drive of the population is taken from each neuron's, which
    weights can do: w'[j] = w[j] - mean of w over neurons; and each neuron's threshold is set so that over samples of
    the training set it fires as often as every other. What is left to make it fire is what it matches better than its
    neighbours do. Then each neuron votes for the class that it answers to most, over the training set; a class's score
    is the mean rate of its neurons.

    Shapes: weight (J, I); the graph takes images (N, C, H, W) and gives scores (N, classes).
    """
    relative = weight - weight.mean(0)
    threshold = calibrated(recipe, relative, _spread(samples), seed)
    parameters = {f"{_LAYER}.weight": relative.numpy(), f"{_NEURONS}.threshold": threshold.numpy()}
    population = _graph(recipe, samples, seed, parameters)
    votes = assigned(responses(population, samples), samples.y)
    return _graph(recipe, samples, seed, {**parameters, f"{_VOTES}.weight": votes})


def calibrated(recipe: StdpRecipe, weight: Tensor, samples: Samples, seed: int) -> Tensor:
    """The lowest thresholds at which no neuron fires in more than its share of steps, by halving intervals."""
    draws = bernoulli_draws(seed, recipe.timesteps, samples.x.shape, 0)
    pre = torch.from_numpy(draws < samples.x).to(torch.float32).flatten(2)
    drive = functional.linear(pre, weight)
    wanted = firing_share(recipe) * recipe.timesteps
    low = torch.zeros(len(weight))
    high = drive.clamp(min=0.0).sum(0).amax(0) + 1.0  # above all that a presentation adds up to
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        too_many = uncoupled_counts(drive, middle, recipe.decay).mean(0) > wanted
        low, high = torch.where(too_many, middle, low), torch.where(too_many, high, middle)
    return high


def firing_share(recipe: StdpRecipe) -> float:
    """The share of steps in which each neuron of a frozen layer fires."""
    return _FIRING_SHARE / math.sqrt(recipe.neurons)


def _spread(samples: Samples) -> Samples:
    """Evenly spaced ones, since a data set may be sorted by class."""
    count = min(len(samples), _CALIBRATION_SAMPLES)
    return samples.take(np.arange(count) * len(samples) // count)


def responses(population: Graph, samples: Samples) -> Tensor:
    """The rate of each neuron to each sample. Shapes: (N, J)."""
    parts = [
        evaluate(population, torch.from_numpy(samples.x[first : first + _EVALUATION_BATCH]), first_sample=first).output
        for first in range(0, len(samples), _EVALUATION_BATCH)
    ]
    return torch.cat(parts)


def measured(graph: Graph, samples: Samples) -> tuple[float, int]:
    """Accuracy on samples, the first of equal scores, and how many neurons none of them made fire."""
    hits, fired = 0, torch.zeros(graph.types[_NEURONS].size("C"), dtype=torch.bool)
    for first in range(0, len(samples), _EVALUATION_BATCH):
        part = samples.take(slice(first, first + _EVALUATION_BATCH))
        result = evaluate(graph, torch.from_numpy(part.x), traces=[_NEURONS], first_sample=first)
        hits += int((result.output.argmax(1).numpy() == part.y).sum())
        fired |= result.traces[_NEURONS].amax((0, 1)) > 0
    return hits / len(samples), int((~fired).sum())


def assigned(rates: Tensor, labels: np.ndarray) -> np.ndarray:
    """Votes of neurons for classes: 1 / (neurons of the class), for the class that the neuron answers to most.

    Shapes: rates (N, J), labels (N,) -> (classes, J).
    """
    classes = int(labels.max()) + 1
    members = functional.one_hot(torch.from_numpy(labels), classes).to(torch.float32)
    mean_rates = (members / members.sum(0).clamp(min=1.0)).T @ rates
    votes = functional.one_hot(mean_rates.argmax(0), classes).T.to(torch.float32)
    return (votes / votes.sum(1, keepdim=True).clamp(min=1.0)).numpy()


def _graph(recipe: StdpRecipe, samples: Samples, seed: int, parameters: dict[str, np.ndarray]) -> Graph:
    """With the votes if they are among the parameters, else up to the neurons' rates."""
    loc = Loc(f"stdp:{recipe.neurons}")
    neurons = Lif(decay=recipe.decay, threshold=Param(f"{_NEURONS}.threshold"), reset=Reset.HARD, reset_value=0.0)
    chain = [
        ("input", Input(shape=("N", *samples.x.shape[1:]), dtype=DType.F32, axes="NCHW")),
        ("encode", Encode(kind=Encoding.BERNOULLI, timesteps=recipe.timesteps, seed=seed)),
        ("flatten", Flatten()),
        (_LAYER, Linear(weight=Param(f"{_LAYER}.weight"))),
        (_NEURONS, neurons),
    ]
    if f"{_VOTES}.weight" in parameters:
        chain.append((_VOTES, Linear(weight=Param(f"{_VOTES}.weight"))))
    chain.append(("readout", Readout(kind=Reading.RATE)))
    names = [name for name, _ in chain]
    nodes = tuple(
        Node(name, op, (before,) if before else (), loc)
        for (name, op), before in zip(chain, ("", *names), strict=False)
    )
    return Graph(f"stdp-{recipe.neurons}", nodes, "readout", parameters)
