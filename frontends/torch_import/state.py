"""State that a network keeps from call to call, which a graph cannot: found while the network is traced."""

from __future__ import annotations

from collections.abc import Collection, Iterator

from torch import Tensor, nn

_OWN = frozenset(vars(nn.Module()))  # what every module has; buffers are seen by the tracer itself


def leaves(path: str, value: object) -> Iterator[tuple[str, Tensor]]:
    """The tensors in an attribute, and in lists and dicts of it, each with its place."""
    match value:
        case Tensor():
            yield path, value
        case dict():
            for key, item in value.items():
                yield from leaves(f"{path}[{key!r}]", item)
        case list() | tuple():
            for index, item in enumerate(value):
                yield from leaves(f"{path}[{index}]", item)


def _recomputed(module: nn.Module) -> set[str]:
    """The weights that hooks of PyTorch, as weight_norm and pruning, compute anew in front of each forward."""
    hooks = [hook for hook in module._forward_pre_hooks.values() if type(hook).__module__.startswith("torch.nn.utils.")]
    return {str(getattr(hook, name)) for hook in hooks for name in ("name", "_tensor_name") if hasattr(hook, name)}


class StateWatch:
    """Names the plain attributes of a network that hold other tensors after a forward than before it.

    neurons: the modules whose state has a meaning of its own, and is not watched.
    """

    def __init__(self, network: nn.Module, neurons: Collection[nn.Module]) -> None:
        self.written: tuple[str, ...] = ()
        self._neurons = {id(neuron) for neuron in neurons}
        self._before: dict[str, Tensor] = {}
        network.register_forward_pre_hook(self._remember)
        network.register_forward_hook(self._compare)

    def _remember(self, network: nn.Module, _inputs: object) -> None:
        self._before = dict(self._tensors(network))

    def _compare(self, network: nn.Module, _inputs: object, _result: object) -> None:
        changed = (path for path, value in self._tensors(network) if self._before.get(path) is not value)
        self.written = tuple(sorted(changed))

    def _tensors(self, network: nn.Module) -> Iterator[tuple[str, Tensor]]:
        for prefix, module in network.named_modules():
            if id(module) not in self._neurons:
                for name, value in vars(module).items():
                    if name not in _OWN | _recomputed(module):
                        yield from leaves(f"{prefix}.{name}" if prefix else name, value)
