"""The general storage policy: every value that the backward pass reads is kept as it is."""

from __future__ import annotations

from dataclasses import dataclass

from compiler.differentiate.steps import Storage
from compiler.differentiate.storage import with_storage
from compiler.differentiate.training_graph import TrainingGraph


@dataclass(frozen=True, slots=True)
class KeepAll:
    """Keep membrane potentials and spikes dense, a number per element, as a plain torch implementation does.

    Needs: a training graph. Ensures: the same gradients bit for bit.
    """

    def __call__(self, training: TrainingGraph) -> TrainingGraph:
        return with_storage(training, Storage.DENSE, type(self).__name__)
