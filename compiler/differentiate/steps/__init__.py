"""The steps of a training graph, by family: each its equation and its kernel in torch, none of them autograd."""

from compiler.differentiate.steps.base import Arrays, Slope, Step
from compiler.differentiate.steps.forward import Forward
from compiler.differentiate.steps.linear import (
    Accumulate,
    AddBackward,
    ConvBackward,
    ConvUpdate,
    FlattenBackward,
    LinearBackward,
    LinearUpdate,
    ScaleBackward,
)
from compiler.differentiate.steps.loss import LossGradient, LossValue
from compiler.differentiate.steps.neuron import LiBackward, LifBackward, LifForward, LiForward, Saved, Storage
from compiler.differentiate.steps.norm import (
    BatchNormBackward,
    BatchNormForward,
    BatchNormUpdate,
    RunningNormBackward,
    RunningNormUpdate,
)
from compiler.differentiate.steps.pool import AvgPoolBackward, MaxPoolBackward, MaxPoolForward
from compiler.differentiate.steps.sequence import (
    LastBackward,
    MaxReadoutBackward,
    MaxReadoutForward,
    RateBackward,
    RepeatBackward,
)

__all__ = [
    "Accumulate",
    "AddBackward",
    "Arrays",
    "AvgPoolBackward",
    "BatchNormBackward",
    "BatchNormForward",
    "BatchNormUpdate",
    "ConvBackward",
    "ConvUpdate",
    "FlattenBackward",
    "Forward",
    "LastBackward",
    "LiBackward",
    "LiForward",
    "LifBackward",
    "LifForward",
    "LinearBackward",
    "LinearUpdate",
    "LossGradient",
    "LossValue",
    "MaxPoolBackward",
    "MaxPoolForward",
    "MaxReadoutBackward",
    "MaxReadoutForward",
    "RateBackward",
    "RepeatBackward",
    "RunningNormBackward",
    "RunningNormUpdate",
    "Saved",
    "ScaleBackward",
    "Slope",
    "Step",
    "Storage",
]
