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
    """How a module takes and returns the state that its caller carries."""

    def unpack(self, arguments: tuple[object, ...], named: dict[str, object]) -> tuple[Tensor, Tensor | None]:
        """The input, and the state handed in; None where there is none.

        Raises: CompileError for arguments that the op has no place for.
        """

    def pack(self, spikes: Tensor, membrane: Tensor) -> object:
        """What the module returns."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Neuron:
    """A neuron module as an op, and the module's arrays that the op refers to.

    step: for modules that do one step a call, and for those that return their state beside the sequence.
    keeps_state: the module itself goes on from its last call where no state is handed in; else from its initial one.
    channel_axes: how many axes of features (1: C; 3: C, H, W) the module's arrays are made for; None without arrays.
    samples: the one batch size that the module takes; None where it takes any.
    read, assumed: what the module said, and what was taken for granted, as short texts for people.
    """

    op: Lif | Li
    expects: Expects
    arrays: tuple[tuple[str, Tensor], ...] = ()
    keeps_state: bool = False
    step: StepCall | None = None
    channel_axes: int | None = None
    samples: int | None = None
    read: tuple[str, ...] = ()
    assumed: tuple[str, ...] = ()


def unsupported(path: str, module: nn.Module, hint: str) -> CompileError:
    """The error for a neuron that no op expresses."""
    cls = type(module)
    return CompileError(f"{path}: neuron {cls.__module__}.{cls.__qualname__} is not supported", Loc(path), hint=hint)


def refused(path: str, module: nn.Module, reason: str, hint: str = "") -> CompileError:
    """The error for a neuron whose setting no op expresses."""
    return CompileError(f"{path}: {type(module).__name__}: {reason}", Loc(path), hint=hint)


def origin(thing: object) -> str:
    """Where a class or function is defined: its module and qualified name."""
    return f"{getattr(thing, '__module__', '')}.{getattr(thing, '__qualname__', type(thing).__qualname__)}"


def framework_class(module: nn.Module, package: str) -> type:
    """The nearest class of the module that its framework defines."""
    return next(cls for cls in type(module).__mro__ if cls.__module__.partition(".")[0] == package)


def check_unchanged(path: str, module: nn.Module, base: type) -> None:
    """A subclass or an instance that redefines part of the framework's class may compute something else.

    Raises: CompileError naming what is redefined.
    """
    family = type(module).__mro__
    added = {name for cls in family[: family.index(base)] for name in vars(cls)}
    methods = {name for name in vars(module) if callable(getattr(base, name, None))}
    changed = sorted(name for name in (added & set(dir(base))) | methods if _computes(name))
    if changed:
        reason = f"it redefines {', '.join(changed)} of {base.__name__}"
        raise refused(path, module, reason, f"use {base.__name__} itself, or spikec.nn.LIF")


def _computes(name: str) -> bool:
    return name in ("__call__", "__getattr__") or not (name.startswith("__") or name == "extra_repr")


def bind(path: str, names: tuple[str, ...], arguments: tuple[object, ...], named: dict[str, object]) -> list[object]:
    """The arguments of a call in the order of the names; None for those not given.

    Raises: CompileError for more, or other ones.
    """
    given = dict(zip(names, arguments, strict=False)) | named
    if len(arguments) > len(names) or not given.keys() <= set(names):
        count = len(arguments) + len(named)
        raise CompileError(f"{path}: is called with {count} arguments, takes {', '.join(names)}", Loc(path))
    if not isinstance(given.get(names[0]), Tensor):
        raise CompileError(f"{path}: is called without a tensor {names[0]}", Loc(path))
    return [given.get(name) for name in names]
