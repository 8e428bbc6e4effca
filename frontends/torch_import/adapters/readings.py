"""The numbers of a foreign neuron module: scalars or one per channel, checked, for an op to refer to."""

from __future__ import annotations

from dataclasses import dataclass, field
from numbers import Real

import torch
from torch import Tensor

from compiler.ir import CompileError, Loc, Number, Param, Surrogate

_MOST_FEATURE_AXES = 3  # C, H, W
_CHANNELS = "one scalar, or one value per channel: (C,) for features, (C, 1, 1) for feature maps"


@dataclass(slots=True)
class Readings:
    """Collects what one module says about itself.

    path: the module's, for messages and for the names of its arrays.
    """

    path: str
    arrays: dict[str, Tensor] = field(default_factory=dict)
    channel_axes: int | None = None
    read: list[str] = field(default_factory=list)
    assumed: list[str] = field(default_factory=list)

    def value(self, name: str, raw: object, *, least: float | None = None) -> Tensor:
        """A number of the module, as a tensor without axes or with one, of channels.

        Numbers of Python keep their 64 bits; tensors have the 32 that the module computes with.

        Raises: CompileError for what is no number, not finite, below `least`, or one value per neuron.
        """
        if isinstance(raw, Tensor):
            value = self._channels(name, raw.detach())
        elif isinstance(raw, Real) and not isinstance(raw, bool):
            value = torch.tensor(float(raw), dtype=torch.float64)
        else:
            raise self.fail(f"{name} is {raw!r}, not a number")
        if not bool(torch.isfinite(value).all()):
            raise self.fail(f"{name} holds a NaN or infinite value")
        if least is not None and bool((value < least).any()):
            raise self.fail(f"{name} is {shown(value)}, must be at least {least:g}")
        return value

    def say(self, name: str, value: Tensor, note: str = "") -> None:
        """Note a number among what was read."""
        self.read.append(f"{name} {shown(value)}{note}")

    def say_surrogate(self, name: str, surrogate: Surrogate) -> None:
        """Note a surrogate under the module's own name for it."""
        if surrogate.scale == 0.0:
            self.read.append(f"surrogate {name}: no gradient passes a spike")
            return
        kind = "" if name == surrogate.kind else f": {surrogate.kind}"
        offset = f", offset {surrogate.offset:g}" if surrogate.offset else ""
        self.read.append(f"surrogate {name}{kind}, width {surrogate.width:g}, scale {surrogate.scale:g}{offset}")

    def number(self, what: str, value: Tensor) -> Number:
        """The value for a field of an op; one per channel stands beside the graph as PATH.FIELD."""
        if not value.ndim:
            return float(value)
        if not bool(value.any()):
            return 0.0
        name = f"{self.path}.{what}"
        self.arrays[name] = value.float()
        return Param(name)

    def fail(self, message: str, hint: str = "") -> CompileError:
        """The error that names the module."""
        return CompileError(f"{self.path}: {message}", Loc(self.path), hint=hint)

    def _channels(self, name: str, raw: Tensor) -> Tensor:
        if raw.is_complex() or raw.dtype == torch.bool:
            raise self.fail(f"{name} is {raw.dtype}, not a number")
        if raw.ndim and raw.dtype == torch.float64:
            raise self.fail(f"{name} is torch.float64, must be torch.float32", "call module.float()")
        if raw.numel() == 1 and raw.ndim <= 2:  # broadcasts over (N, C) and all longer shapes
            return raw.reshape(()).float()
        wide = [axis for axis, size in enumerate(raw.shape) if size != 1]
        first = wide[0] if wide else max(0, raw.ndim - _MOST_FEATURE_AXES)
        axes = raw.ndim - first
        if len(wide) > 1 or not raw.numel() or first > 1 or axes > _MOST_FEATURE_AXES:
            raise self.fail(f"{name} has the shape {tuple(raw.shape)}", _CHANNELS)
        if self.channel_axes not in (None, axes):
            raise self.fail(
                f"{name} has the shape {tuple(raw.shape)}, another layout than its other numbers", _CHANNELS
            )
        self.channel_axes = axes
        return raw.flatten().float()


def shown(value: Tensor) -> str:
    """A number for people."""
    value = value.detach()
    if not value.ndim:
        return f"{float(value):.6g}"
    return f"{float(value.min()):.6g} to {float(value.max()):.6g} ({len(value)} channels)"
