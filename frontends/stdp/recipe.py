"""How a layer is trained by spike timing-dependent plasticity, and what numbers are in range."""

from __future__ import annotations

import math
from dataclasses import dataclass

from hwmodel.errors import CompileError, Loc


@dataclass(frozen=True, slots=True, kw_only=True)
class StdpRecipe:
    """One fully connected layer of competing neurons, its plasticity and its homeostasis.

    Units: time constants in steps; weights are in [0, 1]; thresholds in what one spike over a weight of 1 adds.
    """

    neurons: int
    timesteps: int = 25  # of one presentation
    epochs: int = 6
    batch: int = 16  # samples that are presented side by side, before one update
    learning_rate: float = 0.02  # at its highest; half a cosine takes it to 0
    decay: float = 0.9  # of the membrane potential
    tau_plus: float = 5.0  # of what a spike before the neuron's own still counts
    tau_minus: float = 5.0  # of what a spike after it counts
    depression: float = 0.05  # of a pair, to the potentiation of one
    mean_weight: float = 0.1  # to which the weights of each neuron are scaled after each update
    spikes_per_sample: float = 4.0  # of the whole layer, which thresholds settle at
    homeostasis: float = 0.03  # share of the first threshold that one spike adds

    def verify(self) -> None:
        """Refuse numbers out of range.

        Raises: CompileError naming the option or the field.
        """
        for name in ("neurons", "timesteps", "epochs", "batch"):
            if getattr(self, name) < 1:
                raise _fault(name, f"is {getattr(self, name)}, must be at least 1")
        positive = ("tau_plus", "tau_minus", "mean_weight", "spikes_per_sample", "homeostasis")
        for name, option in (("learning_rate", "lr"), *((name, name) for name in positive)):
            if not 0.0 < getattr(self, name) < math.inf:
                raise _fault(option, f"is {getattr(self, name):g}, must be positive and finite")
        if not 0.0 <= self.decay <= 1.0:
            raise _fault("decay", f"is {self.decay:g}, not inside [0, 1]")
        if not 0.0 <= self.depression < math.inf:
            raise _fault("depression", f"is {self.depression:g}, must be at least 0 and finite")

    def rate(self, step: int, steps: int) -> float:
        """The learning rate of an update, counted from 0, of a run of so many."""
        return self.learning_rate * (1 + math.cos(math.pi * step / steps)) / 2


def _fault(option: str, message: str) -> CompileError:
    return CompileError(message, Loc(f"--{option.replace('_', '-')}"))
