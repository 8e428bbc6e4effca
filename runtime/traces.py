"""What a run keeps of every neuron: spikes and membrane potentials, placed in whole feature maps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from hwmodel.program import Program
from runtime.engines import F16, U8

NOT_COMPUTED = 255  # a spike that no output needs, as in a row that pooling drops


@dataclass(slots=True)
class Traces:
    """Spikes and membrane potentials by IR node.

    Shapes: (T, N, C, H, W), linear layers with H = W = 1; `NOT_COMPUTED` and NaN where the machine had no
    need of a neuron.
    """

    spikes: dict[str, U8] = field(default_factory=dict)
    membranes: dict[str, F16] = field(default_factory=dict)

    @classmethod
    def for_program(cls, program: Program) -> Traces:
        """Empty traces of every neuron node."""
        traces = cls()
        for layer in program.layers:
            for neuron in layer.neurons:
                if not neuron.node:
                    continue
                shape = (program.timesteps, program.batch, *neuron.shape)
                traces.membranes[neuron.node] = np.full(shape, np.nan, np.float16)
                if neuron.fires:
                    traces.spikes[neuron.node] = np.full(shape, NOT_COMPUTED, np.uint8)
        return traces

    def of_samples(self, samples: int) -> Traces:
        """The traces of the first samples."""
        return Traces(
            {name: array[:, :samples] for name, array in self.spikes.items()},
            {name: array[:, :samples] for name, array in self.membranes.items()},
        )

    @staticmethod
    def joined(parts: Sequence[Traces]) -> Traces:
        """The traces of sub-batches, side by side."""
        return Traces(
            {name: np.concatenate([part.spikes[name] for part in parts], 1) for name in parts[0].spikes},
            {name: np.concatenate([part.membranes[name] for part in parts], 1) for name in parts[0].membranes},
        )


def same_bits(left: Traces, right: Traces) -> bool:
    """Whether two runs agree in every spike and in every bit of every membrane potential."""
    return (
        left.spikes.keys() == right.spikes.keys()
        and all(np.array_equal(left.spikes[name], right.spikes[name]) for name in left.spikes)
        and all(
            np.array_equal(left.membranes[name].view(np.uint16), right.membranes[name].view(np.uint16))
            for name in left.membranes
        )
    )


def agreement(traces: Traces, reference: Mapping[str, U8]) -> tuple[int, int]:
    """Equal spikes and compared spikes against a reference of the same shapes."""
    equal = compared = 0
    for name, spikes in traces.spikes.items():
        valid = spikes != NOT_COMPUTED
        equal += int(np.count_nonzero((spikes == reference[name]) & valid))
        compared += int(np.count_nonzero(valid))
    return equal, compared
