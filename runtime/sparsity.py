"""Zeros of the backward pass, counted from the machine's own masks, in the form of table 3.2."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from hwmodel.program import Program
from runtime.memory import Memory


@dataclass(frozen=True, slots=True, kw_only=True)
class Sparsity:
    """One convolution whose input gradient the Backward Engine computes.

    Source: table 3.2.
    """

    layer: str
    input_sparsity: float  # zeros among the membrane potential gradients that arrive, equation 3.2
    output_sparsity: float  # spike gradients that nobody needs, equation 3.1


class MaskCounts:
    """Sums of ones and of elements of each layer's masks."""

    def __init__(self, program: Program) -> None:
        assert program.training is not None
        self._layers = program.training.masks
        self._index = {name: program.index_of(name) for m in self._layers for name in (m.inputs, m.outputs) if name}
        self._counts = np.zeros((len(self._layers), 2, 2), np.int64)  # layer, (inputs, outputs), (ones, elements)

    def count(self, memory: Memory, samples: int) -> None:
        """Add the masks of the sub-batch that just went backward; absent samples do not count."""
        for row, layer in enumerate(self._layers):
            for column, name in enumerate((layer.inputs, layer.outputs)):
                if name:
                    mask = memory.array(self._index[name])[:, :samples]
                    self._counts[row, column] += (int(np.count_nonzero(mask)), mask.size)

    def table(self) -> tuple[Sparsity, ...]:
        """The rows, from the first layer to the last; an output that is always wanted has sparsity 0."""
        return tuple(
            Sparsity(layer=layer.layer, input_sparsity=_zeros(inputs), output_sparsity=_zeros(outputs))
            for layer, (inputs, outputs) in reversed(list(zip(self._layers, self._counts, strict=True)))
        )

    def state(self) -> dict[str, npt.NDArray[np.generic]]:
        """The counts, for a checkpoint."""
        return {"counts": self._counts.copy()}

    def restore(self, state: Mapping[str, npt.NDArray[np.generic]]) -> None:
        """Counts of a checkpoint."""
        self._counts[...] = state["counts"]


def _zeros(counts: npt.NDArray[np.int64]) -> float:
    ones, elements = int(counts[0]), int(counts[1])
    return 1.0 - ones / elements if elements else 0.0
