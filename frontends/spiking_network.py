"""Chains of layers and neurons as torch modules, built from a zoo entry."""

from __future__ import annotations

import math
from collections import OrderedDict

import torch
from torch import Tensor, nn

from frontends.nn import LIF
from frontends.notation import Conv, Dense, Notation, Pool, parse
from frontends.zoo import InputKind, LastLayer, Neuron, Pooling, ZooEntry
from hwmodel.errors import CompileError, Loc

# Fresh weights are scaled for these second moments, so that a fraction of the neurons fires at each depth.
IMAGE_MOMENT = 1 / 3  # of a uniform image
EVENT_MOMENT = 0.2  # spike probability of an input of events
HIDDEN_MOMENT = 0.15  # firing rate aimed at
DRIVE = 1.0  # standard deviation of a layer's result, in thresholds


class SpikingNetwork(nn.Module):
    """A chain `layers` over merged time and batch, then the mean over time, then `head` if there is one.

    Shapes: images (N, C, H, W), or spikes (T, N, C, H, W) with `takes_spikes`; result (N, classes).
    """

    def __init__(self, layers: nn.Sequential, *, takes_spikes: bool, head: nn.Linear | None = None) -> None:
        super().__init__()
        self.layers = layers
        self.takes_spikes = takes_spikes
        self.head = head

    @property
    def timesteps(self) -> int:
        """Time steps of the sequence, as the neurons have them."""
        return neuron_timesteps(self)

    def forward(self, x: Tensor) -> Tensor:
        timesteps = self.timesteps
        if not self.takes_spikes:
            x = x.unsqueeze(0).repeat(timesteps, 1, 1, 1, 1)
        elif x.shape[0] != timesteps:
            raise CompileError(
                f"input has {x.shape[0]} time steps, the network {timesteps}",
                Loc(type(self).__name__),
                hint="spikes are (T, N, C, H, W)",
            )
        merged: Tensor = self.layers(x.flatten(0, 1))
        scores: Tensor = mean_over_time(merged, timesteps)
        if self.head is not None:
            scores = self.head(scores)
        return scores


def spiking_network(entry: ZooEntry, *, seed: int, timesteps: int) -> SpikingNetwork:
    """The entry's chain, freshly initialised from the seed, in evaluation mode."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        return _Chain(entry, timesteps).build(parse(entry.notation)).eval()


class _Chain:
    """Collects the modules of one network while its feature map shrinks."""

    def __init__(self, entry: ZooEntry, timesteps: int) -> None:
        self.entry = entry
        self.timesteps = timesteps
        self.shape: tuple[int, ...] = entry.input_shape
        self.moment = IMAGE_MOMENT if entry.input_kind is InputKind.IMAGE else EVENT_MOMENT
        self.modules: OrderedDict[str, nn.Module] = OrderedDict()

    def build(self, notation: Notation) -> SpikingNetwork:
        entry = self.entry
        last = len(notation.layers)
        head: nn.Linear | None = None
        for index, layer in enumerate(notation.layers, start=1):
            match layer:
                case Dense() if index == last and entry.last_layer is LastLayer.LINEAR_ON_RATE:
                    head = self._dense(layer, index)
                    break
                case Conv():
                    following = notation.layers[index] if index < last else None
                    self.modules[f"conv{index}"] = self._conv(layer)
                    if entry.batch_norm:
                        self.modules[f"norm{index}"] = nn.BatchNorm2d(layer.channels)
                    if not (entry.pooling is Pooling.CURRENTS and isinstance(following, Pool)):
                        self._neuron(index)
                case Dense():
                    self.modules[f"fc{index}"] = self._dense(layer, index)
                    if entry.batch_norm:
                        self.modules[f"norm{index}"] = nn.BatchNorm1d(layer.features)
                    self._neuron(index)
                case Pool():
                    self._pool(layer, index)
            if entry.dropout and entry.dropout[index - 1] > 0.0:
                self.modules[f"dropout{index}"] = nn.Dropout(entry.dropout[index - 1])
        takes_spikes = entry.input_kind is InputKind.SPIKES
        return SpikingNetwork(nn.Sequential(self.modules), takes_spikes=takes_spikes, head=head)

    def _conv(self, layer: Conv) -> nn.Conv2d:
        channels, height, width = self.shape
        padding = layer.kernel // 2
        conv = nn.Conv2d(channels, layer.channels, layer.kernel, stride=layer.stride, padding=padding)
        extents = [(n + 2 * padding - layer.kernel) // layer.stride + 1 for n in (height, width)]
        self.shape = (layer.channels, *extents)
        self._scale(conv.weight)
        return conv

    def _dense(self, layer: Dense, index: int) -> nn.Linear:
        if len(self.shape) > 1:
            self.modules[f"flatten{index}"] = nn.Flatten()
        linear = nn.Linear(math.prod(self.shape), layer.features)
        self.shape = (layer.features,)
        self._scale(linear.weight)
        return linear

    def _pool(self, layer: Pool, index: int) -> None:
        ceil = self.entry.pool_ceil
        self.modules[f"pool{index}"] = nn.AvgPool2d(layer.kernel, ceil_mode=ceil, count_include_pad=not ceil)
        channels, height, width = self.shape
        self.shape = (channels, *((n + ceil * (layer.kernel - 1)) // layer.kernel for n in (height, width)))
        self._neuron(index)

    def _neuron(self, index: int) -> None:
        self.modules[f"lif{index}"] = neuron_module(self.entry.neuron, self.timesteps)

    def _scale(self, weight: Tensor) -> None:
        scale_weight(weight, self.entry.neuron, self.moment)
        self.moment = HIDDEN_MOMENT


def neuron_module(neuron: Neuron, timesteps: int) -> LIF:
    """The torch module of a zoo entry's neuron."""
    return LIF(decay=neuron.decay, threshold=neuron.threshold, surrogate=neuron.surrogate, timesteps=timesteps)


def mean_over_time(merged: Tensor, timesteps: int) -> Tensor:
    """Shapes: (T * N, ...) time-major -> (N, ...)."""
    sequence: Tensor = merged.unflatten(0, (timesteps, -1))  # type: ignore[no-untyped-call]
    return sequence.mean(0)


def neuron_timesteps(network: nn.Module) -> int:
    """Time steps that the network's neurons are set to."""
    timesteps = next(part.timesteps for part in network.modules() if isinstance(part, LIF))
    assert timesteps is not None
    return timesteps


def scale_weight(weight: Tensor, neuron: Neuron, moment: float) -> None:
    """Draw a fresh weight: its layer's result deviates by DRIVE thresholds for inputs of that moment."""
    deviation = DRIVE * neuron.threshold / math.sqrt(weight[0].numel() * moment)
    nn.init.normal_(weight, 0.0, deviation)
