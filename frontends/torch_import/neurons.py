"""Neuron modules made opaque to the tracer."""

from __future__ import annotations

import contextlib
import copy
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from compiler.ir import CompileError, Loc
from frontends.torch_import.adapters import Expects, Neuron, read_neuron
from frontends.torch_import.stand_ins import SequenceForward, StepForward
from frontends.torch_import.state import leaves


@torch.library.custom_op("spikec::neuron", mutates_args=())
def _opaque_neuron(x: Tensor, index: int) -> Tensor:
    return x.clone()


@_opaque_neuron.register_fake
def _(x: Tensor, index: int) -> Tensor:
    return torch.empty_like(x)


@torch.library.custom_op("spikec::neuron_state", mutates_args=())
def _opaque_state(x: Tensor, index: int) -> Tensor:
    return x.clone()


@_opaque_state.register_fake
def _(x: Tensor, index: int) -> Tensor:
    return torch.empty_like(x)


@torch.library.custom_op("spikec::neuron_step", mutates_args=())
def _opaque_step(x: Tensor, state: Tensor | None, index: int) -> tuple[Tensor, Tensor]:
    return x.clone(), x.clone()


@_opaque_step.register_fake
def _(x: Tensor, state: Tensor | None, index: int) -> tuple[Tensor, Tensor]:
    return torch.empty_like(x), torch.empty_like(x)


@dataclass(frozen=True, slots=True, kw_only=True)
class Opaque:
    """A network in evaluation mode whose neurons are calls of `spikec::neuron` and `spikec::neuron_step`.

    `spikec::neuron_state` is what a neuron returns beside its spikes of all steps.

    stand_ins: the neuron modules in the copy.
    reachable: the modules that they stand for, and those that the frameworks' classes list.
    steps: the forwards of the neurons that do one step a call.
    """

    network: nn.Module
    neurons: tuple[Neuron, ...]
    stand_ins: tuple[nn.Module, ...]
    reachable: tuple[nn.Module, ...]
    steps: tuple[StepForward, ...]

    def restarted(self) -> frozenset[int]:
        """After a forward: the neurons whose state it set itself, at its start or end."""
        return frozenset(step.index for step in self.steps if step.is_restarted)


def opaque_copy(module: nn.Module, timesteps: int) -> Opaque:
    """A copy with opaque neurons.

    Raises: CompileError for a neuron that no op expresses.
    """
    neurons: list[Neuron] = []
    steps: list[StepForward] = []
    pairs: dict[int, tuple[nn.Module, nn.Module]] = {}
    for path, child in module.named_modules():
        neuron = read_neuron(path or type(child).__name__, child, timesteps)
        if neuron is not None:
            neuron = _without_hooks(path or type(child).__name__, child, neuron)
            stand_in = _stand_in(child)
            pairs[id(child)] = (child, stand_in)
            if neuron.expects is Expects.STEP:
                steps.append(_one_step(path or type(child).__name__, child, stand_in, neuron, len(neurons)))
            else:
                sequence = SequenceForward(path or type(child).__name__, stand_in, neuron, len(neurons))
                stand_in.forward = sequence.with_state if neuron.step else sequence.forward
            neurons.append(neuron)
    network = _copy(module, {key: stand_in for key, (_, stand_in) in pairs.items()}).eval()
    for step in steps:
        network.register_forward_pre_hook(_hook(step.begin))
        network.register_forward_hook(_hook(step.end))
    return Opaque(
        network=network,
        neurons=tuple(neurons),
        stand_ins=tuple(stand_in for _, stand_in in pairs.values()),
        reachable=tuple(_reachable([original for original, _ in pairs.values()])),
        steps=tuple(steps),
    )


def _without_hooks(path: str, module: nn.Module, neuron: Neuron) -> Neuron:
    """The neuron, with the note that its hooks are left out: they would be handed tensors without values.

    Raises: CompileError for hooks in front of its forward, which are there to change what it does.
    """
    if module._forward_pre_hooks:
        hint = "remove them, or do in the network's forward what they do"
        raise CompileError(f"{path}: hooks in front of a neuron's forward are not imported", Loc(path), hint=hint)
    if not module._forward_hooks:
        return neuron
    return replace(neuron, assumed=(*neuron.assumed, "its forward hooks only look at its spikes, and are left out"))


def _copy(module: nn.Module, stand_ins: Mapping[int, nn.Module]) -> nn.Module:
    """Raises: CompileError for a network that is, or holds, what cannot be copied."""
    if isinstance(module, torch.jit.ScriptModule):
        reason = "the network is compiled by TorchScript, which hides its neurons"
        raise CompileError(reason, Loc(type(module).__name__), hint="hand in the module that it was made of")
    memo: dict[int, object] = dict(stand_ins)  # in the form of deepcopy's memo
    for part in module.modules():
        # deepcopy refuses results of a forward that is still to be differentiated
        memo |= {id(tensor): tensor.detach().clone() for _, tensor in leaves("", vars(part)) if not tensor.is_leaf}
    try:
        return copy.deepcopy(module, memo)
    except Exception as fault:  # the user's own __deepcopy__ and __getstate__ run here
        reason = str(fault).strip().split("\n")[0]
        raise CompileError(
            f"the network cannot be copied: {type(fault).__name__}: {reason}",
            Loc(type(module).__name__),
            hint="locks, generators and the like have no place in a network's attributes",
        ) from fault


def _hook(action: Callable[[], None]) -> Callable[..., None]:
    def hook(*_: object) -> None:
        action()

    return hook


def _reachable(neurons: list[nn.Module]) -> Iterator[nn.Module]:
    """The modules, and those in lists that their classes hold, through which a framework resets all it ever made."""
    classes = {cls for neuron in neurons for cls in type(neuron).__mro__}
    listed = [item for cls in classes for value in vars(cls).values() if isinstance(value, list) for item in value]
    modules = [*neurons, *(item for item in listed if isinstance(item, nn.Module))]
    yield from {id(module): module for module in modules}.values()


def _stand_in(module: nn.Module) -> nn.Module:
    """The same neuron, as far as its network can see, without hooks."""
    stand_in = copy.copy(module)
    # what a reset in the network's forward writes must not reach the original
    vars(stand_in).update({name: value.copy() for name, value in vars(module).items() if isinstance(value, dict)})
    stand_in._modules = {}
    stand_in._forward_hooks = OrderedDict()
    stand_in._forward_pre_hooks = OrderedDict()
    return stand_in


def _one_step(path: str, original: nn.Module, stand_in: nn.Module, neuron: Neuron, index: int) -> StepForward:
    vars(stand_in).update(stand_in._buffers)  # plain attributes: the tracer must not follow writes to them
    stand_in._buffers = {}
    step = StepForward(path, original, stand_in, neuron, index)
    stand_in.forward = step.forward
    return step


@contextlib.contextmanager
def unchanged(modules: Iterable[nn.Module]) -> Iterator[None]:
    """Take back whatever is written to the modules' attributes meanwhile."""
    before = [(vars(module), dict(vars(module)), _tables(module)) for module in modules]
    try:
        yield
    finally:
        for attributes, values, tables in before:
            attributes.clear()
            attributes.update(values)
            for name, table in tables.items():
                values[name].clear()
                values[name].update(table)


def _tables(module: nn.Module) -> dict[str, dict[object, object]]:
    return {name: value.copy() for name, value in vars(module).items() if isinstance(value, dict)}
