"""The network ops, by family."""

from compiler.ir.ops.base import Array, Op, Parameters, Site, parameter_names, window_extent
from compiler.ir.ops.linear import Add, BatchNorm, Conv2d, Flatten, Linear, Scale
from compiler.ir.ops.neuron import Li, Lif
from compiler.ir.ops.pool import AvgPool2d, MaxPool2d
from compiler.ir.ops.sequence import Encode, Input, Readout

OPS: tuple[type, ...] = (
    Input,
    Encode,
    Conv2d,
    Linear,
    BatchNorm,
    AvgPool2d,
    MaxPool2d,
    Flatten,
    Add,
    Scale,
    Lif,
    Li,
    Readout,
)

__all__ = [
    "OPS",
    "Add",
    "Array",
    "AvgPool2d",
    "BatchNorm",
    "Conv2d",
    "Encode",
    "Flatten",
    "Input",
    "Li",
    "Lif",
    "Linear",
    "MaxPool2d",
    "Op",
    "Parameters",
    "Readout",
    "Scale",
    "Site",
    "parameter_names",
    "window_extent",
]
