"""BPTT made explicit: the training graph of a network, what it keeps, and its reference execution."""

from compiler.differentiate.build import differentiate
from compiler.differentiate.count import Work, kept_bytes, work
from compiler.differentiate.execute import TrainingRun, run_training
from compiler.differentiate.keep_all import KeepAll
from compiler.differentiate.keep_compressed import KeepCompressed
from compiler.differentiate.training_graph import (
    BatchStatistics,
    Format,
    Stage,
    TrainingGraph,
    TrainingNode,
    Value,
    gradient_of,
)
from compiler.losses import Loss

__all__ = [
    "BatchStatistics",
    "Format",
    "KeepAll",
    "KeepCompressed",
    "Loss",
    "Stage",
    "TrainingGraph",
    "TrainingNode",
    "TrainingRun",
    "Value",
    "Work",
    "differentiate",
    "gradient_of",
    "kept_bytes",
    "run_training",
    "work",
]
