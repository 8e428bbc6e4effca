"""Tiny networks behind a Bernoulli code, and the exact probabilities of what they tell."""

from __future__ import annotations

from functools import cache
from itertools import product

import numpy as np
import numpy.typing as npt
import torch

from compiler.attack.goal import wins
from compiler.evaluate import evaluate
from compiler.ir import Encoding, Graph
from compiler.passes import DropEncode, PrependEncode
from tests.compiler.certify.networks import Kind, problem

Doubles = npt.NDArray[np.float64]
Floats = npt.NDArray[np.float32]
Bools = npt.NDArray[np.bool_]


@cache
def coded_network(seed: int, *, timesteps: int, is_dyadic: bool | None = None) -> Graph:
    """The first random network of 4 features and so many steps from a seed on, with an encoding in front."""
    while True:
        graph = problem(seed, Kind(is_image=False, is_dyadic=is_dyadic)).graph
        if graph.timesteps == timesteps:
            return PrependEncode(Encoding.BERNOULLI, 0)(graph)
        seed += 1000


def codes_of(timesteps: int, pixels: int) -> Floats:
    """All codes. Shapes: (2^(T pixels), T, pixels)."""
    bits = np.array(list(product((0, 1), repeat=timesteps * pixels)), np.float32)
    return bits.reshape(-1, timesteps, pixels)


def told(graph: Graph, codes: Floats) -> Bools:
    """Which class alone has the highest score for each code. Shapes: codes (M, T, C) -> (M, K)."""
    scores = evaluate(DropEncode()(graph), torch.from_numpy(np.moveaxis(codes, 0, 1).copy())).output
    classes = scores.shape[1]
    return np.stack([wins(scores, torch.full((len(scores),), k)).numpy() for k in range(classes)], 1)


def probability(codes: Floats, rule: Bools, image: Doubles) -> float:
    """That an image's code is one of a rule's. Shapes: codes (M, T, C), rule (M,), image (C,)."""
    each = np.where(codes[rule] > 0, image, 1 - image)
    return float(each.prod((1, 2)).sum())
