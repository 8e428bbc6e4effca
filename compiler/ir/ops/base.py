"""What every op of the IR offers: type inference, checks, and the parameters it reads."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, fields

import numpy as np
import numpy.typing as npt

from compiler.ir.types import TensorType
from compiler.ir.values import Number, Param
from hwmodel.errors import CompileError, Loc

Array = npt.NDArray[np.float32]
Parameters = Mapping[str, Array]


@dataclass(frozen=True, slots=True)
class Site:
    """Where an op stands: its node's name, origin, and the arrays beside the graph."""

    name: str
    loc: Loc
    parameters: Parameters

    def fail(self, message: str, hint: str = "") -> CompileError:
        """The error that names this node."""
        return CompileError(f"{self.name}: {message}", self.loc, hint=hint)

    def array(self, param: Param, ndim: int) -> Array:
        """The referenced array.

        Raises: CompileError if it is missing or has another number of axes.
        """
        if param.name not in self.parameters:
            raise self.fail(f"parameter {param} is not in the graph")
        array = self.parameters[param.name]
        if array.ndim != ndim:
            raise self.fail(f"parameter {param} has {array.ndim} axes, {ndim} are needed")
        if not array.size:
            raise self.fail(f"parameter {param} {array.shape} is empty")
        return array

    def channels(self, value: Number, channels: int, what: str) -> Array:
        """A scalar or per-channel number as one value per channel.

        Raises: CompileError if the array's length is not the channel count.
        """
        return np.full(channels, self.values(value, channels, what), np.float32)

    def values(self, value: Number, channels: int, what: str) -> Array:
        """The one value of a scalar, or a per-channel number's values; what a check needs to look at.

        Raises: CompileError if the array's length is not the channel count.
        """
        if not isinstance(value, Param):
            with np.errstate(over="ignore"):  # infinite in f32 then, which the checks refuse
                return np.array([value], np.float32)
        array = self.array(value, 1)
        if len(array) != channels:
            raise self.fail(f"{what} {value} has {len(array)} values for {channels} channels")
        return array


class Op(ABC):
    """An operation of the network, one frozen dataclass under its equation."""

    __slots__ = ()

    @property
    def arity(self) -> int:
        """How many values the op takes."""
        return 1

    @abstractmethod
    def infer(self, inputs: tuple[TensorType, ...], site: Site) -> TensorType:
        """The type of the result.

        Raises: CompileError when a field or an input is not what the op allows.
        """


def parameter_names(op: Op) -> tuple[str, ...]:
    """The names of the arrays that an op refers to, in field order."""
    values = (getattr(op, field.name) for field in fields(op))  # type: ignore[arg-type]  # every op is a dataclass
    return tuple(value.name for value in values if isinstance(value, Param))


def image(value: TensorType, site: Site) -> TensorType:
    """The value, if it has channels, rows and columns."""
    if value.axes not in ("NCHW", "TNCHW"):
        raise site.fail(f"takes feature maps with axes C, H, W, got {value}")
    return value


def window_extent(size: int, kernel: int, stride: int, padding: int, ceil_mode: bool = False) -> int:
    """Output extent of a sliding window; a ceil window must start inside the data or its left padding."""
    span = size + 2 * padding - kernel
    extent = (span + (stride - 1 if ceil_mode else 0)) // stride + 1
    if ceil_mode and (extent - 1) * stride >= size + padding:
        extent -= 1
    return extent
