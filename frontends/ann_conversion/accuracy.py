"""Accuracy of a network, and of a spiking one after each number of time steps."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import numpy as np
import torch
from torch import nn

from compiler.evaluate import evaluate
from compiler.ir import CompileError, Graph, Loc
from compiler.ir.ops import Readout
from compiler.passes import Retime
from frontends.ann_conversion.activations import batches
from frontends.datasets import Samples

_VALUES = 1 << 25  # of the largest layer over time, in one batch


def accuracy_by_timesteps(graph: Graph, samples: Samples, timesteps: Sequence[int]) -> dict[int, float]:
    """Fraction of samples that the network classifies right after so many steps, from one run of the longest.

    What a network of integrate-and-fire neurons has fired up to a step depends on nothing after it; the score after T
    steps is the mean of the first T.

    Needs: a graph of constant input that ends in a mean over time.
    Raises: CompileError for another ending, or a number of steps below 1.
    """
    if not timesteps or min(timesteps) < 1:
        raise CompileError(f"timesteps are {list(timesteps)}, must be at least 1", Loc(graph.name))
    longest = Retime(max(timesteps))(graph)
    readout = longest.node(longest.output)
    if not isinstance(readout.op, Readout):
        raise CompileError("the network does not end in a mean over time", readout.loc)
    (scores,) = readout.inputs
    hits = dict.fromkeys(sorted(timesteps), 0)
    size = _batch(longest)
    for first in range(0, len(samples), size):
        part = samples.take(slice(first, first + size))
        over_time = evaluate(longest, torch.from_numpy(part.x), traces=[scores], first_sample=first).traces[scores]
        sums = over_time.to(torch.float64).cumsum(0)
        for steps in hits:
            hits[steps] += int((sums[steps - 1].argmax(1).numpy() == part.y).sum())
    return {steps: count / len(samples) for steps, count in hits.items()}


def accuracy_of(module: nn.Module, samples: Samples) -> float:
    """Fraction of samples that a module classifies right, in evaluation mode."""
    still = copy.deepcopy(module).eval()
    with torch.no_grad():
        classes = np.concatenate([still(x).argmax(1).numpy() for x in batches(samples)])
    return float(np.mean(classes == samples.y))


def _batch(graph: Graph) -> int:
    """How many samples at a time keep the largest value in bounds."""
    values = (int(np.prod([size for size in kind.shape if not isinstance(size, str)])) for kind in graph.types.values())
    return max(1, _VALUES // max(values))
