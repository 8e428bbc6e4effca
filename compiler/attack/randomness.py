"""Random numbers of an attack: each sample has its own, whatever batch it is attacked in."""

from __future__ import annotations

from collections.abc import Sequence
from enum import IntEnum, unique

import numpy as np
import torch
from torch import Tensor


@unique
class Purpose(IntEnum):
    """What draws are for; each has its own streams."""

    ENCODE = 0  # Bernoulli codes of an attack; those of its step 0 are the codes that the graph's own seed gives
    SAMPLE = 1  # which gradients pass (equation 5.5)
    FLIP = 2  # which spikes are flipped where the gradient vanishes (equation 5.8)
    FRESH = 3  # Bernoulli codes that a finished example is judged by
    START = 4  # where a restart begins
    SEARCH = 5  # one stream of all that a black-box search draws
    MASK = 6  # Bernoulli codes that a share is counted over, for a guarantee
    PICK = 7  # which spikes of an input set may flip


_RESTART = 1 << 32  # steps of a restart, far more than anybody does
_COPY = 1 << 8  # purposes


def step_number(restart: int, step: int) -> int:
    """The number of a step among those of all restarts; those of the first run, restart 0, are its steps."""
    return restart * _RESTART + step


def uniform_draws(
    seed: int, purpose: Purpose, samples: Sequence[int], steps: Sequence[int], shape: Sequence[int], copy: int = 0
) -> Tensor:
    """Uniform draws in [0, 1), f32, that depend on nothing but seed, purpose, sample, step and copy.

    samples, steps: the index of each sample, and the number of the step that it is in.
    copy: which of several independent draws for one step.
    Shapes: shape is (T, ...) of one sample, the result (T, N, ...).
    """
    draws = np.empty((shape[0], len(samples), *shape[1:]), np.float32)
    number = int(purpose) + copy * _COPY
    for n, (sample, step) in enumerate(zip(samples, steps, strict=True)):
        stream = np.random.Generator(np.random.Philox(key=seed, counter=[0, step, number, sample]))
        draws[:, n] = stream.random(tuple(shape), np.float32)
    return torch.from_numpy(draws)


def stream_of(seed: int, purpose: Purpose, sample: int) -> np.random.Generator:
    """One stream of a sample, for whoever draws one after the other."""
    return np.random.Generator(np.random.Philox(key=seed, counter=[0, 0, int(purpose), sample]))
