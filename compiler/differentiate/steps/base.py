"""What every step of a training graph offers, and the arrays that its kernel reads."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from compiler.ir import Number, Param, TensorType
from compiler.ir.ops import Parameters

# ds/dm of a population by u = m - threshold - offset. Shapes: (T, N, C, ...) -> the same.
Slope = Callable[[Tensor], Tensor]


@dataclass(frozen=True, slots=True, kw_only=True)
class Arrays:
    """The parameters of one run, in its number format; `given` ones stand for the graph's own."""

    parameters: Parameters
    given: Mapping[str, Tensor]  # by parameter name
    dtype: torch.dtype
    first_sample: int  # index of the batch's first sample, for Bernoulli draws
    slope: Slope | None = None  # stands for the surrogate of the population whose step runs
    _converted: dict[Param, Tensor] = field(default_factory=dict)

    def array(self, param: Param) -> Tensor:
        """The referenced array."""
        if param.name in self.given:
            return self.given[param.name]
        if param not in self._converted:
            self._converted[param] = torch.from_numpy(np.array(self.parameters[param.name])).to(self.dtype)
        return self._converted[param]

    def number(self, value: Number, ndim: int) -> Tensor:
        """A number shaped to broadcast along axis 1 (channels) of a value (N, C, ...) of `ndim` axes."""
        if not isinstance(value, Param):
            return torch.tensor(value, dtype=self.dtype)
        return self.array(value).reshape(-1, *(1,) * (ndim - 2))


class Step(ABC):
    """One computation of a training graph, a frozen dataclass under its equation."""

    __slots__ = ()

    @property
    def parameters(self) -> tuple[str, ...]:
        """Names of the parameters whose values the step reads."""
        return ()

    @abstractmethod
    def run(self, inputs: Sequence[Tensor], arrays: Arrays) -> tuple[Tensor, ...]:
        """The results, in the node's order."""


def merged(x: Tensor, ndim: int, layer: Callable[[Tensor], Tensor]) -> Tensor:
    """Apply a layer with T and N merged; `ndim` axes are what the layer takes."""
    if x.ndim == ndim:
        return layer(x)
    y = layer(x.flatten(0, 1))
    return y.reshape(*x.shape[:2], *y.shape[1:])


def samples(x: Tensor, ndim: int) -> Tensor:
    """The value with T and N merged, `ndim` axes in all."""
    return x if x.ndim == ndim else x.flatten(0, 1)


def sum_to_channels(x: Tensor, source: TensorType) -> Tensor:
    """Sum over every axis but the channels, rounded once from f64. Shapes: x (..., C, ...) -> (C,)."""
    others = [axis for axis, letter in enumerate(source.axes) if letter != "C"]
    return x.sum(others, dtype=torch.float64).to(x.dtype)


def per_channel(values: Tensor, source: TensorType) -> Tensor:
    """Shaped to broadcast over a value of that type. Shapes: (C,) -> (C, 1, ...)."""
    return values.reshape(-1, *(1,) * (len(source.axes) - source.axes.index("C") - 1))
