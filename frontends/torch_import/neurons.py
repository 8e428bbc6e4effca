"""Neuron modules made opaque to the tracer."""

from __future__ import annotations

import copy
from collections import OrderedDict

import torch
from torch import Tensor, nn

from frontends.torch_import.adapters import Neuron, read_neuron


@torch.library.custom_op("spikec::neuron", mutates_args=())
def _opaque_neuron(x: Tensor, index: int) -> Tensor:
    return x.clone()


@_opaque_neuron.register_fake
def _(x: Tensor, index: int) -> Tensor:
    return torch.empty_like(x)


def _stand_in(module: nn.Module, index: int) -> nn.Module:
    """The same neuron, as far as its network can see, with an opaque forward and no hooks."""

    def forward(x: Tensor) -> Tensor:
        result: Tensor = torch.ops.spikec.neuron(x, index)
        return result

    stand_in = copy.copy(module)
    stand_in._modules = {}
    stand_in._forward_hooks = OrderedDict()
    stand_in._forward_pre_hooks = OrderedDict()
    stand_in.forward = forward
    return stand_in


def opaque_copy(module: nn.Module, timesteps: int) -> tuple[nn.Module, tuple[Neuron, ...]]:
    """A copy in evaluation mode whose neurons are calls of `spikec::neuron(x, index)`, and the neurons.

    Raises: CompileError for a neuron that no op expresses.
    """
    neurons: list[Neuron] = []
    stand_ins: dict[int, object] = {}  # in the form of deepcopy's memo
    for path, child in module.named_modules():
        neuron = read_neuron(path or type(child).__name__, child, timesteps)
        if neuron is not None:
            stand_ins[id(child)] = _stand_in(child, len(neurons))
            neurons.append(neuron)
    return copy.deepcopy(module, stand_ins).eval(), tuple(neurons)
