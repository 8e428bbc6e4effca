"""What the SGD unit is told to do with a slice of weights, and what it hands back."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from runtime.engines.soma_plan import F16


@dataclass(frozen=True, slots=True, kw_only=True)
class Sgd:
    """Stochastic gradient descent with heavy-ball momentum and weight decay, as torch.optim.SGD without dampening.

    Gradients and momentum are those of the loss times `scale`, which the step divides out. Numbers are those
    of f32.
    """

    learning_rate: float
    momentum: float
    weight_decay: float
    scale: float  # loss scale times the samples of a batch

    @property
    def step_constant(self) -> np.float32:
        """Factor of the new momentum in a step."""
        return np.float32(self.learning_rate) / np.float32(self.scale)

    @property
    def decay_constant(self) -> np.float32:
        """Factor of the weight in its gradient, in the scaled domain."""
        return np.float32(self.weight_decay) * np.float32(self.scale)

    @property
    def momentum_constant(self) -> np.float16:
        """Factor of the last momentum in the new one."""
        return np.float16(self.momentum)


@dataclass(frozen=True, slots=True, kw_only=True)
class SgdResult:
    """Outputs of one SGD call; when `finite` is False the rest has no meaning.

    Shapes: 1-D, as the weights.
    """

    weight: F16
    momentum: F16 | None
    changed: int  # weights with a new value
    lost: int  # weights of the same bits although the step is not 0 before it is rounded to FP16
    finite: bool  # every gradient, momentum and new weight
