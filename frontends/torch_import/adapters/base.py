"""What an adapter reads from a framework's neuron module."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Protocol

from torch import Tensor, nn

from compiler.ir import CompileError, Loc
from compiler.ir.ops import Li, Lif


class Expects(Enum):
    """Where a neuron module takes time from."""

    SEPARATE = "its own first axis, (T, N, ...)"
    MERGED = "the merged first axis, (T * N, ...)"
    STEP = "its calls, one for each step, (N, ...)"
    SAMPLES_FIRST = "the axis after the samples, (N, T, ...)"
    SAMPLES_MERGED = "the merged first axis, samples outermost, (N * T, ...)"


class StepCall(Protocol):
    """How a module that does one step a call takes and returns the state that its caller carries."""

    def unpack(self, arguments: tuple[object, ...], named: dict[str, object]) -> tuple[Tensor, Tensor | None]:
        """The input, and the state handed in; None where there is none."""

    def pack(self, spikes: Tensor, membrane: Tensor) -> object:
        """What the module returns."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Neuron:
    """A neuron module as an op, and the module's arrays that the op refers to.

    step: for modules that do one step a call.
    keeps_state: the module itself goes on from its last call where no state is handed in; else from its initial one.
    read, assumed: what the module said, and what was taken for granted, as short texts for people.
    """

    op: Lif | Li
    expects: Expects
    arrays: tuple[tuple[str, Tensor], ...] = ()
    keeps_state: bool = False
    step: StepCall | None = None
    read: tuple[str, ...] = ()
    assumed: tuple[str, ...] = ()


def unsupported(path: str, module: nn.Module, hint: str) -> CompileError:
    """The error for a neuron that no op expresses."""
    cls = type(module)
    return CompileError(f"{path}: neuron {cls.__module__}.{cls.__qualname__} is not supported", Loc(path), hint=hint)
