"""The spike codes of a real-valued input, the same wherever they are executed."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt


def bernoulli_draws(seed: int, timesteps: int, shape: Sequence[int], first_sample: int) -> npt.NDArray[np.float32]:
    """Uniform draws in [0, 1): each sample has its own stream, whatever batch it stands in.

    Shapes: shape is (N, ...), the result (T, N, ...).
    """
    draws = np.empty((timesteps, *shape), np.float32)
    for n in range(shape[0]):
        stream = np.random.Generator(np.random.Philox(key=seed, counter=[0, 0, 0, first_sample + n]))
        draws[:, n] = stream.random((timesteps, *shape[1:]), np.float32)
    return draws


def latency_code(x: npt.NDArray[np.float32], timesteps: int) -> npt.NDArray[np.float32]:
    """One spike for each positive value, at step round((1 - x) * (timesteps - 1)).

    Shapes: x (N, ...) -> (T, N, ...).
    """
    steps = np.arange(timesteps).reshape(-1, *(1,) * x.ndim)
    return np.asarray((steps == np.round((1 - x) * (timesteps - 1))) & (x > 0), np.float32)
