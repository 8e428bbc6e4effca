"""What an attacker may change: spikes, intensities behind a Bernoulli code, or a real-valued input."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from compiler.attack.randomness import Purpose, uniform_draws
from compiler.attack.settings import Settings
from compiler.attack.spike_gradients import flipped, spike_gradient, vanishes
from compiler.attack.victim import Victim
from compiler.ir import DType, Encoding


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """Samples in the midst of an attack, each in its own iteration. Shapes: (N, ...) or (T, N, ...)."""

    samples: Sequence[int]
    steps: Sequence[int]
    clean: Tensor
    now: Tensor


class Attackable(Protocol):
    """One kind of input."""

    @property
    def axis(self) -> int:
        """Of the samples."""

    def seen(self, batch: Batch) -> Tensor:
        """What the network gets."""

    def changed(self, batch: Batch, seen: Tensor, ascent: Tensor) -> Tensor:
        """The inputs after one iteration; `ascent` is the direction of the attack by what the network got."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SpikeInput:
    """Binary spikes (T, N, ...), of which some are flipped.

    Source: algorithm 5, spike input.
    """

    settings: Settings
    axis: int = 1

    def seen(self, batch: Batch) -> Tensor:
        return batch.now

    def changed(self, batch: Batch, seen: Tensor, ascent: Tensor) -> Tensor:
        return batch.now + ternary(self.settings, batch, seen, ascent)


@dataclass(frozen=True, slots=True, kw_only=True)
class BernoulliImage:
    """Intensities (N, ...) in [0, 1], drawn anew as spikes at each iteration.

    x' <- clip(x' + step * mean over t of the ternary gradient - pull * 2 (x' - x))

    Source: algorithm 5, image input; equation 5.9 for the pull.
    """

    settings: Settings
    timesteps: int
    axis: int = 0

    def seen(self, batch: Batch) -> Tensor:
        shape = (self.timesteps, *batch.now.shape[1:])
        draws = uniform_draws(self.settings.seed, Purpose.ENCODE, batch.samples, batch.steps, shape)
        return (draws < batch.now).to(torch.float32)

    def changed(self, batch: Batch, seen: Tensor, ascent: Tensor) -> Tensor:
        change = self.settings.step * ternary(self.settings, batch, seen, ascent).mean(0)
        return pulled(batch, change, self.settings).clamp(0, 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class DirectImage:
    """A real-valued input (N, ...) in [0, 1] that the network gets as it is, at each step.

    x' <- clip(x' + step * sign(gradient) - pull * 2 (x' - x));   without a gradient, elements move by a random sign

    Source: equation 5.3.
    """

    settings: Settings
    axis: int = 0

    def seen(self, batch: Batch) -> Tensor:
        return batch.now

    def changed(self, batch: Batch, seen: Tensor, ascent: Tensor) -> Tensor:
        shape = batch.now.shape[1:]
        draws = uniform_draws(self.settings.seed, Purpose.FLIP, batch.samples, batch.steps, (1, *shape))[0]
        gamma = self.settings.gamma
        random = (draws < gamma).float() - (draws < gamma / 2).float() * 2
        gone = vanishes(ascent.unsqueeze(0)).reshape(-1, *(1,) * len(shape))
        change = self.settings.step * torch.where(gone, random, ascent.sign())
        return pulled(batch, change, self.settings).clamp(0, 1)


def attackable(victim: Victim, settings: Settings) -> Attackable:
    """The kind of input that a network has."""
    graph = victim.graph
    if victim.encoding is Encoding.BERNOULLI:
        return BernoulliImage(settings=settings, timesteps=graph.timesteps)
    if graph.types[graph.input.name].dtype is DType.SPIKE:
        return SpikeInput(settings=settings)
    return DirectImage(settings=settings, axis=int(victim.has_time))


def ternary(settings: Settings, batch: Batch, spikes: Tensor, ascent: Tensor) -> Tensor:
    """The ternary gradient of each sample: converted, or, where it vanishes, that of random flips.

    Shapes: (T, N, ...).
    Source: algorithm 5, lines 9 to 18.
    """
    shape = (spikes.shape[0], *spikes.shape[2:])

    def draws(purpose: Purpose) -> Tensor:
        return uniform_draws(settings.seed, purpose, batch.samples, batch.steps, shape)

    converted = spike_gradient(ascent, spikes, draws(Purpose.SAMPLE) if settings.sampling else None)
    gone = vanishes(ascent)
    if not bool(gone.any()):
        return converted
    where = gone.reshape(1, -1, *(1,) * (spikes.ndim - 2))
    return torch.where(where, flipped(spikes, draws(Purpose.FLIP), settings.gamma), converted)


def pulled(batch: Batch, change: Tensor, settings: Settings) -> Tensor:
    """x' + change - pull * gradient of ||x' - x||^2."""
    moved = batch.now + change
    return moved if settings.pull == 0.0 else moved - settings.pull * 2 * (batch.now - batch.clean)
