"""How many samples a network is certified on: by S-IBP, sound for what `evaluate` computes."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from compiler.certify.input_sets import Box, Chain, InputSet, L0Ball, LinfReal
from compiler.certify.interval import interval
from compiler.certify.last_layer import is_robust, margins
from compiler.codes import bernoulli_draws
from compiler.ir import Graph
from frontends.datasets import Samples
from frontends.robust.settings import FewFlips, Linf, PickedFlips, Threat
from frontends.robust.surroundings import picked_elements, surroundings
from frontends.robust.trainer import bounded_graph

_GROUP = 10  # samples that are bounded together


def certified(graph: Graph, samples: Samples, threat: Threat) -> npt.NDArray[np.bool_]:
    """Of each sample, whether S-IBP proves that the label alone has the highest score on its whole set.

    All time steps of the network; the codes of a Bernoulli encoding are those that `evaluate` draws for samples
    counted from 0, and what is proved then holds for these draws.

    Shapes: -> (N,).
    Raises: CompileError as `RobustTrainer`.
    """
    around = surroundings(graph, threat, graph.timesteps)
    bounded = bounded_graph(graph, graph.timesteps)
    found = []
    for first in range(0, len(samples), _GROUP):
        part = samples.take(slice(first, first + _GROUP))
        sets = []
        for n, x in enumerate(part.x, start=first):
            shape = (1, *x.shape)
            draws = bernoulli_draws(around.seed, graph.timesteps, shape, n)[:, 0] if around.is_coded else None
            sets.append(_set(threat, x, draws, around.seed, n))
        found.append(is_robust(margins(bounded, interval(bounded, sets), part.y)).numpy())
    return np.concatenate(found)


def _set(
    threat: Threat, x: npt.NDArray[np.float32], draws: npt.NDArray[np.float32] | None, seed: int, sample: int
) -> InputSet:
    """Around one sample, an image or spikes. Shapes: x (C, ...) or (T, C, ...)."""
    clean = x if draws is None else (draws < x).astype(np.float32)
    match threat:
        case Linf(eps=eps):
            return LinfReal(clean=x, eps=eps) if draws is None else Chain(image=x, eps=eps, draws=draws)
        case FewFlips(k=k):
            return L0Ball(clean=clean, k=k)
        case PickedFlips(share=share):
            return Box(clean=clean, free=picked_elements(seed, sample, clean.shape, share))
