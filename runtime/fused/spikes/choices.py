"""Which way each pass of a stage's layers takes in a step, and a record of it for people to read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from weakref import WeakKeyDictionary

from torch import Tensor

from compiler.fused.spikes.costs import SMALLEST, LayerCosts, Pass, SpikeKernels, Way
from compiler.fused.spikes.counts import Planes, deal, dealt_costs
from runtime.fused.arena import Arena
from runtime.fused.spikes.counts_layer import CountsLayer
from runtime.fused.spikes.measure import BitLayer, costs_of

__all__ = ["BitLayer", "Choice", "Key", "choices_of", "choose", "choose_planes", "is_dense", "share_of_values"]

_CHUNKS, _CHUNK = 64, 64  # of a gradient, by which the share of its values that are not zero is estimated

Key = tuple[str, int, Pass]  # stage, place among its layers


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """Of one pass in the last step. costs: as measured; None where none count.

    Of averages of spikes, `planes` are the shares of ones in each plane of the counts, and theirs is the sum of them.
    """

    layer: BitLayer
    way: Way
    shares: Mapping[Way, float]
    costs: LayerCosts | None = None
    planes: tuple[float, ...] = ()

    def seconds(self, of: Pass) -> dict[Way, float]:
        """Of each way of that pass at these shares; empty without costs."""
        if self.costs is None:
            return {}
        if self.planes:
            return dealt_costs(self.costs, of, self.planes, _of_planes(self.layer, of))
        return {way: self.costs.seconds(of, way, self.shares.get(way, 0.0)) for way in self.costs.ways(of)}


_CHOICES: WeakKeyDictionary[Arena, dict[Key, Choice]] = WeakKeyDictionary()


def choices_of(arena: Arena) -> Mapping[Key, Choice]:
    """What the stages that work in an arena chose when they last ran."""
    return _CHOICES.get(arena, {})


def choose(
    layer: BitLayer, of: Pass, shares: Mapping[Way, float], kernels: SpikeKernels, key: tuple[str, int], arena: Arena
) -> Way:
    """The way of a pass at these shares; recorded under the stage's name and the layer's place in it.

    shares: of each way that may be taken; of `Way.LOOKUP` it does not count.
    """
    costs = None
    if kernels is SpikeKernels.MEASURED:
        costs = costs_of(layer, of)
        way = costs.choose(of, shares)
    else:
        way = _forced(layer, of, shares, kernels)
    _CHOICES.setdefault(arena, {})[*key, of] = Choice(layer=layer, way=way, shares=dict(shares), costs=costs)
    return way


def is_dense(layer: BitLayer, kernels: SpikeKernels) -> bool:
    """Whether a layer is too small for anything to be counted and chosen."""
    return kernels is SpikeKernels.MEASURED and layer.geometry.multiplications < SMALLEST


def choose_planes(
    layer: CountsLayer, of: Pass, ones: Sequence[int], kernels: SpikeKernels, key: tuple[str, int], arena: Arena
) -> Planes | None:
    """How the planes of averages are dealt out to kernels; None: the dense one. Recorded as by `choose`.

    ones: in each plane.
    """
    shares = layer.shares(ones)
    ways = _of_planes(layer, of)
    costs: LayerCosts | None = None
    planes: Planes | None = None
    if kernels is not SpikeKernels.MEASURED:
        wanted = Planes(0 if kernels is SpikeKernels.EVENTS else len(shares), len(shares))
        planes = wanted if wanted.way in ways else None
    else:
        costs = costs_of(layer, of)
        planes = deal(costs, of, shares, ways)
    _CHOICES.setdefault(arena, {})[*key, of] = Choice(
        layer=layer, way=Way.DENSE if planes is None else planes.way, shares={Way.EVENTS: sum(shares)},
        costs=costs, planes=shares,
    )  # fmt: skip
    return planes


def _of_planes(layer: BitLayer, of: Pass) -> tuple[Way, ...]:
    return tuple(way for way in (Way.LOOKUP, Way.EVENTS) if layer.supports(of, way))


def _forced(layer: BitLayer, of: Pass, shares: Mapping[Way, float], kernels: SpikeKernels) -> Way:
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
