"""Random torch networks for the tests of fused training: chains, residual blocks, poolings, neurons of all kinds.

Kernels of a population compile in 0.1 to 8 s, so that neurons and pooling windows come from short menus.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum

import torch
from hypothesis import strategies as st
from torch import Tensor, nn

from compiler.ir import Compare, Reset, Surrogate, SurrogateKind
from frontends.nn import LIF

T = 4  # a power of two, so that a mean over time is exact


class Lead(StrEnum):
    """How time and batch stand in the input."""

    MERGED = "merged"  # (T * N, ...)
    SEPARATE = "separate"  # (T, N, ...)
    IMAGE = "image"  # (N, ...), shown at each step


class Ending(StrEnum):
    """What the scores are."""

    SPIKES = "spikes"  # of the last layer, as a sequence
    MEAN = "mean"  # over time, of spikes
    CURRENTS = "currents"  # a linear layer without neurons, as a sequence
    RATE = "rate"  # a linear layer on the mean over time


class Norm(StrEnum):
    """Batch norms of a network."""

    NONE = "none"
    DYADIC = "dyadic"  # running statistics whose deviation is a power of two
    BATCH = "batch"


@dataclass(frozen=True, slots=True, kw_only=True)
class Network:
    """A module, and an input that makes its neurons fire."""

    module: nn.Module
    x: Tensor


NeuronMaker = Callable[[int, int | None], LIF]  # from channels and time steps


def _hard(channels: int, timesteps: int | None) -> LIF:
    return LIF(decay=0.5, threshold=1.0, timesteps=timesteps)


def _soft(channels: int, timesteps: int | None) -> LIF:
    return LIF(
        decay=0.5,
        threshold=0.75,
        input_scale=0.5,
        leak_bias=0.25,
        reset=Reset.SOFT,
        surrogate=Surrogate(kind=SurrogateKind.TRIANGLE, width=1.0),
        timesteps=timesteps,
    )


def _soft_delayed(channels: int, timesteps: int | None) -> LIF:
    return LIF(decay=0.5, threshold=1.0, reset=Reset.SOFT, reset_delay=True, compare=Compare.GT, timesteps=timesteps)


def _none(channels: int, timesteps: int | None) -> LIF:
    surrogate = Surrogate(width=1.0, scale=0.5, offset=0.25)
    return LIF(decay=0.25, threshold=0.5, reset=Reset.NONE, initial=0.25, surrogate=surrogate, timesteps=timesteps)


def _per_channel(channels: int, timesteps: int | None) -> LIF:
    """Each number differs by channel."""

    def spread(*values: float) -> Tensor:
        return torch.tensor(values).repeat(channels)[:channels]

    return LIF(
        decay=spread(0.5, 0.25, 0.0),
        threshold=spread(1.0, 0.5),
        input_scale=spread(1.0, 0.5, 2.0),
        leak_bias=spread(0.25, 0.0, -0.25),
        reset_value=spread(0.0, 0.25, -0.5),
        initial=spread(0.5, 0.0),
        detach_reset=True,
        timesteps=timesteps,
    )


def _smooth(kind: SurrogateKind) -> NeuronMaker:
    def make(channels: int, timesteps: int | None) -> LIF:
        surrogate = Surrogate(kind=kind, width=0.7)
        return LIF(decay=0.3, threshold=0.6, reset_value=-0.1, surrogate=surrogate, timesteps=timesteps)

    return make


DYADIC: Mapping[str, NeuronMaker] = {
    "hard": _hard,
    "soft": _soft,
    "soft_delayed": _soft_delayed,
    "none": _none,
    "per_channel": _per_channel,
}
SMOOTH: Mapping[str, NeuronMaker] = {str(kind): _smooth(kind) for kind in SurrogateKind}

# pooling that goes into the kernels of a neuron: one neuron each
WINDOWS: Mapping[str, Callable[[], nn.Module]] = {
    "hard": lambda: nn.AvgPool2d(2),
    "soft": lambda: nn.MaxPool2d((2, 1)),
    "per_channel": lambda: nn.AvgPool2d((1, 2), ceil_mode=True),
    "none": lambda: nn.MaxPool2d((1, 2)),
    "sigmoid": lambda: nn.MaxPool2d((2, 1), ceil_mode=True),
    "rectangle": lambda: nn.AvgPool2d((1, 2)),
}
# pooling that stays with torch
POOLS: tuple[Callable[[], nn.Module], ...] = (
    lambda: nn.AvgPool2d(2, stride=1),
    lambda: nn.AvgPool2d(2, stride=2, padding=1),
    lambda: nn.AvgPool2d(2, stride=2, padding=1, count_include_pad=False),
    lambda: nn.AvgPool2d(2, stride=2, padding=1, ceil_mode=True),
    lambda: nn.MaxPool2d(3, stride=2, padding=1),
    lambda: nn.MaxPool2d(2, stride=1),
    lambda: nn.MaxPool2d(3, stride=2, ceil_mode=True),
)


class Chain(nn.Module):
    """Layers on time and batch as one axis, from an input and to an output of any kind."""

    def __init__(self, layers: nn.Module, lead: Lead, ending: Ending, head: nn.Module | None = None) -> None:
        super().__init__()
        self.layers, self.lead, self.ending = layers, lead, ending
        self.head = head

    def forward(self, x: Tensor) -> Tensor:
        if self.lead is Lead.IMAGE:
            x = x.unsqueeze(0).repeat(T, *(1,) * x.ndim)
        if self.lead is not Lead.MERGED:
            x = x.flatten(0, 1)
        y: Tensor = self.layers(x)
        if self.ending in (Ending.MEAN, Ending.RATE):
            y = y.unflatten(0, (T, -1)).mean(0)
        elif self.lead is not Lead.MERGED:
            y = y.unflatten(0, (T, -1))
        return y if self.head is None else self.head(y)


class Residual(nn.Module):
    """A branch beside the identity, or beside another branch."""

    def __init__(self, branch: nn.Module, shortcut: nn.Module | None) -> None:
        super().__init__()
        self.branch, self.shortcut = branch, shortcut

    def forward(self, x: Tensor) -> Tensor:
        kept: Tensor = x if self.shortcut is None else self.shortcut(x)
        total: Tensor = kept + self.branch(x)
        return total


@st.composite
def networks(draw: st.DrawFn, *, norm: Norm, neurons: Mapping[str, NeuronMaker], batches: int = 3) -> Network:
    """Convolution blocks, perhaps a residual one, then linear layers; on a dyadic grid unless norm is `batch`."""
    return _Builder(draw, norm, neurons, batches).network()


class _Builder:
    """A network under construction, with the shape (C, H, W) or (F,) that its last layer gives."""

    def __init__(self, draw: st.DrawFn, norm: Norm, neurons: Mapping[str, NeuronMaker], batches: int) -> None:
        self.draw, self.norm, self.neurons, self.batches = draw, norm, neurons, batches
        self.generator = torch.Generator().manual_seed(draw(st.integers(0, 2**16)))
        self.shape: tuple[int, ...] = ()

    def network(self) -> Network:
        lead, ending = self.draw(st.sampled_from(Lead)), self.draw(st.sampled_from(Ending))
        self.shape = (self.draw(st.sampled_from([1, 2, 4])), *self.draw(st.sampled_from([(6, 6), (5, 8), (4, 3)])))
        x = self.example(lead)
        layers: list[nn.Module] = []
        for _ in range(self.draw(st.integers(0, 2))):
            layers += self.block()
        if self.draw(st.booleans()):
            layers += [self.conv(1, padding=0), *self.maybe_norm(), self.residual(), self.neuron()]
        layers += [nn.Flatten(), self.linear()]
        self.shape = (3,)
        if ending is not Ending.CURRENTS:
            layers.append(self.neuron())
        head = self.linear() if ending is Ending.RATE else None
        module = Chain(nn.Sequential(*layers), lead, ending, head)
        self.initialise(module)
        return Network(module=module.train(self.norm is not Norm.DYADIC), x=x)

    def example(self, lead: Lead) -> Tensor:
        batch = self.draw(st.integers(1 + (self.norm is Norm.BATCH), self.batches))
        rows = {Lead.MERGED: (T * batch,), Lead.SEPARATE: (T, batch), Lead.IMAGE: (batch,)}[lead]
        if self.norm is Norm.BATCH:
            return 2 * torch.rand(*rows, *self.shape, generator=self.generator) - 0.5
        return torch.randint(-1, 4, (*rows, *self.shape), generator=self.generator) / 2

    def block(self) -> list[nn.Module]:
        """Convolution, batch norm, perhaps pooling before the neurons or behind them."""
        kernel = self.draw(st.integers(1, 3))
        layers: list[nn.Module] = [self.conv(kernel, padding=kernel // 2), *self.maybe_norm()]
        place = self.draw(st.sampled_from(["no pool", "window", "behind", "before"]))
        if place == "before":
            layers.append(self.pool(self.draw(st.sampled_from(POOLS))()))
        name = self.draw(st.sampled_from(sorted(self.neurons)))
        layers.append(self.neurons[name](self.shape[0], T))
        if place == "window" and name in WINDOWS:
            layers.append(self.pool(WINDOWS[name]()))
        elif place == "behind":
            layers.append(self.pool(self.draw(st.sampled_from(POOLS))()))
        return layers

    def residual(self) -> Residual:
        wide = self.draw(st.booleans())
        before = self.shape
        branch = [self.neuron(), self.conv(3, padding=1, channels=3 if wide else before[0], stride=1)]
        branch += self.maybe_norm()
        shortcut: nn.Module | None = None
        if wide:
            after, self.shape = self.shape, before
            shortcut = nn.Sequential(self.neuron(), self.conv(1, padding=0, channels=3, stride=1), *self.maybe_norm())
            self.shape = after
        return Residual(nn.Sequential(*branch), shortcut)

    def conv(self, kernel: int, *, padding: int, channels: int | None = None, stride: int | None = None) -> nn.Conv2d:
        before = self.shape[0]
        after = channels or self.draw(st.sampled_from([2, 4, 5]))
        groups = 2 if before % 2 == 0 and after % 2 == 0 and self.draw(st.booleans()) else 1
        stride = stride or self.draw(st.sampled_from([1, 1, 2]))
        bias = self.draw(st.booleans())
        layer = nn.Conv2d(before, after, kernel, stride=stride, padding=padding, groups=groups, bias=bias)
        self.shape = tuple(layer(torch.zeros(1, *self.shape)).shape[1:])
        return layer

    def pool(self, layer: nn.Module) -> nn.Module:
        """The pooling, unless the maps are too small or would leave a rest that its population does not expect."""
        height, width = self.shape[1:]
        kernel = layer.kernel_size if isinstance(layer.kernel_size, tuple) else (layer.kernel_size,) * 2  # type: ignore[union-attr]
        is_window = layer.stride in (layer.kernel_size, None) and layer.padding == 0
        rest = any(size % step for size, step in zip((height, width), kernel, strict=True))
        fits = height >= kernel[0] and width >= kernel[1]
        if not fits or (is_window and rest != bool(layer.ceil_mode)):
            return nn.Identity()
        self.shape = tuple(layer(torch.zeros(1, *self.shape)).shape[1:])
        return layer

    def linear(self) -> nn.Linear:
        features = 1
        for size in self.shape:
            features *= size
        return nn.Linear(features, 3, bias=self.draw(st.booleans()))

    def maybe_norm(self) -> list[nn.Module]:
        if self.norm is Norm.NONE or self.draw(st.booleans()):
            return []
        return [nn.BatchNorm2d(self.shape[0], eps=2.0**-10 if self.norm is Norm.DYADIC else 1e-5)]

    def neuron(self) -> LIF:
        return self.neurons[self.draw(st.sampled_from(sorted(self.neurons)))](self.shape[0], T)

    def initialise(self, module: nn.Module) -> None:
        with torch.no_grad():
            for child in module.modules():
                if isinstance(child, nn.Conv2d | nn.Linear):
                    self.fill_layer(child)
                elif isinstance(child, nn.BatchNorm2d):
                    self.fill_norm(child)

    def fill_layer(self, layer: nn.Conv2d | nn.Linear) -> None:
        for parameter in layer.parameters():
            if self.norm is Norm.BATCH:
                fan_in = layer.weight[0].numel()
                parameter.copy_(3 * torch.randn(parameter.shape, generator=self.generator) / fan_in**0.5)
            else:
                parameter.copy_(self.choice(parameter, -1, -0.5, 0, 0.5, 0.5, 1))

    def fill_norm(self, norm: nn.BatchNorm2d) -> None:
        """Of running statistics, the variance plus eps is 1/4, 1 or 4."""
        if self.norm is Norm.BATCH:
            norm.weight.copy_(torch.rand(norm.weight.shape, generator=self.generator) + 0.5)
            norm.bias.copy_(torch.rand(norm.bias.shape, generator=self.generator))
            return
        assert norm.running_mean is not None
        assert norm.running_var is not None
        norm.weight.copy_(self.choice(norm.weight, 0.5, 1, 2))
        norm.bias.copy_(self.choice(norm.bias, -0.5, 0, 0.5))
        norm.running_mean.copy_(self.choice(norm.running_mean, -0.5, 0, 1))
        norm.running_var.copy_(self.choice(norm.running_var, 0.25, 1, 4) - norm.eps)

    def choice(self, like: Tensor, *values: float) -> Tensor:
        return torch.tensor(values)[torch.randint(len(values), like.shape, generator=self.generator)]
