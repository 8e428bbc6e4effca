"""State that a network keeps from call to call, which a graph cannot: found while the network is traced."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor, nn

_OWN = frozenset(vars(nn.Module()))  # what every module has; buffers are seen by the tracer itself


class StateWatch:
    """Names the plain attributes of a network that hold other tensors after a forward than before it."""

    def __init__(self, network: nn.Module) -> None:
        self.written: tuple[str, ...] = ()
        self._before: dict[str, Tensor] = {}
        network.register_forward_pre_hook(self._remember)
        network.register_forward_hook(self._compare)

    def _remember(self, network: nn.Module, _inputs: object) -> None:
        self._before = dict(_tensors(network))

    def _compare(self, network: nn.Module, _inputs: object, _result: object) -> None:
        changed = (path for path, value in _tensors(network) if self._before.get(path) is not value)
        self.written = tuple(sorted(changed))


def _tensors(network: nn.Module) -> Iterator[tuple[str, Tensor]]:
    for prefix, module in network.named_modules():
        for name, value in vars(module).items():
            if name not in _OWN:
                yield from _leaves(f"{prefix}.{name}" if prefix else name, value)


def _leaves(path: str, value: object) -> Iterator[tuple[str, Tensor]]:
    match value:
        case Tensor():
            yield path, value
        case dict():
            for key, item in value.items():
                yield from _leaves(f"{path}[{key!r}]", item)
        case list() | tuple():
            for index, item in enumerate(value):
                yield from _leaves(f"{path}[{index}]", item)
