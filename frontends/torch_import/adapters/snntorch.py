"""snnTorch's neurons, read from the live modules."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import FunctionType, MappingProxyType
from typing import Protocol, cast

import torch
from torch import Tensor, nn

from compiler.ir import Compare, CompileError, Loc, Reset, Surrogate, SurrogateKind
from compiler.ir.ops import Lif
from frontends.torch_import.adapters.base import (
    Expects,
    Neuron,
    bind,
    check_unchanged,
    framework_class,
    origin,
    refused,
    unsupported,
)
from frontends.torch_import.adapters.readings import Readings

NEURONS = "snntorch._neurons."
HINT = "of snnTorch, Leaky and Lapicque are imported"
REASONS: Mapping[str, str] = MappingProxyType(
    {
        "Synaptic": "two states: a synaptic current decays beside the membrane",
        "Alpha": "three states: an exciting and an inhibiting current beside the membrane",
        "RLeaky": "its own spikes come back through recurrent weights",
        "RSynaptic": "its own spikes come back through recurrent weights",
        "SLSTM": "an LSTM cell, not a leaky integrator",
        "SConv2dLSTM": "an LSTM cell, not a leaky integrator",
        "DeltaLeaky": "it fires on the change of the membrane, not on the membrane",
        "LeakyParallel": "its membrane is an RNN without the reset",
    }
)
_RESETS: Mapping[str, tuple[int, Reset]] = MappingProxyType(
    {"_base_sub": (0, Reset.SOFT), "_base_zero": (1, Reset.HARD), "_base_int": (2, Reset.NONE)}
)


class _SnnTorchNeuron(Protocol):
    """What is read of Leaky and Lapicque (which has no reset_delay, and R, C and time_step)."""

    beta: Tensor
    threshold: Tensor
    graded_spikes_factor: Tensor
    spike_grad: object
    state_function: object
    reset_mechanism_val: Tensor
    reset_delay: bool
    init_hidden: bool
    inhibition: bool
    output: bool
    state_quant: object
    R: Tensor
    C: Tensor
    time_step: Tensor


@dataclass(frozen=True, slots=True)
class LeakyCall:
    """(x, mem) -> (spikes, mem), or x -> spikes where the module keeps its state to itself.

    hidden, output: the module's init_hidden and output.
    """

    path: str
    hidden: bool
    output: bool

    def unpack(self, arguments: tuple[object, ...], named: dict[str, object]) -> tuple[Tensor, Tensor | None]:
        """The input and the membrane; one of another shape means 0, as the module takes it."""
        x, mem = bind(self.path, ("input_", "mem"), arguments, named)
        assert isinstance(x, Tensor)
        if mem is None:
            return x, None
        if self.hidden or not isinstance(mem, Tensor):
            reason = "mem is handed in, though init_hidden=True" if self.hidden else f"mem is {mem!r}, not a tensor"
            raise CompileError(f"{self.path}: {reason}", Loc(self.path))
        return x, mem if mem.shape == x.shape else torch.zeros_like(x)

    def pack(self, spikes: Tensor, membrane: Tensor) -> object:
        """As the module returns them."""
        return spikes if self.hidden and not self.output else (spikes, membrane)


def snntorch(path: str, module: nn.Module, timesteps: int) -> Neuron | None:
    """The module as an op; None where it is no neuron.

    Raises: CompileError for a neuron that no op expresses.
    """
    base = framework_class(module, "snntorch")
    kind = base.__name__
    if not base.__module__.startswith(NEURONS) or kind == "RecurrentOneToOne":
        return None
    if kind not in ("Leaky", "Lapicque"):
        if kind in REASONS:
            raise refused(path, module, REASONS[kind], HINT)
        raise unsupported(path, module, HINT)
    check_unchanged(path, module, base)
    return read_leaky(path, module, kind)


def read_leaky(path: str, module: nn.Module, kind: str) -> Neuron:
    """A neuron with one state, starting from a membrane of 0.

    Source: snnTorch 1.0; mem = clamp(beta, 0, 1) * mem + x, it fires where mem > threshold, and is reset at its
    next step where that step finds mem > threshold; that reset is detached.
    Lapicque: mem = x * R * (1 / (R * C)) * time_step + (1 - time_step / (R * C)) * mem.
    """
    node = cast(_SnnTorchNeuron, module)
    readings = Readings(path)
    _check_settings(readings, module, node)
    reset = _reset(readings, module, node, kind)
    decay, scale = _leaky(readings, node) if kind == "Leaky" else _lapicque(readings, node)
    # a membrane of 0 is above a negative threshold, which resets before the first step
    threshold = readings.value("threshold", node.threshold, least=0.0)
    readings.say("threshold", threshold, _learned(node.threshold))
    op = Lif(
        decay=readings.number("decay", decay),
        threshold=readings.number("threshold", threshold),
        input_scale=readings.number("input_scale", scale),
        reset=reset,
        reset_delay=reset is Reset.SOFT,
        compare=Compare.GT,
        # without delay the reset follows its spike in the same step, and stays in the graph of autograd
        detach_reset=kind == "Lapicque" or bool(node.reset_delay),
        surrogate=_surrogate(readings, node.spike_grad),
    )
    return Neuron(
        op=op,
        expects=Expects.STEP,
        arrays=tuple(readings.arrays.items()),
        keeps_state=True,
        step=LeakyCall(path, bool(node.init_hidden), bool(node.output)),
        channel_axes=readings.channel_axes,
        read=tuple(readings.read),
        assumed=(*readings.assumed, "starts from a membrane of 0, as after reset_mem()"),
    )


def _check_settings(readings: Readings, module: nn.Module, node: _SnnTorchNeuron) -> None:
    if node.inhibition:
        raise refused(readings.path, module, "inhibition=True lets one neuron of a sample fire, the highest", HINT)
    if node.state_quant:
        raise refused(readings.path, module, "state_quant rounds the membrane at every step", HINT)
    factor = node.graded_spikes_factor
    if not bool((factor == 1).all()):
        reason = f"graded_spikes_factor is {float(factor.flatten()[0]):g}: its spikes are not 0 and 1"
        raise refused(readings.path, module, reason, "scale the weights of the next layer by it")


def _reset(readings: Readings, module: nn.Module, node: _SnnTorchNeuron, kind: str) -> Reset:
    """What the module's state function does, which was chosen when it was made."""
    chosen = getattr(node.state_function, "__name__", "")
    if chosen not in _RESETS or getattr(node.state_function, "__self__", None) is not module:
        raise refused(readings.path, module, "its state_function is not one of snnTorch", HINT)
    number, reset = _RESETS[chosen]
    if int(node.reset_mechanism_val) != number:
        reason = "reset_mechanism was changed after the module was made, which its state_function does not follow"
        raise refused(readings.path, module, reason, "make the module with the reset_mechanism")
    if kind == "Lapicque":
        if reset is Reset.HARD:
            reason = "reset_mechanism 'zero' drops the input of the step after a spike as well"
            raise refused(readings.path, module, reason, "Leaky keeps it")
        readings.read.append(f"reset {_SPOKEN[reset]}")
        return reset
    if reset is Reset.SOFT and not node.reset_delay:
        reason = (
            "with reset_delay=False and reset_mechanism 'subtract' a membrane that is still above the threshold "
            "after its reset must exceed twice the threshold to fire again"
        )
        raise refused(readings.path, module, reason, "reset_delay=True or reset_mechanism='zero' are imported")
    readings.read.append(f"reset {_SPOKEN[reset]}, reset_delay {bool(node.reset_delay)}")
    return reset


_SPOKEN: Mapping[Reset, str] = MappingProxyType({Reset.SOFT: "subtract", Reset.HARD: "zero", Reset.NONE: "none"})


def _leaky(readings: Readings, node: _SnnTorchNeuron) -> tuple[Tensor, Tensor]:
    beta = readings.value("beta", node.beta)
    decay = beta.clamp(0.0, 1.0)
    clamped = "" if torch.equal(beta, decay) else ", clamped to 0 and 1"
    readings.say("beta", beta, clamped + _learned(node.beta))
    return decay, torch.ones(())


def _lapicque(readings: Readings, node: _SnnTorchNeuron) -> tuple[Tensor, Tensor]:
    resistance, capacity, step = (
        readings.value(name, raw) for name, raw in (("R", node.R), ("C", node.C), ("time_step", node.time_step))
    )
    for name, value in (("R", resistance), ("C", capacity), ("time_step", step)):
        readings.say(name, value)
    decay = 1 - step / (resistance * capacity)
    if not bool(((decay >= 0) & (decay <= 1)).all()):
        raise readings.fail(f"1 - time_step / (R * C) is {float(decay.min()):g}, not inside [0, 1]")
    if not (torch.equal(resistance, torch.ones(())) and torch.equal(step, torch.ones(()))):
        form = "x * R * (1 / (R * C)) * time_step"
        readings.assumed.append(f"{form} is computed as input_scale * x: the last bits may round otherwise")
    return decay, resistance * (1 / (resistance * capacity)) * step


def _learned(value: Tensor) -> str:
    return " (learned, as it stands)" if isinstance(value, nn.Parameter) else ""


def _surrogate(readings: Readings, function: object) -> Surrogate:
    """Source: the backward functions of snnTorch 1.0's surrogate module, whose factories return closures."""
    made_by = origin(function)
    if made_by == "snntorch._neurons.neurons.SpikingNeuron._surrogate_bypass":
        readings.say_surrogate("none (surrogate_disable=True)", _NO_GRADIENT)
        return _NO_GRADIENT
    name = made_by.removeprefix("snntorch.surrogate.").removesuffix(".<locals>.inner")
    if made_by != f"snntorch.surrogate.{name}.<locals>.inner" or not isinstance(function, FunctionType):
        raise readings.fail(f"spike_grad {made_by} is not one of snntorch.surrogate", _SUPPORTED)
    if name not in _SURROGATES:
        reason = f": {_NO_SURROGATES[name]}" if name in _NO_SURROGATES else ""
        raise readings.fail(f"surrogate {name} is not supported{reason}", _SUPPORTED)
    cells = zip(function.__code__.co_freevars, function.__closure__ or (), strict=True)
    numbers = {key: float(readings.value(f"surrogate {name}: {key}", cell.cell_contents)) for key, cell in cells}
    for key, number in numbers.items():
        if number <= 0.0:
            raise readings.fail(f"surrogate {name}: {key} is {number:g}, must be positive")
    surrogate = _SURROGATES[name](numbers)
    readings.say_surrogate(name, surrogate)
    return surrogate


_NO_GRADIENT = Surrogate(kind=SurrogateKind.RECTANGLE, scale=0.0)
# From the variables of the closure.
_SURROGATES: Mapping[str, Callable[[Mapping[str, float]], Surrogate]] = MappingProxyType(
    {
        "atan": lambda n: Surrogate(kind=SurrogateKind.ATAN, width=1 / n["alpha"], scale=n["alpha"] / 2),
        "fast_sigmoid": lambda n: Surrogate(kind=SurrogateKind.FAST_SIGMOID, width=1 / n["slope"], scale=1.0),
        "sigmoid": lambda n: Surrogate(kind=SurrogateKind.SIGMOID, width=1 / n["slope"], scale=n["slope"] / 4),
        "spike_rate_escape": lambda n: Surrogate(
            kind=SurrogateKind.EXPONENTIAL, width=1 / n["beta"], scale=n["slope"], offset=1.0
        ),
    }
)
_NO_SURROGATES: Mapping[str, str] = MappingProxyType(
    {
        "triangular": "its gradient is threshold below and -threshold above, no triangle",
        "SSO": "its gradient is drawn at random",
        "LSO": "its gradient is drawn at random",
        "custom_surrogate": "its gradient is the user's own function",
    }
)
_SUPPORTED = f"supported: {', '.join(_SURROGATES)}"
