"""What an attacker may change: spikes, intensities behind a Bernoulli code, or a real-valued input."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from compiler.attack.budget import Floats, Norm, kept
from compiler.attack.network import Network
from compiler.attack.randomness import Purpose, uniform_draws
from compiler.attack.settings import Flow, Settings
from compiler.attack.spike_gradients import flipped, spike_gradient, vanishes
from compiler.ir import CompileError, DType, Encoding


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """Samples in the midst of an attack, each in its own iteration. Shapes: (N, ...) or (T, N, ...)."""

    samples: Sequence[int]
    steps: Sequence[int]
    clean: Tensor
    now: Tensor


@dataclass(frozen=True, slots=True)
class View:
    """What the network got, and the direction of the attack by it; of one code where codes are drawn."""

    seen: Tensor
    ascent: Tensor


class Attackable(Protocol):
    """One kind of input."""

    @property
    def axis(self) -> int:
        """Of the samples."""

    def start(self, batch: Batch) -> Tensor:
        """Where a restart begins, inside the budget."""

    def seen(self, batch: Batch, copy: int = 0) -> Tensor:
        """What the network gets; of several codes for one step, that of number `copy`."""

    def changed(self, batch: Batch, views: Sequence[View]) -> Tensor:
        """The inputs after one iteration, inside the budget; a view for each code."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SpikeInput:
    """Binary spikes (T, N, ...), of which some are flipped.

    Of a budget stay the flips, old and new alike, by which the loss grows most in its first order at this input:
    ascent * (x' - x), the earlier element among equals. Where the gradient vanishes, the random flipper's own draws
    choose among them. A budget's l2 bound r lets r^2 spikes flip, its linf bound any number.

    Source: algorithm 5, spike input.
    """

    settings: Settings
    axis: int = 1

    def start(self, batch: Batch) -> Tensor:
        return batch.clean

    def seen(self, batch: Batch, copy: int = 0) -> Tensor:
        return batch.now

    def changed(self, batch: Batch, views: Sequence[View]) -> Tensor:
        after = batch.now + ternary(self.settings, batch, views)[0]
        budget = self.settings.budget
        most = None if budget is None else budget.flips
        if most is None:
            return after
        worth = self._worth(batch, views[0].ascent, after)

        def project(n: int, before: Floats, own: Floats) -> Floats:
            return kept(before, own, worth[:, n].numpy(), most)

        return each(batch, after, self.axis, project)

    def _worth(self, batch: Batch, ascent: Tensor, after: Tensor) -> Tensor:
        gain = ascent * (after - batch.clean)
        gone = vanishes(ascent)
        if not bool(gone.any()):
            return gain
        shape = (after.shape[0], *after.shape[2:])
        draws = uniform_draws(self.settings.seed, Purpose.FLIP, batch.samples, batch.steps, shape)
        return torch.where(along(gone, gain.ndim, self.axis), -draws, gain)


@dataclass(frozen=True, slots=True, kw_only=True)
class BernoulliImage:
    """Intensities (N, ...) in [0, 1], drawn anew as spikes at each iteration.

    x' <- clip(x' + step * mean over t of the ternary gradient - pull * 2 (x' - x)), brought back to the budget

    Of several codes the mean is over all of them; spikes are flipped at random only where the gradient vanishes at
    each of them.

    Source: algorithm 5, image input; equation 5.9 for the pull.
    """

    settings: Settings
    timesteps: int
    axis: int = 0

    @property
    def step(self) -> float:
        """What one unit of the mean ternary gradient changes."""
        return 1.0 if self.settings.step is None else self.settings.step

    def start(self, batch: Batch) -> Tensor:
        return batch.clean

    def seen(self, batch: Batch, copy: int = 0) -> Tensor:
        shape = (self.timesteps, *batch.now.shape[1:])
        draws = uniform_draws(self.settings.seed, Purpose.ENCODE, batch.samples, batch.steps, shape, copy)
        return (draws < batch.now).to(torch.float32)

    def changed(self, batch: Batch, views: Sequence[View]) -> Tensor:
        means = [change.mean(0) for change in ternary(self.settings, batch, views)]
        change = self.step * torch.stack(means).mean(0)
        return within(batch, pulled(batch, change, self.settings).clamp(0, 1), self.axis, self.settings)


@dataclass(frozen=True, slots=True, kw_only=True)
class DirectImage:
    """A real-valued input (N, ...) or (T, N, ...) in [0, 1] that the network gets as it is.

    x' <- clip(x' + step * sign(gradient) - pull * 2 (x' - x)), brought back to the budget;
    without a gradient, elements move by a random sign

    A restart begins at x + r u, u uniform in [-1, 1), clipped and brought back to the budget; r is a linf budget's
    bound, one step under any other.

    Source: equation 5.3.
    """

    settings: Settings
    axis: int = 0

    @property
    def step(self) -> float:
        """What a gradient's sign changes."""
        budget = self.settings.budget
        if self.settings.step is not None:
            return self.settings.step
        is_whole = self.settings.flow is Flow.FGSM and budget is not None and budget.norm is Norm.LINF
        return budget.bound if budget is not None and is_whole else 0.02

    def start(self, batch: Batch) -> Tensor:
        budget = self.settings.budget
        reach = budget.bound if budget is not None and budget.norm is Norm.LINF else self.step
        after = batch.clean + reach * (2 * self._draws(Purpose.START, batch) - 1)
        return within(batch, after.clamp(0, 1), self.axis, self.settings)

    def seen(self, batch: Batch, copy: int = 0) -> Tensor:
        return batch.now

    def changed(self, batch: Batch, views: Sequence[View]) -> Tensor:
        (view,) = views
        draws, gamma = self._draws(Purpose.FLIP, batch), self.settings.gamma
        random = (draws < gamma).float() - (draws < gamma / 2).float() * 2
        gone = vanishes(view.ascent if self.axis else view.ascent.unsqueeze(0))
        change = self.step * torch.where(along(gone, draws.ndim, self.axis), random, view.ascent.sign())
        return within(batch, pulled(batch, change, self.settings).clamp(0, 1), self.axis, self.settings)

    def _draws(self, purpose: Purpose, batch: Batch) -> Tensor:
        """One of each element."""
        own = list(batch.now.shape)
        del own[self.axis]
        return uniform_draws(self.settings.seed, purpose, batch.samples, batch.steps, (1, *own))[0].movedim(
            0, self.axis
        )


def attackable(victim: Network, settings: Settings) -> Attackable:
    """The kind of input that a network has.

    Raises: CompileError for several draws where the network draws none, and for a budget that lets no spike flip.
    """
    graph = victim.graph
    node = graph.input
    if victim.encoding is Encoding.BERNOULLI:
        return BernoulliImage(settings=settings, timesteps=graph.timesteps)
    if settings.draws > 1:
        raise CompileError(
            f"{node.name}: {settings.draws} draws are to be averaged, and the network draws none",
            node.loc,
            hint="several draws are for Bernoulli codes",
        )
    if graph.types[node.name].dtype is not DType.SPIKE:
        return DirectImage(settings=settings, axis=int(victim.has_time))
    if settings.budget is not None:
        settings.budget.check_spikes(node.loc)
    return SpikeInput(settings=settings)


def ternary(settings: Settings, batch: Batch, views: Sequence[View]) -> list[Tensor]:
    """The ternary gradient of each sample by each code: converted, or, where all vanish, that of random flips.

    Shapes: (T, N, ...) each.
    Source: algorithm 5, lines 9 to 18.
    """
    gone = torch.stack([vanishes(view.ascent) for view in views]).all(0)
    shape = (views[0].seen.shape[0], *views[0].seen.shape[2:])
    changes = []
    for copy, view in enumerate(views):

        def draws(purpose: Purpose, copy: int = copy) -> Tensor:
            return uniform_draws(settings.seed, purpose, batch.samples, batch.steps, shape, copy)

        change = spike_gradient(view.ascent, view.seen, draws(Purpose.SAMPLE) if settings.sampling else None)
        if bool(gone.any()):
            flips = flipped(view.seen, draws(Purpose.FLIP), settings.gamma)
            change = torch.where(along(gone, change.ndim, 1), flips, change)
        changes.append(change)
    return changes


def pulled(batch: Batch, change: Tensor, settings: Settings) -> Tensor:
    """x' + change - pull * gradient of ||x' - x||^2."""
    moved = batch.now + change
    return moved if settings.pull == 0.0 else moved - settings.pull * 2 * (batch.now - batch.clean)


def within(batch: Batch, after: Tensor, axis: int, settings: Settings) -> Tensor:
    """Each sample brought back to the budget."""
    budget = settings.budget
    if budget is None:
        return after
    return each(batch, after, axis, lambda n, before, own: budget.projected(before, own))


def each(batch: Batch, after: Tensor, axis: int, project: Callable[[int, Floats, Floats], Floats]) -> Tensor:
    """Samples projected one by one: their place in the batch, clean values and values."""
    rows = []
    for n in range(after.shape[axis]):
        before, own = (np.ascontiguousarray(x.select(axis, n).numpy()) for x in (batch.clean, after))
        rows.append(torch.from_numpy(project(n, before, own)))
    return torch.stack(rows, axis)


def along(flags: Tensor, ndim: int, axis: int) -> Tensor:
    """A value of each sample, shaped to broadcast over all."""
    shape = [1] * ndim
    shape[axis] = -1
    return flags.reshape(shape)
