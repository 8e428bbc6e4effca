"""The network in plain PyTorch, four ways. Surrogate of all four: the rectangle of equation 2.6."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx
from torch.utils.checkpoint import checkpoint

from compiler.ir import Surrogate
from frontends.nn import LIF
from frontends.spiking_network import mean_over_time
from tests.bench.training_contenders.networks import DECAY, THRESHOLD, Parts, chain
from tests.bench.training_contenders.setting import Setting

WINDOW = Surrogate()


class TimeMerged(nn.Module):
    """Layer after layer over all time steps at once.

    Shapes: (T * N, C, H, W), or (N, C, H, W) if the module repeats its image itself -> rates (N, classes).
    """

    def __init__(self, layers: list[nn.Module], *, timesteps: int, repeats: bool) -> None:
        super().__init__()
        self.layers = nn.Sequential(*layers)
        self.timesteps = timesteps
        self.repeats = repeats

    def forward(self, x: Tensor) -> Tensor:
        if self.repeats:
            x = x.unsqueeze(0).repeat(self.timesteps, 1, 1, 1, 1).flatten(0, 1)
        return mean_over_time(self.run_layers(x), self.timesteps)

    def run_layers(self, x: Tensor) -> Tensor:
        result: Tensor = self.layers(x)
        return result


class Checkpointed(TimeMerged):
    """Keeps what convolutions and linear layers give, computes the parts between them again in backward.

    Its batch normalisation updates the running statistics twice a step, as checkpointing does.
    """

    def __init__(self, layers: list[nn.Module], *, timesteps: int, repeats: bool) -> None:
        super().__init__(layers, timesteps=timesteps, repeats=repeats)
        ends = [0, *(i + 1 for i, part in enumerate(layers) if isinstance(part, nn.Conv2d | nn.Linear)), len(layers)]
        self.segments = list(pairwise(ends))

    def run_layers(self, x: Tensor) -> Tensor:
        (first, *following) = (self.layers[start:end] for start, end in self.segments)
        x = first(x)
        for segment in following:
            x = checkpoint(segment, x, use_reentrant=False)
        return x


class _Rectangle(torch.autograd.Function):
    """Spikes forward, the rectangle backward, in operations that torch.compile traces."""

    @staticmethod
    def forward(ctx: FunctionCtx, m: Tensor) -> Tensor:
        ctx.save_for_backward(m)
        return (m >= THRESHOLD).to(m.dtype)

    @staticmethod
    def backward(ctx: FunctionCtx, grad: Tensor) -> Tensor:
        (m,) = ctx.saved_tensors  # type: ignore[attr-defined]
        return grad * ((m - THRESHOLD).abs() < WINDOW.width).to(m.dtype)


class StepLIF(nn.Module):
    """One time step of the neuron; carries its membrane until `reset`."""

    def __init__(self) -> None:
        super().__init__()
        self.v: Tensor | None = None

    def reset(self) -> None:
        self.v = None

    def forward(self, drive: Tensor) -> Tensor:
        m = drive if self.v is None else DECAY * self.v + drive
        spike: Tensor = _Rectangle.apply(m)  # type: ignore[no-untyped-call]
        self.v = m * (1 - spike)
        return spike


class EquationLIF(nn.Module):
    """Equation 4.1 as it is printed, m[t] = decay * m[t-1] * (1 - s[t-1]) + y[t], in a loop over time.

    Shapes: (T * N, ...) time-major -> the same.
    """

    def __init__(self, timesteps: int) -> None:
        super().__init__()
        self.timesteps = timesteps

    def forward(self, x: Tensor) -> Tensor:
        spikes: list[Tensor] = []
        m = x
        for y in x.unflatten(0, (self.timesteps, -1)):
            m = DECAY * m * (1 - spikes[-1]) + y if spikes else y
            spikes.append(_Rectangle.apply(m))  # type: ignore[no-untyped-call]
        return torch.stack(spikes).flatten(0, 1)


class PlainLIF(nn.Module):
    """As `EquationLIF` with two tensors a step less to keep: what torch.compile is given.

    Shapes: (T * N, ...) time-major -> the same.
    """

    def __init__(self, timesteps: int) -> None:
        super().__init__()
        self.timesteps = timesteps

    def forward(self, x: Tensor) -> Tensor:
        v: Tensor | None = None
        spikes = []
        for drive in x.unflatten(0, (self.timesteps, -1)):
            m = drive if v is None else DECAY * v + drive
            spike: Tensor = _Rectangle.apply(m)  # type: ignore[no-untyped-call]
            v = m * (1 - spike)
            spikes.append(spike)
        return torch.stack(spikes).flatten(0, 1)


class TimeOuter(nn.Module):
    """All layers at one time step, then the next step; batch statistics are those of a step.

    Shapes: (T, N, C, H, W), or (N, C, H, W) for an image shown at every step -> rates (N, classes).
    """

    def __init__(self, layers: list[nn.Module], *, timesteps: int, repeats: bool) -> None:
        super().__init__()
        self.layers = nn.Sequential(*layers)
        self.timesteps = timesteps
        self.repeats = repeats

    def forward(self, x: Tensor) -> Tensor:
        for part in self.layers:
            if isinstance(part, StepLIF):
                part.reset()
        steps = [self.layers(x if self.repeats else x[t]) for t in range(self.timesteps)]
        return torch.stack(steps).mean(0)


def time_merged(setting: Setting) -> TimeMerged:
    return setting.prepared(TimeMerged(_layers(setting), timesteps=setting.timesteps, repeats=setting.repeated))


def time_outer(setting: Setting) -> nn.Module:
    layers = chain(setting.shape, Parts(neuron=StepLIF))
    return setting.prepared(TimeOuter(layers, timesteps=setting.timesteps, repeats=setting.repeated))


def checkpointed(setting: Setting) -> nn.Module:
    return setting.prepared(Checkpointed(_layers(setting), timesteps=setting.timesteps, repeats=setting.repeated))


def plain(setting: Setting) -> nn.Module:
    layers = chain(setting.shape, Parts(neuron=lambda: PlainLIF(setting.timesteps)))
    return setting.prepared(TimeMerged(layers, timesteps=setting.timesteps, repeats=setting.repeated))


def compiled(setting: Setting) -> nn.Module:
    model: nn.Module = torch.compile(plain(setting), fullgraph=True, dynamic=False)
    return model


def own_layers(setting: Setting) -> nn.Module:
    """The network of spikec's own neurons, which `spikec.fuse` takes."""

    def neuron() -> nn.Module:
        return LIF(decay=DECAY, threshold=THRESHOLD, surrogate=WINDOW, timesteps=setting.timesteps)

    layers = chain(setting.shape, Parts(neuron=neuron))
    return setting.prepared(TimeMerged(layers, timesteps=setting.timesteps, repeats=setting.repeated))


def _layers(setting: Setting) -> list[nn.Module]:
    return chain(setting.shape, Parts(neuron=lambda: EquationLIF(setting.timesteps)))
