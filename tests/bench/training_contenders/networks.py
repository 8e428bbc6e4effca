"""The networks of the benchmark as chains of parts, so that each framework brings its own layer classes."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from frontends.notation import Conv, Dense, Pool, parse
from frontends.spiking_network import HIDDEN_MOMENT, IMAGE_MOMENT, scale_weight
from frontends.zoo import Neuron

DECAY, THRESHOLD = 0.25, 0.5  # of every neuron of every contender
SEED = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Network:
    """A chain: convolutions with batch normalisation, each convolution and linear layer with its neurons."""

    notation: str
    input_shape: tuple[int, int, int]
    batch: int
    train_epochs: int  # unless told otherwise, where the network is trained first

    @property
    def layer_names(self) -> list[str]:
        """Of the layers with neurons, in order, as the notation has them."""
        return [word for word in self.notation.split("-") if not word.startswith("AP")]


NETWORKS = {
    "cifar": Network(
        notation="64C3-128C3-AP2-256C3-256C3-AP2-512C3-512C3-512FC-512FC-10FC",
        input_shape=(3, 32, 32),
        batch=4,
        train_epochs=2,
    ),
    "small": Network(notation="32C3-64C3-AP2-128C3-AP2-256FC-10FC", input_shape=(3, 32, 32), batch=16, train_epochs=6),
    "tiny": Network(notation="8C3-AP2-16FC-10FC", input_shape=(3, 8, 8), batch=2, train_epochs=3),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """How one framework makes each part; torch's own classes unless it brings others."""

    neuron: Callable[[], nn.Module]
    conv: type[nn.Module] = nn.Conv2d
    norm: type[nn.Module] = nn.BatchNorm2d
    pool: type[nn.Module] = nn.AvgPool2d
    flatten: type[nn.Module] = nn.Flatten
    linear: type[nn.Module] = nn.Linear


def chain(network: Network, parts: Parts) -> list[nn.Module]:
    """The parts in order: [conv, norm, neuron] or [linear, neuron], pools between them, one flatten."""
    modules: list[nn.Module] = []
    channels, height, width = network.input_shape
    features: int | None = None
    for layer in parse(network.notation).layers:
        match layer:
            case Conv():
                conv = parts.conv(channels, layer.channels, layer.kernel, padding=layer.kernel // 2)
                modules += [conv, parts.norm(layer.channels), parts.neuron()]
                channels = layer.channels
            case Pool():
                modules.append(parts.pool(layer.kernel))
                height, width = height // layer.kernel, width // layer.kernel
            case Dense():
                if features is None:
                    modules.append(parts.flatten())
                    features = math.prod((channels, height, width))
                modules += [parts.linear(features, layer.features), parts.neuron()]
                features = layer.features
    return modules


def initialise(model: nn.Module) -> None:
    """The same weights for every contender, scaled so that a fraction of the neurons fires at each depth."""
    torch.manual_seed(SEED)
    moment = IMAGE_MOMENT
    for part in model.modules():
        if isinstance(part, nn.Conv2d | nn.Linear):
            scale_weight(part.weight, Neuron(decay=DECAY, threshold=THRESHOLD), moment)
            assert part.bias is not None
            nn.init.zeros_(part.bias)
            moment = HIDDEN_MOMENT
