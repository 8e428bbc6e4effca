"""spikec's own neurons."""

from __future__ import annotations

import torch
from torch import Tensor

from compiler.ir import Compare, CompileError, Loc, Number, Param
from compiler.ir.ops import Li, Lif
from frontends.nn import LI, LIF
from frontends.torch_import.adapters.base import Expects, Neuron, unsupported
from frontends.torch_import.adapters.readings import Readings

_UNSAID = {"input_scale": 1.0, "leak_bias": 0.0, "reset_value": 0.0, "initial": 0.0}  # goes without saying


def own(path: str, module: LIF | LI, timesteps: int) -> Neuron:
    """LIF and LI as they stand.

    Raises: CompileError for another forward, or another number of time steps.
    """
    if type(module).forward not in (LIF.forward, LI.forward):
        raise unsupported(path, module, "its forward is not that of LIF or LI")
    if module.timesteps not in (None, timesteps):
        raise CompileError(
            f"{path}: {type(module).__name__} has timesteps={module.timesteps}, "
            f"the network is imported with timesteps={timesteps}",
            Loc(path),
            hint=f"spikec.nn.set_timesteps(module, {timesteps})",
        )
    arrays: list[tuple[str, Tensor]] = []
    readings = Readings(path)

    def number(name: str) -> Number:
        value: float | Tensor = getattr(module, name)
        if not (isinstance(value, float) and value == _UNSAID.get(name)):
            readings.say(name, torch.as_tensor(value, dtype=torch.float64))
        if isinstance(value, float):
            return value
        arrays.append((f"{path}.{name}", value))
        return Param(f"{path}.{name}")

    op: Lif | Li
    if isinstance(module, LI):
        op = Li(
            decay=number("decay"),
            input_scale=number("input_scale"),
            leak_bias=number("leak_bias"),
            initial=number("initial"),
        )
    else:
        op = Lif(
            decay=number("decay"),
            threshold=number("threshold"),
            input_scale=number("input_scale"),
            leak_bias=number("leak_bias"),
            reset=module.reset,
            reset_value=number("reset_value"),
            reset_delay=module.reset_delay,
            compare=module.compare,
            detach_reset=module.detach_reset,
            initial=number("initial"),
            surrogate=module.surrogate,
        )
        readings.read.append(f"{module.reset} reset{', one step later' if module.reset_delay else ''}")
        readings.read.append(f"fires where m {'>=' if module.compare == Compare.GE else '>'} threshold")
        readings.say_surrogate(str(module.surrogate.kind), module.surrogate)
    expects = Expects.SEPARATE if module.timesteps is None else Expects.MERGED
    return Neuron(op=op, expects=expects, arrays=tuple(arrays), read=tuple(readings.read))
