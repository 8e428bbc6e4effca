"""Which way each pass of a stage's layers takes in a step, and a record of it for people to read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from weakref import WeakKeyDictionary

from torch import Tensor

from compiler.fused.spikes.costs import SMALLEST, Pass, SpikeKernels, Way
from runtime.fused.arena import Arena
from runtime.fused.spikes.layer import SpikeLayer
from runtime.fused.spikes.measure import costs_of

_CHUNKS, _CHUNK = 64, 64  # of a gradient, by which the share of its values that are not zero is estimated

Key = tuple[str, int, Pass]  # stage, place among its layers


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """Of one pass in the last step. seconds: measured costs of the ways at these shares; empty where none count."""

    layer: SpikeLayer
    way: Way
    shares: Mapping[Way, float]
    seconds: Mapping[Way, float] = field(default_factory=dict)


_CHOICES: WeakKeyDictionary[Arena, dict[Key, Choice]] = WeakKeyDictionary()


def choices_of(arena: Arena) -> Mapping[Key, Choice]:
    """What the stages that work in an arena chose when they last ran."""
    return _CHOICES.get(arena, {})


def choose(
    layer: SpikeLayer, of: Pass, shares: Mapping[Way, float], kernels: SpikeKernels, key: tuple[str, int], arena: Arena
) -> Way:
    """The way of a pass at these shares; recorded under the stage's name and the layer's place in it.

    shares: of each way that may be taken; of `Way.LOOKUP` it does not count.
    """
    costs = None
    if kernels is not SpikeKernels.MEASURED:
        way = _forced(layer, of, shares, kernels)
    elif layer.geometry.multiplications < SMALLEST:
        way = Way.DENSE
    else:
        costs = costs_of(layer)
        way = costs.choose(of, shares)
    seconds = {} if costs is None else {one: costs.seconds(of, one, shares.get(one, 0.0)) for one in costs.ways(of)}
    _CHOICES.setdefault(arena, {})[*key, of] = Choice(layer=layer, way=way, shares=dict(shares), seconds=seconds)
    return way


def _forced(layer: SpikeLayer, of: Pass, shares: Mapping[Way, float], kernels: SpikeKernels) -> Way:
    wanted = Way.EVENTS
    if kernels is SpikeKernels.LOOKUP:
        wanted = Way.MASKED if of is Pass.INPUT_GRADIENT else Way.LOOKUP
    return wanted if wanted in shares and layer.supports(of, wanted) else Way.DENSE


def share_of_values(grad: Tensor) -> float:
    """An estimate of the share of values that are not zero: all of few, or chunks spread over many."""
    flat = grad.permute(0, 2, 3, 1).reshape(-1) if grad.ndim == 4 else grad.reshape(-1)
    if len(flat) > _CHUNKS * _CHUNK:
        flat = flat.as_strided((_CHUNKS, _CHUNK), ((len(flat) - _CHUNK) // (_CHUNKS - 1), 1))
    return int(flat.count_nonzero()) / flat.numel()
