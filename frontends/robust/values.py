"""What bounds in training are made of: intervals that autograd goes through, and a module's numbers."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

from compiler.ir import Graph, Number, Param
from frontends.to_torch import GraphModule


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """Few elements of a value differ from the clean one, taking their other bound then.

    most: how many, of all steps together; of a fraction, the last one counts that much only.
    Shapes: clean as the value.
    """

    clean: Tensor
    most: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Interval:
    """lower <= value <= upper, in the module's own arithmetic, without a margin for its rounding.

    Shapes: as the value, (T, N, C, ...) or (N, C, ...).
    """

    lower: Tensor
    upper: Tensor
    budget: Budget | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Bounds:
    """Bounds of each node's value and of each population's potentials when they are compared with the threshold."""

    nodes: dict[str, Interval] = field(default_factory=dict)
    membranes: dict[str, Interval] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Run:
    """The network whose values are bounded: the graph's nodes, the module's present numbers."""

    graph: Graph
    module: GraphModule
    bounds: Bounds = field(default_factory=Bounds)

    def array(self, param: Param) -> Tensor:
        """A parameter or a buffer."""
        return self.module.array(param)

    def number(self, value: Number, axes: str) -> float | Tensor:
        """A number that broadcasts along the channels of a value with such axes."""
        if not isinstance(value, Param):
            return float(value)
        return self.array(value).reshape(-1, *(1,) * (len(axes) - axes.index("C") - 1))
