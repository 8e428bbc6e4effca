"""The forwards of neurons that the tracer sees as one operator."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from compiler.ir import CompileError, Loc, Param
from frontends.torch_import.adapters import Neuron

# What frameworks call the membrane potential that a module keeps between its calls.
_MEMBRANES = ("v", "mem", "v_mem")


class SequenceForward:
    """Of a module that does all steps in one call."""

    def __init__(self, path: str, stand_in: nn.Module, neuron: Neuron, index: int) -> None:
        self.path, self.neuron, self.index = path, neuron, index
        self._stand_in, self._settings = stand_in, Settings(stand_in)
        self._before = self._numbers()

    def forward(self, x: Tensor) -> Tensor:
        """The spikes alone.

        Raises: CompileError for a setting, or a number as the state, that the network has set.
        """
        self._settings.check(self.path)
        for number in self._numbers():
            if number not in self._before:
                _check_start(self.path, self.neuron, number)
        spikes: Tensor = torch.ops.spikec.neuron(x, self.index)
        return spikes

    def with_state(self, *arguments: object, **named: object) -> object:
        """What the module returns, the state among it.

        Raises: CompileError for a state that is handed in.
        """
        protocol = self.neuron.step
        assert protocol is not None
        x, state = protocol.unpack(arguments, named)
        if state is not None:
            raise CompileError(
                f"{self.path}: the neuron gets a state that it goes on from",
                Loc(self.path),
                hint="a graph starts from the neuron's initial state",
            )
        return protocol.pack(self.forward(x), torch.ops.spikec.neuron_state(x, self.index))

    def _numbers(self) -> list[float]:
        """The states that are numbers, which stand for all neurons."""
        values = [getattr(self._stand_in, name, None) for name in _MEMBRANES]
        return [value for value in values if isinstance(value, float | int)]


def _check_start(path: str, neuron: Neuron, number: float) -> None:
    """Raises: CompileError for a number that is not the neuron's initial state."""
    initial = neuron.op.initial
    if not isinstance(initial, Param) and number != initial:
        raise CompileError(
            f"{path}: the network sets the neuron's state to {number:g}, its initial state is {initial:g}",
            Loc(path),
            hint="spikec.nn.LIF(initial=...) starts from another membrane potential",
        )


class StepForward:
    """Of a module that does one step a call."""

    def __init__(self, path: str, original: nn.Module, stand_in: nn.Module, neuron: Neuron, index: int) -> None:
        self.path, self.index, self.neuron = path, index, neuron
        self._kept: Tensor | None = None  # the membrane potential after the last call
        self._hidden = HiddenState(original, stand_in) if neuron.keeps_state else None
        self._settings = Settings(stand_in)
        self.is_restarted = False  # the network sets the state itself, before the first or after the last step

    def begin(self) -> None:
        """At the start of the network's forward."""
        if self._hidden is not None:
            self._hidden.watch()

    def end(self) -> None:
        """At the end of the network's forward."""
        if self._hidden is not None and self._hidden.is_disturbed():
            self.is_restarted = True
            self._restart(self._hidden)

    def forward(self, *arguments: object, **named: object) -> object:
        """What the module returns.

        Raises: CompileError for a state that the network has set since the last call.
        """
        protocol = self.neuron.step
        x, state = protocol.unpack(arguments, named) if protocol else (arguments[0], None)
        self._settings.check(self.path)
        if state is None and self._hidden is not None:
            state = self._check_undisturbed(self._hidden, x)
        spikes, membrane = torch.ops.spikec.neuron_step(x, state, self.index)
        if self._hidden is not None:
            self._kept = membrane
            self._hidden.write(membrane)
        return protocol.pack(spikes, membrane) if protocol else spikes

    def _check_undisturbed(self, hidden: HiddenState, x: object) -> Tensor | None:
        """The state that the neuron goes on from: its last, or what the network has set in front of its first step."""
        if not hidden.is_disturbed():
            return self._kept
        if self._kept is not None:
            raise CompileError(
                f"{self.path}: the network sets the neuron's state between two of its steps",
                Loc(self.path),
                hint="reset once, before the loop over time",
            )
        self.is_restarted = True
        start = self._restart(hidden)
        if start is None or not isinstance(x, Tensor) or start.numel() not in (1, x.numel()):
            return None  # of another shape a framework takes it as none
        return start.expand(x.shape) if start.numel() == 1 else start

    def _restart(self, hidden: HiddenState) -> Tensor | None:
        """The tensor that the network has set as the state, if it is one.

        Raises: CompileError for a number that is not the neuron's initial state.
        """
        tensor = None
        for value in hidden.written():
            if isinstance(value, Tensor):
                tensor = value
            elif isinstance(value, float | int):
                _check_start(self.path, self.neuron, value)
        return None if isinstance(self.neuron.op.initial, Param) else tensor


class Settings:
    """What a module's own attributes say, its state left out."""

    def __init__(self, stand_in: nn.Module) -> None:
        self._stand_in = stand_in
        self._before = self._present()

    def check(self, path: str) -> None:
        """Raises: CompileError where the network has set one since the module was read."""
        now = self._present()
        changed = sorted(name for name, value in self._before.items() if not _is_same(now.get(name), value))
        if changed:
            raise CompileError(
                f"{path}: the network sets {', '.join(changed)} of the neuron in its forward",
                Loc(path),
                hint="set it before the network is imported",
            )

    def _present(self) -> dict[str, object]:
        own = ("training", "forward", *_MEMBRANES)
        return {name: value for name, value in vars(self._stand_in).items() if name[0] != "_" and name not in own}


def _is_same(now: object, before: object) -> bool:
    numbers = isinstance(now, float | int) and isinstance(before, float | int)
    return now is before or (numbers and now == before)


class HiddenState:
    """The membrane potential that a module keeps, and whether anyone else has written to it.

    Watched are the stand-in's, and the original's: a framework's own list of neurons leads to that.
    """

    def __init__(self, original: nn.Module, stand_in: nn.Module) -> None:
        self._original, self._stand_in = original, stand_in
        self._names = tuple(name for name in _MEMBRANES if hasattr(original, name))
        for name in self._names:
            setattr(stand_in, name, _other_object(getattr(original, name)))
        self.watch()

    def watch(self) -> None:
        """What is there now is undisturbed."""
        self._before = self._present()

    def write(self, membrane: Tensor) -> None:
        """Put the membrane potential where the module keeps it."""
        for name in self._names:
            setattr(self._stand_in, name, membrane)
        self.watch()

    def is_disturbed(self) -> bool:
        """Whether it is not what was written last."""
        return bool(self.written())

    def written(self) -> list[object]:
        """The values that others have set."""
        pairs = zip(self._present(), self._before, strict=True)
        return [now for (now, now_version), (before, version) in pairs if now is not before or now_version != version]

    def _present(self) -> tuple[tuple[object, int], ...]:
        """Each value, and how often it was written in place."""
        modules = (self._stand_in, self._original)
        values = [getattr(module, name) for module in modules for name in self._names]
        return tuple((value, value._version if isinstance(value, Tensor) else 0) for value in values)


def _other_object(value: object) -> object:
    """An equal object that no reset could put in its place."""
    match value:
        case float():
            return value * 1.0
        case Tensor():
            return value.detach().clone()
        case _:
            return torch.zeros(0)
