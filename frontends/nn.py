"""Spiking neurons as torch modules, trainable by autograd; `from_torch` takes each as one op."""

from __future__ import annotations

import math
from enum import Enum
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx

from compiler.ir import Compare, Reset, Surrogate, SurrogateKind
from compiler.surrogate import surrogate_gradient
from hwmodel.errors import CompileError, Loc

Value = float | Tensor  # one scalar, or one per channel
Choice = TypeVar("Choice", bound=Enum)


class _Neuron(nn.Module):
    """What LIF and LI share: their numbers, the layout of their input, one step of integration."""

    decay: Value
    input_scale: Value
    leak_bias: Value
    initial: Value

    def __init__(self, timesteps: int | None, **numbers: Value) -> None:
        super().__init__()
        self.timesteps = timesteps
        if timesteps is not None and timesteps < 1:
            raise self._fault(f"timesteps is {timesteps}, must be at least 1")
        for name, value in numbers.items():
            self._set_number(name, value)

    def extra_repr(self) -> str:
        return f"decay={_shown(self.decay)}, timesteps={self.timesteps}"

    def _fault(self, message: str, hint: str = "") -> CompileError:
        return CompileError(message, Loc(type(self).__name__), hint=hint)

    def _set_number(self, name: str, value: Value) -> None:
        values = value if isinstance(value, Tensor) else torch.tensor(value, dtype=torch.float64)
        if isinstance(value, Tensor) and (value.ndim != 1 or not value.is_floating_point()):
            raise self._fault(f"{name} is a {value.ndim}-D tensor of {value.dtype}, must be 1-D and floating")
        if name == "decay" and not bool(((values >= 0) & (values <= 1)).all()):
            outside = values[~((values >= 0) & (values <= 1))].flatten()[0].item()
            raise self._fault(
                f"decay is {outside:g}, not inside [0, 1]",
                "decay = exp(-dt / tau) or 1 - dt / tau; was tau given in the unit of dt?",
            )
        if not bool(torch.isfinite(values).all()):
            raise self._fault(f"{name} is not finite")
        if isinstance(value, Tensor):
            self.register_buffer(name, value.detach().clone().to(torch.get_default_dtype()))
        else:
            setattr(self, name, float(value))

    def _number(self, name: str, x: Tensor) -> Value:
        """A number that broadcasts over values of shape (N, C, ...)."""
        value: Value = getattr(self, name)
        if isinstance(value, float):
            return value
        if x.ndim < 3 or len(value) != x.shape[2]:
            raise self._fault(f"{name} has {len(value)} values, the input (T, N, C, ...) is {tuple(x.shape)}")
        return value.reshape(-1, *(1,) * (x.ndim - 3))

    def _sequence(self, x: Tensor) -> Tensor:
        """The input with time and batch separated."""
        if self.timesteps is None:
            return x
        if x.shape[0] % self.timesteps:
            raise self._fault(
                f"input has {x.shape[0]} rows, not a multiple of {self.timesteps} time steps",
                "with timesteps set, the input is (T * N, ...), time-major",
            )
        return x.reshape(self.timesteps, -1, *x.shape[1:])

    def _drive(self, sequence: Tensor) -> Tensor:
        """input_scale * x over all steps; a factor of exactly 1 is left out."""
        scale = self._number("input_scale", sequence)
        return sequence if isinstance(scale, float) and scale == 1.0 else scale * sequence

    def _result(self, steps: list[Tensor]) -> Tensor:
        stacked = torch.stack(steps)
        return stacked if self.timesteps is None else stacked.flatten(0, 1)


class LIF(_Neuron):
    """Leaky integrate-and-fire population over a sequence, with the meaning of `compiler.ir.ops.Lif`.

    Per-channel numbers are buffers, and appear in the state_dict; none is trained.

    Shapes: (T, N, C, ...) -> the same; with `timesteps` = T, (T * N, C, ...) time-major -> the same.
    Units: threshold, reset_value, initial and leak_bias as the membrane potential; decay has none.
    Raises: CompileError for an argument out of range, or an input that does not fit.
    Source: equations 2.1, 2.2 and 2.6 with the default reset, comparison and surrogate.
    """

    threshold: Value
    reset_value: Value

    def __init__(
        self,
        *,
        decay: Value = 0.25,
        threshold: Value = 0.5,
        input_scale: Value = 1.0,
        leak_bias: Value = 0.0,
        reset: Reset = Reset.HARD,
        reset_value: Value = 0.0,
        reset_delay: bool = False,
        compare: Compare = Compare.GE,
        detach_reset: bool = False,
        initial: Value = 0.0,
        surrogate: Surrogate = Surrogate(),  # noqa: B008  # immutable
        timesteps: int | None = None,
    ) -> None:
        super().__init__(
            timesteps,
            decay=decay,
            threshold=threshold,
            input_scale=input_scale,
            leak_bias=leak_bias,
            reset_value=reset_value,
            initial=initial,
        )
        self.reset = self._choice(Reset, reset)
        self.compare = self._choice(Compare, compare)
        self.reset_delay = reset_delay
        self.detach_reset = detach_reset
        self.surrogate = surrogate
        self._choice(SurrogateKind, surrogate.kind)
        if not (surrogate.width > 0.0 and math.isfinite(surrogate.width)):
            raise self._fault(f"surrogate width is {surrogate.width}, must be positive and finite")

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, threshold={_shown(self.threshold)}, reset={self.reset}"

    def forward(self, x: Tensor) -> Tensor:
        sequence = self._sequence(x)
        decay, threshold, leak_bias, reset_value = (
            self._number(name, sequence) for name in ("decay", "threshold", "leak_bias", "reset_value")
        )
        v = _filled(self._number("initial", sequence), sequence[0])
        delayed = self.reset == Reset.SOFT and self.reset_delay
        reset_by = torch.zeros_like(v)
        spikes = []
        for drive in self._drive(sequence):
            m = _leaked(decay * v + drive, leak_bias)
            if delayed:
                m = m - threshold * reset_by
            spike = fire(m, threshold, self.compare, self.surrogate)
            spikes.append(spike)
            reset_by = spike.detach() if self.detach_reset else spike
            if self.reset == Reset.HARD:
                v = _HardReset.apply(m, reset_by, reset_value)  # type: ignore[no-untyped-call]
            else:
                v = m if delayed or self.reset == Reset.NONE else m - threshold * reset_by
        return self._result(spikes)

    def _choice(self, kind: type[Choice], value: Choice) -> Choice:
        try:
            return kind(value)
        except ValueError:
            names = ", ".join(str(member) for member in kind)
            raise self._fault(f"{value!r} is not one of {names}") from None


class LI(_Neuron):
    """Leaky integrator without spikes over a sequence, with the meaning of `compiler.ir.ops.Li`.

    Shapes: (T, N, C, ...) -> the same; with `timesteps` = T, (T * N, C, ...) time-major -> the same.
    Raises: CompileError for an argument out of range, or an input that does not fit.
    """

    def __init__(
        self,
        *,
        decay: Value = 0.25,
        input_scale: Value = 1.0,
        leak_bias: Value = 0.0,
        initial: Value = 0.0,
        timesteps: int | None = None,
    ) -> None:
        super().__init__(timesteps, decay=decay, input_scale=input_scale, leak_bias=leak_bias, initial=initial)

    def forward(self, x: Tensor) -> Tensor:
        sequence = self._sequence(x)
        decay, leak_bias = (self._number(name, sequence) for name in ("decay", "leak_bias"))
        m = _filled(self._number("initial", sequence), sequence[0])
        membranes = []
        for drive in self._drive(sequence):
            m = _leaked(decay * m + drive, leak_bias)
            membranes.append(m)
        return self._result(membranes)


def set_timesteps(module: nn.Module, timesteps: int | None) -> None:
    """Give every LIF and LI inside the module another number of time steps (None: separate time axis)."""
    for child in module.modules():
        if isinstance(child, _Neuron):
            if timesteps is not None and timesteps < 1:
                raise child._fault(f"timesteps is {timesteps}, must be at least 1")
            child.timesteps = timesteps


def fire(m: Tensor, threshold: Value, compare: Compare, surrogate: Surrogate) -> Tensor:
    """Spikes of membrane potentials, with the surrogate's derivative backward. Shapes: m any -> the same."""
    spike: Tensor = _Fire.apply(m, threshold, compare, surrogate)  # type: ignore[no-untyped-call]
    return spike


class _Fire(torch.autograd.Function):
    """Spikes forward, the surrogate's derivative backward."""

    @staticmethod
    def forward(ctx: FunctionCtx, m: Tensor, threshold: Value, compare: Compare, surrogate: Surrogate) -> Tensor:
        ctx.save_for_backward(m)
        ctx.threshold, ctx.surrogate = threshold, surrogate  # type: ignore[attr-defined]
        return (m >= threshold if compare == Compare.GE else m > threshold).to(m.dtype)

    @staticmethod
    def backward(ctx: FunctionCtx, grad: Tensor) -> tuple[Tensor, None, None, None]:
        (m,) = ctx.saved_tensors  # type: ignore[attr-defined]
        surrogate: Surrogate = ctx.surrogate  # type: ignore[attr-defined]
        u = m - ctx.threshold - surrogate.offset  # type: ignore[attr-defined]
        return grad * surrogate_gradient(surrogate, u), None, None, None


class _HardReset(torch.autograd.Function):
    """v = (1 - s) * m + s * reset_value, computed by selection so that m passes unrounded."""

    @staticmethod
    def forward(ctx: FunctionCtx, m: Tensor, spike: Tensor, reset_value: Value) -> Tensor:
        ctx.save_for_backward(m, spike)
        ctx.reset_value = reset_value  # type: ignore[attr-defined]
        return torch.where(spike > 0, reset_value, m)

    @staticmethod
    def backward(ctx: FunctionCtx, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        m, spike = ctx.saved_tensors  # type: ignore[attr-defined]
        reset_value: Value = ctx.reset_value  # type: ignore[attr-defined]
        return grad * (1 - spike), grad * (reset_value - m), None


def _leaked(m: Tensor, leak_bias: Value) -> Tensor:
    return m if isinstance(leak_bias, float) and leak_bias == 0.0 else m + leak_bias


def _filled(value: Value, like: Tensor) -> Tensor:
    """The value on every neuron."""
    return (value if isinstance(value, Tensor) else like.new_tensor(value)).expand(like.shape)


def _shown(value: Value) -> str:
    return f"{value:g}" if isinstance(value, float) else f"<{len(value)} channels>"
