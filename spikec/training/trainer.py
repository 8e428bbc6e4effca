"""What the training loop asks of a backend."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import numpy as np
import numpy.typing as npt

from compiler.ir import Graph
from frontends.descent import F32, BatchResult, Labels, State


class Trainer(Protocol):
    """A network in training; each backend computes the same update in its own arithmetic.

    Shapes: x (N, ...) or (T, N, ...) as the network's input says; labels (N,).
    """

    def step(self, x: F32, labels: Labels, learning_rate: float) -> BatchResult:
        """One update by the gradient of the mean loss over a batch of any size."""
        ...

    def predict(self, x: F32) -> Labels:
        """The class of each sample: the highest score, the first of equal ones."""
        ...

    def weights(self) -> Mapping[str, F32]:
        """The trained parameters by their names in the graph."""
        ...

    def graph(self) -> Graph:
        """The network with its current parameters."""
        ...

    def state(self) -> State:
        """All that later steps and the report depend on."""
        ...

    def restore(self, state: Mapping[str, npt.NDArray[np.generic]]) -> None:
        """Continue from a state of the same network, bit for bit.

        Raises: CompileError for a state that does not fit.
        """
        ...
