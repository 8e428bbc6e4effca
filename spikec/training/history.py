"""Where a run of training stands, and what its epochs came to."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field

import numpy as np
import numpy.typing as npt

from frontends.descent import BatchResult

RandomState = dict[str, object]  # of numpy's bit generator


def fresh_order(seed: int) -> RandomState:
    """State of the generator that shuffles the samples of each epoch."""
    return dict(np.random.default_rng(seed).bit_generator.state)


@dataclass(slots=True)
class History:
    """Counts and sums of a run; with the backend's state, all that continuing it takes."""

    random: RandomState  # at the beginning of the current epoch
    epoch: int = 0  # whole epochs done
    batches: int = 0  # of the current epoch
    step: int = 0  # batches of all epochs
    loss: float = 0.0  # of the current epoch, summed over its samples
    correct: int = 0  # of the current epoch
    losses: list[float] = field(default_factory=list)  # mean over the samples of each epoch
    accuracies: list[float] = field(default_factory=list)  # fraction of each epoch, before each update

    def order(self, samples: int) -> npt.NDArray[np.int64]:
        """The order of the samples in the current epoch."""
        return self._generator().permutation(samples)

    def count(self, result: BatchResult) -> None:
        """One more batch."""
        self.batches += 1
        self.step += 1
        self.loss += result.loss * result.samples
        self.correct += result.correct

    def end_epoch(self, samples: int) -> None:
        """The epoch's means; the next one begins."""
        generator = self._generator()
        generator.permutation(samples)
        self.random = dict(generator.bit_generator.state)
        self.losses.append(self.loss / samples)
        self.accuracies.append(self.correct / samples)
        self.epoch, self.batches, self.loss, self.correct = self.epoch + 1, 0, 0.0, 0

    def as_fields(self) -> dict[str, object]:
        """For a file."""
        return asdict(self)

    def _generator(self) -> np.random.Generator:
        generator = np.random.default_rng(0)
        generator.bit_generator.state = self.random
        return generator


def history_of(fields: Mapping[str, object]) -> History:
    """From a file.

    Raises: TypeError or ValueError for fields of another kind.
    """
    history = History(**fields)  # type: ignore[arg-type]
    history.order(1)
    return history
