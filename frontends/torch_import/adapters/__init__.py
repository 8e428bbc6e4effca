"""One adapter for each framework: its neuron modules as ops, with everything that they say about themselves."""

from __future__ import annotations

from torch import nn

from compiler.ir import CompileError, Loc
from frontends.nn import LI, LIF
from frontends.torch_import.adapters.base import Expects, Neuron, unsupported
from frontends.torch_import.adapters.own import own
from frontends.torch_import.adapters.spikingjelly import spikingjelly

FOREIGN_PACKAGES = ("snntorch", "norse", "sinabs")

__all__ = ["Expects", "Neuron", "read_neuron"]


def read_neuron(path: str, module: nn.Module, timesteps: int) -> Neuron | None:
    """A neuron module as an op; None for every other module.

    Raises: CompileError for a neuron that no op expresses.
    """
    if isinstance(module, LIF | LI):
        return own(path, module, timesteps)
    if isinstance(module, nn.RNNBase):
        hint = "spiking networks use a neuron module here, as spikec.nn.LIF"
        raise CompileError(
            f"{path}: {type(module).__name__} is not an operator of spiking networks", Loc(path), hint=hint
        )
    if any(cls.__module__.split(".")[0] in FOREIGN_PACKAGES for cls in type(module).__mro__):
        raise unsupported(path, module, "spikec's own LIF and SpikingJelly's LIFNode and IFNode are imported")
    return spikingjelly(path, module)
