"""Neurons that do one step a call, of a framework made up for the tests."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from unittest.mock import patch

import torch
from torch import Tensor, nn

from compiler.ir import Compare, Reset
from compiler.ir.ops import Li, Lif
from frontends.torch_import import neurons
from frontends.torch_import.adapters import Expects, Neuron, read_neuron


class Cell(nn.Module):
    """m = decay * v + x; spikes = m >= threshold; the caller carries v.

    Shapes: x (N, ...), v as x -> spikes, v.
    """

    def __init__(self, decay: float = 0.5, threshold: float = 1.0, reset: Reset = Reset.HARD, initial: float = 0.0):
        super().__init__()
        self.decay, self.threshold, self.reset_kind, self.initial = decay, threshold, reset, initial

    def step(self, x: Tensor, v: Tensor | None) -> tuple[Tensor, Tensor]:
        m = self.decay * (torch.full_like(x, self.initial) if v is None else v) + x
        spikes = (m >= self.threshold).float()
        match self.reset_kind:
            case Reset.HARD:
                return spikes, torch.where(spikes > 0, 0.0, m)
            case Reset.SOFT:
                return spikes, m - self.threshold * spikes
            case Reset.NONE:
                return spikes, m

    def forward(self, x: Tensor, v: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return self.step(x, v)


class Integrator(Cell):
    """m = decay * m + x; returns m twice."""

    def forward(self, x: Tensor, v: Tensor | None = None) -> tuple[Tensor, Tensor]:
        m = x if v is None else self.decay * v + x
        return m, m


class Kept(Cell):
    """A Cell that keeps v itself, until it is reset."""

    def __init__(self, decay: float = 0.5, threshold: float = 1.0, reset: Reset = Reset.HARD):
        super().__init__(decay, threshold, reset)
        self.v: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        spikes, self.v = self.step(x, self.v)
        return spikes

    def reset(self) -> None:
        self.v = None


class SamplesFirst(Cell):
    """A Cell over all steps at once, samples outermost; merged: in one axis with time.

    Shapes: (N, T, ...) -> the same; merged (N * T, ...) -> the same.
    """

    def __init__(self, timesteps: int, merged: bool) -> None:
        super().__init__()
        self.timesteps, self.merged = timesteps, merged

    def forward(self, x: Tensor) -> Tensor:
        sequence, v, outputs = x.unflatten(0, (-1, self.timesteps)) if self.merged else x, None, []
        for t in range(self.timesteps):
            spikes, v = self.step(sequence[:, t], v)
            outputs.append(spikes)
        y = torch.stack(outputs, 1)
        return y.flatten(0, 1) if self.merged else y


@dataclass(frozen=True)
class WithState:
    def unpack(self, arguments: tuple[object, ...], named: dict[str, object]) -> tuple[Tensor, Tensor | None]:
        x, state = (*arguments, None)[:2]
        return x, named.get("v", state)

    def pack(self, spikes: Tensor, membrane: Tensor) -> tuple[Tensor, Tensor]:
        return spikes, membrane


def _read(path: str, module: nn.Module, timesteps: int) -> Neuron | None:
    if not isinstance(module, Cell):
        return read_neuron(path, module, timesteps)
    op: Lif | Li
    if isinstance(module, Integrator):
        op = Li(decay=module.decay)
    else:
        op = Lif(
            decay=module.decay,
            threshold=module.threshold,
            reset=module.reset_kind,
            compare=Compare.GE,
            initial=module.initial,
        )
    if isinstance(module, SamplesFirst):
        return Neuron(op=op, expects=Expects.SAMPLES_MERGED if module.merged else Expects.SAMPLES_FIRST)
    kept = isinstance(module, Kept)
    return Neuron(
        op=op,
        expects=Expects.STEP,
        keeps_state=kept,
        step=None if kept else WithState(),
        read=(f"threshold {module.threshold:g}",),
    )


@contextmanager
def cells_are_read() -> Iterator[None]:
    """The import knows the cells as if there were an adapter for them."""
    with patch.object(neurons, "read_neuron", _read):
        yield


def reset(module: nn.Module) -> None:
    """Every Kept starts anew."""
    for child in module.modules():
        if isinstance(child, Kept):
            child.reset()


def on_grid(module: nn.Module, grid: int = 8, gain: float = 2.0) -> nn.Module:
    """Weights times `gain`, rounded to multiples of 1 / grid: with few steps every sum is exact, in any order."""
    with torch.no_grad():
        for weight in module.parameters():
            weight.copy_(torch.round(grid * gain * weight) / grid)
    return module.eval()
