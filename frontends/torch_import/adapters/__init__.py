"""One adapter for each framework: its neuron modules as ops, with everything that they say about themselves."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

from torch import nn

from compiler.ir import CompileError, Loc
from frontends.nn import LI, LIF
from frontends.torch_import.adapters.base import Expects, Neuron, StepCall
from frontends.torch_import.adapters.norse import norse
from frontends.torch_import.adapters.own import own
from frontends.torch_import.adapters.sinabs import sinabs
from frontends.torch_import.adapters.snntorch import snntorch
from frontends.torch_import.adapters.spikingjelly import spikingjelly

__all__ = ["Expects", "Neuron", "StepCall", "read_neuron"]

Adapter = Callable[[str, nn.Module, int], Neuron | None]
_ADAPTERS: Mapping[str, Adapter] = MappingProxyType(
    {"spikingjelly": spikingjelly, "snntorch": snntorch, "norse": norse, "sinabs": sinabs}
)


def read_neuron(path: str, module: nn.Module, timesteps: int) -> Neuron | None:
    """A neuron module as an op; None for every other module.

    Foreign neurons are told by the package of their nearest class that is not the user's; no framework is imported.

    Raises: CompileError for a neuron that no op expresses.
    """
    if isinstance(module, LIF | LI):
        return own(path, module, timesteps)
    if isinstance(module, nn.RNNBase):
        hint = "spiking networks use a neuron module here, as spikec.nn.LIF"
        raise CompileError(
            f"{path}: {type(module).__name__} is not an operator of spiking networks", Loc(path), hint=hint
        )
    packages = (cls.__module__.partition(".")[0] for cls in type(module).__mro__)
    adapter = next((_ADAPTERS[package] for package in packages if package in _ADAPTERS), None)
    return None if adapter is None else adapter(path, module, timesteps)
