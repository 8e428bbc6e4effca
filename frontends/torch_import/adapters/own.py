"""spikec's own neurons."""

from __future__ import annotations

from torch import Tensor

from compiler.ir import CompileError, Loc, Number, Param
from compiler.ir.ops import Li, Lif
from frontends.nn import LI, LIF
from frontends.torch_import.adapters.base import Expects, Neuron, unsupported


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

    def number(name: str) -> Number:
        value: float | Tensor = getattr(module, name)
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
    expects = Expects.SEPARATE if module.timesteps is None else Expects.MERGED
    return Neuron(op=op, expects=expects, arrays=tuple(arrays))
