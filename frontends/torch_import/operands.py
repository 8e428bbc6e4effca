"""What an argument of a traced call can hold."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from frontends.torch_import.axes import Value


@dataclass(frozen=True, slots=True, kw_only=True)
class Constant:
    """A parameter, buffer or literal of the network."""

    name: str
    tensor: Tensor

    def is_everywhere(self, value: float) -> bool:
        """Whether each element is that number."""
        return bool((self.tensor == value).all())


@dataclass(frozen=True, slots=True, kw_only=True)
class State:
    """The membrane potential of a spiking population after one of its steps.

    population: its place in `Network.populations`; at: the step, None where the trace is one step of many.
    """

    population: int
    at: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class StepSum:
    """The sum of some steps of one sequence."""

    sequence: Value
    steps: frozenset[int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """The sign or the magnitude of a value, which a pooling by sums takes apart and multiplies again."""

    kind: str
    value: Value


@dataclass(frozen=True, slots=True)
class Several:
    """What a call with several results returns."""

    items: tuple[Value | State, ...]


Operand = Value | Constant | State | StepSum | Part | Several
