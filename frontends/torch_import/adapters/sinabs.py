"""sinabs' neurons, read from the live modules."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Protocol, cast

import torch
from torch import Tensor, nn

from compiler.ir import CompileError, Loc, Reset, Surrogate, SurrogateKind
from compiler.ir.ops import Li, Lif
from frontends.torch_import.adapters.base import (
    Expects,
    Neuron,
    check_unchanged,
    framework_class,
    origin,
    refused,
    unsupported,
)
from frontends.torch_import.adapters.readings import Readings

STATEFUL = "sinabs.layers.stateful_layer.StatefulLayer"
HINT = "of sinabs, LIF, IAF and ExpLeak are imported, and their Squeeze forms"
SPIKES = "sinabs.activation.spike_generation."
RESETS = "sinabs.activation.reset_mechanism."
SURROGATES = "sinabs.activation.surrogate_gradient_fn."
REASONS: Mapping[str, str] = MappingProxyType(
    {
        "ALIF": "its threshold adapts to its spikes",
        "ALIFRecurrent": "its threshold adapts to its spikes",
        "LIFRecurrent": "rec_connect brings its own spikes back",
        "IAFRecurrent": "rec_connect brings its own spikes back",
    }
)


class _SinabsLayer(Protocol):
    """What is read of LIF and its descendants."""

    alpha_mem_calculated: Tensor
    norm_input: bool
    spike_fn: object
    reset_fn: object
    surrogate_grad_fn: object
    spike_threshold: Tensor
    min_v_mem: Tensor | None
    batch_size: int
    num_timesteps: int


def sinabs(path: str, module: nn.Module, timesteps: int) -> Neuron | None:
    """The module as an op; None where it is no neuron.

    Raises: CompileError for a neuron that no op expresses, or a number of time steps that it was not made for.
    """
    if all(origin(cls) != STATEFUL for cls in type(module).__mro__):
        return None
    base = framework_class(module, "sinabs")
    kind = base.__name__.removesuffix("Squeeze")
    if kind in REASONS:
        raise refused(path, module, REASONS[kind], HINT)
    if not base.__module__.startswith("sinabs.layers.") or kind not in ("LIF", "IAF", "ExpLeak"):
        raise unsupported(path, module, HINT)
    check_unchanged(path, module, base)
    layer = cast(_SinabsLayer, module)
    samples = _check_squeezed(path, layer, timesteps) if base.__name__.endswith("Squeeze") else None
    return read_layer(path, module, layer, base.__name__.endswith("Squeeze"), samples)


def read_layer(path: str, module: nn.Module, layer: _SinabsLayer, squeezed: bool, samples: int | None) -> Neuron:
    """A neuron with one state, starting from a membrane of 0.

    Source: sinabs 3.1; v = alpha * v + (1 - alpha) * x with norm_input, else alpha * v + x; alpha is
    exp(-1 / tau_mem), 1 for IAF. It fires where v - threshold >= 0. MembraneReset is detached, MembraneSubtract not.
    """
    readings = Readings(path)
    if getattr(module, "tau_syn", None) is not None or getattr(module, "alpha_syn", None) is not None:
        raise refused(path, module, "two states: tau_syn gives it a synaptic current", HINT)
    if layer.min_v_mem is not None:
        raise refused(path, module, f"min_v_mem {float(layer.min_v_mem.flatten()[0]):g} cuts the membrane off", HINT)
    alpha = readings.value("exp(-1 / tau_mem)", layer.alpha_mem_calculated)
    tau = getattr(module, "tau_mem", None)  # IAF has none, nor has a layer that trains its decay
    if tau is not None:
        readings.say("tau_mem", readings.value("tau_mem", tau))
    readings.say("decay", alpha)
    scale = 1.0 - alpha if layer.norm_input else torch.ones(())
    readings.read.append(f"norm_input {bool(layer.norm_input)}")
    op: Lif | Li
    if layer.spike_fn is None:
        op = Li(decay=readings.number("decay", alpha), input_scale=readings.number("input_scale", scale))
    else:
        op = _lif(readings, module, layer, alpha, scale)
    return Neuron(
        op=op,
        expects=Expects.SAMPLES_MERGED if squeezed else Expects.SAMPLES_FIRST,
        arrays=tuple(readings.arrays.items()),
        keeps_state=True,
        channel_axes=readings.channel_axes,
        samples=samples,
        read=tuple(readings.read),
        assumed=("starts from a membrane of 0, as after reset_states()",),
    )


def _check_squeezed(path: str, layer: _SinabsLayer, timesteps: int) -> int | None:
    """The batch size that the layer was made for, where it was."""
    if layer.num_timesteps not in (-1, timesteps):
        reason = f"num_timesteps is {layer.num_timesteps}, the network is imported with timesteps={timesteps}"
        raise CompileError(f"{path}: {reason}", Loc(path), hint=f"set num_timesteps to {timesteps}")
    return None if layer.batch_size == -1 else layer.batch_size


def _lif(readings: Readings, module: nn.Module, layer: _SinabsLayer, alpha: Tensor, scale: Tensor) -> Lif:
    if origin(layer.spike_fn) != f"{SPIKES}SingleSpike":
        name = origin(layer.spike_fn).rpartition(".")[2]
        reason = f"spike_fn {name} gives more than one spike a step"
        raise refused(readings.path, module, reason, "spike_fn=sinabs.activation.SingleSpike")
    threshold = readings.value("spike_threshold", layer.spike_threshold)
    readings.say("spike_threshold", threshold)
    soft = _is_soft(readings, module, layer.reset_fn, threshold)
    readings.read.append("soft reset" if soft else "hard reset to 0")
    return Lif(
        decay=readings.number("decay", alpha),
        threshold=readings.number("threshold", threshold),
        input_scale=readings.number("input_scale", scale),
        reset=Reset.SOFT if soft else Reset.HARD,
        detach_reset=not soft,
        surrogate=_surrogate(readings, layer.surrogate_grad_fn, threshold),
    )


def _is_soft(readings: Readings, module: nn.Module, reset: object, threshold: Tensor) -> bool:
    match origin(type(reset)):
        case "sinabs.activation.reset_mechanism.MembraneSubtract":
            value = getattr(reset, "subtract_value", None)
            if value is not None and not torch.equal(readings.value("subtract_value", value).float(), threshold):
                reason = f"MembraneSubtract({value}) subtracts another value than the threshold"
                raise refused(readings.path, module, reason, "MembraneSubtract() subtracts the threshold")
            return True
        case "sinabs.activation.reset_mechanism.MembraneReset":
            value = getattr(reset, "reset_value", None)
            if value != 0:
                reason = f"MembraneReset({value}) adds its value to every neuron at every step"
                raise refused(readings.path, module, reason, "MembraneReset(0.0) is imported")
            return False
    raise refused(readings.path, module, f"reset_fn {origin(type(reset))} is not one of sinabs", HINT)


def _surrogate(readings: Readings, function: object, threshold: Tensor) -> Surrogate:
    """Source: the surrogates of sinabs 3.1; the width of SingleExponential counts in thresholds."""
    name = origin(type(function)).removeprefix(SURROGATES)
    if name != "SingleExponential":
        raise readings.fail(f"surrogate {name} is not supported", "supported: SingleExponential")
    width = float(readings.value("grad_width", getattr(function, "grad_width", None)))
    scale = float(readings.value("grad_scale", getattr(function, "grad_scale", None)))
    if threshold.ndim:
        raise readings.fail("surrogate SingleExponential is as wide as the threshold, which differs among channels")
    width *= float(threshold)
    if width <= 0.0:
        raise readings.fail(f"surrogate SingleExponential has the width {width:g}, must be positive")
    surrogate = Surrogate(kind=SurrogateKind.EXPONENTIAL, width=width, scale=scale / width)
    readings.say_surrogate(name, surrogate)
    return surrogate
