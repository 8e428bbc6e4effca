"""The networks of the dissertation by name, completed where print lost them, and small ones for digits."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from types import MappingProxyType
from typing import TYPE_CHECKING

from compiler.ir.values import Encoding, Surrogate
from hwmodel.errors import CompileError, Loc

if TYPE_CHECKING:
    from torch import nn


class InputKind(StrEnum):
    """What a network's forward takes."""

    IMAGE = "image"  # (N, C, H, W), shown to the first layer at every time step
    SPIKES = "spikes"  # (T, N, C, H, W)


class Pooling(StrEnum):
    """Where the neurons of a pooled layer stand; both forms keep each convolution's input binary."""

    SPIKES = "spikes"  # conv -> LIF -> pool -> LIF
    CURRENTS = "currents"  # conv -> pool -> LIF


class LastLayer(StrEnum):
    """How the scores come from the last layer."""

    SPIKE_RATE = "spike_rate"  # mean over time of the last neurons' spikes
    LINEAR_ON_RATE = "linear_on_rate"  # linear layer on the mean spikes, no neuron behind it


@dataclass(frozen=True, slots=True, kw_only=True)
class Neuron:
    """The neuron of equations 2.1, 2.2 and 2.6 with hard reset to zero."""

    decay: float = 0.25
    threshold: float = 0.5
    surrogate: Surrogate = field(default_factory=Surrogate)


@dataclass(frozen=True, slots=True, kw_only=True)
class ZooEntry:
    """One network: its printed structure and what else is needed to build it."""

    name: str
    source: str  # where the structure is printed, or "ours"
    notation: str  # empty for residual networks
    input_shape: tuple[int, int, int]  # C, H, W
    input_kind: InputKind = InputKind.IMAGE
    coding: Encoding | None = Encoding.DIRECT  # how an image becomes the input; None: events only
    timesteps: int = 10
    neuron: Neuron = field(default_factory=Neuron)
    batch_norm: bool = False  # between each layer with weights and its neuron
    pooling: Pooling = Pooling.SPIKES
    pool_ceil: bool = False  # keep a last partial window, averaged over its valid elements
    last_layer: LastLayer = LastLayer.SPIKE_RATE
    dropout: tuple[float, ...] = ()  # behind each layer of the notation in training; empty: none

    def example_shape(self, batch: int, timesteps: int) -> tuple[int, ...]:
        """Shape of an input that the network takes."""
        if self.input_kind is InputKind.IMAGE:
            return (batch, *self.input_shape)
        return (timesteps, batch, *self.input_shape)


def names() -> tuple[str, ...]:
    """Every name that `build` knows."""
    return tuple(_ENTRIES)


def entry(name: str) -> ZooEntry:
    """The network's description.

    Raises: CompileError for an unknown name.
    """
    if name not in _ENTRIES:
        known = "known: " + ", ".join(names())
        raise CompileError("is no network of the zoo", Loc(f"zoo:{name}"), hint=known)
    return _ENTRIES[name]


def build(name: str, *, seed: int = 0, timesteps: int = 10) -> nn.Module:
    """A freshly initialised network in evaluation mode; the global random state stays as it was.

    Shapes: forward takes `entry(name).example_shape(N, timesteps)` and gives scores (N, classes).
    Raises: CompileError for an unknown name or no time steps.
    """
    found = entry(name)
    if timesteps < 1:
        raise CompileError(f"timesteps is {timesteps}, must be at least 1", Loc(f"zoo:{name}"))
    if name == "resnet34":
        from frontends.resnet import spiking_resnet34

        return spiking_resnet34(found, seed=seed, timesteps=timesteps)
    from frontends.spiking_network import spiking_network

    return spiking_network(found, seed=seed, timesteps=timesteps)


_EVENTS = "128C3-128C3-AP2-384C3-384C3-AP2-512FC-512FC-10FC"
_IMAGES = "64C3(Encoding)-128C3-AP2-256C3-256C3-AP2-512C3-512C3-512FC-512FC-10FC"
_IMAGENET = "64C3S2(Encoding)-128C3S2-256C3S2-256C3S2-384C3-256C3-256C3S2-4096FC-4096FC-1000FC"
_CIFAR_LARGE = "128C3(Encoding)-128C3-128C3S2-256C3-256C3-256C3S2-512C3-512C3-512C3S2-1024FC-512FC-10FC"
_CIFAR_MEDIUM = "128C3(Encoding)-128C3S2-256C3-256C3S2-512C3-512C3S2-1024FC-512FC-10FC"
_CIFAR_SMALL = "128C3S2(Encoding)-256C3S2-512C3S2-1024FC-512FC-10FC"
_ATTACK_SPIKE = "128C3-128C3-AP2-384C3-384C3-AP2-1024FC-512FC-10FC"
_ATTACK_IMAGE = "128C3-256C3-AP2-512C3-AP2-1024C3-512C3-1024FC-512FC-10FC"
_ATTACK_IMAGE_SMALL = "16C3-32C3-AP2-32C3-AP2-64C3-32C3-128FC-64FC-10FC"
_ATTACK_GESTURE = "64C3-128C3-AP2-128C3-AP2-256FC-11FC"

# table 5.6: th_f, eta as the surrogate's peak, th_r - th_l (printed for events only; 1 in the released code)
_ATTACK_SPIKE_NEURON = Neuron(threshold=0.3, surrogate=Surrogate(width=0.25, scale=0.3))
_ATTACK_IMAGE_NEURON = Neuron(threshold=0.3, surrogate=Surrogate(width=0.5, scale=0.25))
_ATTACK_IMAGE_DROPOUT = (0.25, 0.25, 0.0, 0.25, 0.0, 0.5, 0.25, 0.25, 0.25, 0.0)
_LOW_THRESHOLD = Neuron(threshold=0.25)

_DIGITS_SHAPE = (1, 8, 8)
_MNIST_SHAPE = (1, 28, 28)
_CIFAR_SHAPE = (3, 32, 32)
_IMAGENET_SHAPE = (3, 224, 224)

_IMAGE_NETWORKS = (
    ZooEntry(name="mnist", source="table 3.4", notation=_IMAGES, input_shape=_MNIST_SHAPE),
    ZooEntry(name="cifar10", source="table 3.4", notation=_IMAGES, input_shape=_CIFAR_SHAPE),
    ZooEntry(name="imagenet", source="table 3.4", notation=_IMAGENET, input_shape=_IMAGENET_SHAPE),
    ZooEntry(
        name="fpga",
        source="table 3.7",
        notation="64C5(Encoding)-AP2-64C5-AP2-128FC-10FC",
        input_shape=_MNIST_SHAPE,
    ),
)

_DVS = ZooEntry(
    name="nmnist",
    source="table 3.4",
    notation=_EVENTS,
    input_shape=(2, 32, 32),
    input_kind=InputKind.SPIKES,
    coding=None,
)
_EVENT_NETWORKS = (
    _DVS,
    replace(_DVS, name="cifar10dvs", input_shape=(2, 42, 42)),
    replace(
        _DVS,
        name="loihi",
        source="table 3.7",
        notation="32C3-AP2-64C3-AP2-128C3-AP2-512FC-10FC",
        input_shape=(2, 34, 34),
        pool_ceil=True,
    ),
)

_LARGE = ZooEntry(
    name="cifar-large",
    source="table 4.1",
    notation=_CIFAR_LARGE,
    input_shape=_CIFAR_SHAPE,
    timesteps=6,
    neuron=_LOW_THRESHOLD,
    batch_norm=True,
    last_layer=LastLayer.LINEAR_ON_RATE,
)
_NORMALISED_NETWORKS = (
    _LARGE,
    # its s, m, x and y with those of the input take the text's 71.13 MB (2**20) per time step at batch 16
    replace(_LARGE, name="cifar-medium", source="chapter 4, inferred", notation=_CIFAR_MEDIUM),
    replace(_LARGE, name="cifar-small", source="ours", notation=_CIFAR_SMALL),
    replace(
        _LARGE,
        name="alexnet",
        source="chapter 4",
        notation=_IMAGENET,
        input_shape=_IMAGENET_SHAPE,
    ),
    replace(_LARGE, name="resnet34", source="chapter 4", notation="", input_shape=_IMAGENET_SHAPE),
)

_ATTACK = ZooEntry(
    name="attack-spike-nmnist",
    source="table 5.5",
    notation=_ATTACK_SPIKE,
    input_shape=(2, 34, 34),
    input_kind=InputKind.SPIKES,
    coding=None,
    timesteps=15,
    neuron=_ATTACK_SPIKE_NEURON,
)
_ATTACK_MNIST = replace(
    _ATTACK,
    name="attack-image-mnist",
    notation=_ATTACK_IMAGE,
    input_shape=_MNIST_SHAPE,
    coding=Encoding.BERNOULLI,
    neuron=_ATTACK_IMAGE_NEURON,
    dropout=_ATTACK_IMAGE_DROPOUT,
)
_ATTACK_NETWORKS = (
    _ATTACK,
    replace(_ATTACK, name="attack-spike-cifar10dvs", input_shape=(2, 42, 42), timesteps=10),
    _ATTACK_MNIST,
    replace(_ATTACK_MNIST, name="attack-image-cifar10", input_shape=_CIFAR_SHAPE),
    replace(_ATTACK_MNIST, name="attack-image-small", source="ours", notation=_ATTACK_IMAGE_SMALL, dropout=()),
    replace(_ATTACK, name="attack-gesture", notation=_ATTACK_GESTURE, input_shape=(2, 32, 32), timesteps=60),
)

_CERTIFY = ZooEntry(
    name="certify-fc",
    source="table 6.1",
    notation="512FC-256FC-10FC",
    input_shape=_MNIST_SHAPE,
    input_kind=InputKind.SPIKES,
    coding=Encoding.BERNOULLI,
    neuron=_LOW_THRESHOLD,
)
_CERTIFY_NETWORKS = (
    _CERTIFY,
    replace(_CERTIFY, name="certify-conv", notation="64C3S2-128C3S2-256FC-10FC"),
    replace(
        _CERTIFY,
        name="certify-conv-direct",
        source="table 6.1, with the direct encoding of the released code's variants, and batch norm",
        notation="64C3S2(Encoding)-128C3S2-256FC-10FC",
        input_kind=InputKind.IMAGE,
        coding=Encoding.DIRECT,
        batch_norm=True,
    ),
    replace(_CERTIFY, name="certify-small", source="ours", notation="256FC-64FC-10FC", timesteps=5),
    replace(
        _CERTIFY,
        name="certify-digits",
        source="ours",
        notation="64FC-32FC-10FC",
        input_shape=(1, 8, 8),
        timesteps=3,
    ),
)

_DIGITS = ZooEntry(
    name="digits-conv",
    source="ours",
    notation="16C3(Encoding)-32C3-AP2-128FC-10FC",
    input_shape=_DIGITS_SHAPE,
    batch_norm=True,
)
_DIGITS_ATTACK = replace(
    _ATTACK_MNIST,
    name="digits-attack",
    source="ours",
    notation="16C3-32C3-AP2-128FC-64FC-10FC",
    input_shape=_DIGITS_SHAPE,
    dropout=(),
)
_DIGITS_NETWORKS = (
    _DIGITS,
    replace(_DIGITS, name="digits-fc", notation="128FC(Encoding)-64FC-10FC"),
    _DIGITS_ATTACK,
    # digits as synthetic saccades, a pixel of margin on each side
    replace(_DIGITS_ATTACK, name="digits-events", input_shape=(2, 10, 10), coding=None),
)

_ENTRIES: Mapping[str, ZooEntry] = MappingProxyType(
    {
        network.name: network
        for network in (
            *_DIGITS_NETWORKS,
            *_IMAGE_NETWORKS,
            *_EVENT_NETWORKS,
            *_NORMALISED_NETWORKS,
            *_ATTACK_NETWORKS,
            *_CERTIFY_NETWORKS,
        )
    }
)
