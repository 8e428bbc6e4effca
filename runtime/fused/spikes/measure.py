"""What each pass of a layer costs on this machine, in each of the ways that compute it."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import astuple, dataclass, fields, replace

import torch
from torch import Tensor

from compiler.fused.order import cpu_model
from compiler.fused.spikes.costs import WAYS, Cost, CostCache, LayerCosts, Pass, Way
from compiler.fused.spikes.counts import Counts, Planes
from compiler.fused.spikes.geometry import Geometry
from hwmodel.folders import cache_folder
from runtime.fused.layers import layer_forward
from runtime.fused.spikes.counts_layer import CountsLayer
from runtime.fused.spikes.layer import SpikeLayer
from runtime.fused.spikes.words import pack, word_shape

SHARES = {Way.EVENTS: (0.02, 0.2, 1.0), Way.MASKED: (0.1, 0.4, 1.0)}  # that lines are drawn through
_OF_PLANES = (0.1, 0.5, 1.0)  # sums over the planes of averages, for events: beyond, look-ups take the lowest planes
_LOWEST = 0.8  # of the sum, and the next plane has the rest
_SHARE = 0.1  # of spikes where the time does not depend on it
_ROUNDS = 3, 11  # at least and at most
_SECONDS = 0.03  # of all calls of a way, where the rounds allow it

BitLayer = SpikeLayer | CountsLayer
Key = tuple[BitLayer, Pass, int]
Run = tuple[Way, float]  # way, share
_FOUND: dict[Key, LayerCosts] = {}


def costs_of(layer: BitLayer, of: Pass) -> LayerCosts:
    """Of one pass: as kept in memory or in the cache folder, or else measured and kept.

    Measured are batches whose rows are a power of two; those of others are taken to be the nearest one's by the row.
    """
    key = (layer, of, torch.get_num_threads())
    if key not in _FOUND:
        rows = _rows(layer)
        near = 1 << max(0, round(math.log2(rows)))
        own = _with_rows(layer, near)
        _FOUND[key] = _kept(layer, of) if own == layer else costs_of(own, of).scaled(rows / near)
    return _FOUND[key]


def _kept(layer: BitLayer, of: Pass) -> LayerCosts:
    """As the cache folder has them, or else measured."""
    cache, name = CostCache(cache_folder()), cache_key(layer, of)
    costs = cache.find(name)
    if costs is None:
        costs = measure(layer, of)
        cache.keep(name, costs)
    return costs


def cache_key(layer: BitLayer, of: Pass) -> str:
    """What costs depend on: CPU, threads, torch, the layer and its batch, the pass."""
    sizes = " ".join(
        f"{item.name}={value}" for item, value in zip(fields(Geometry), astuple(layer.geometry), strict=True)
    )
    rows = f"rows_per_call={layer.layer.rows_per_call}"
    pixels = f" averages of {layer.counts.pixels}" if isinstance(layer, CountsLayer) else ""
    return f"{cpu_model()}, {torch.get_num_threads()} threads, torch {torch.__version__}, {sizes} {rows}{pixels}, {of}"


def _rows(layer: BitLayer) -> int:
    """Time steps and samples together."""
    return layer.geometry.images if layer.layer.convolution else layer.geometry.width


def _with_rows(layer: BitLayer, rows: int) -> BitLayer:
    if isinstance(layer, CountsLayer):
        return CountsLayer(_spikes_with_rows(layer.plane, rows), layer.counts)
    return _spikes_with_rows(layer, rows)


def _spikes_with_rows(layer: SpikeLayer, rows: int) -> SpikeLayer:
    geometry = layer.geometry
    of_rows = replace(geometry, images=rows) if layer.layer.convolution else replace(geometry, width=rows)
    return SpikeLayer(layer.layer, of_rows)


def measure(layer: BitLayer, of: Pass, *, clock: Callable[[], float] = time.perf_counter) -> LayerCosts:
    """The least of some calls, all ways of a pass in turn, after one that counts for nothing.

    The dense ways have their input as numbers, since neurons give it in that form in the same time.
    """
    trial = _Trial.of(layer)
    with torch.no_grad():
        least = _least({(way, share): trial.call(of, way, share) for way, share in _asked(layer, of)}, clock)
    ways = dict.fromkeys(way for way, _ in least)
    return LayerCosts(
        {(of, way): Cost.of({share: seconds for (own, share), seconds in least.items() if own is way}) for way in ways}
    )


def _least(runs: Mapping[Run, Callable[[], object]], clock: Callable[[], float]) -> dict[Run, float]:
    least = dict.fromkeys(runs, math.inf)
    for run in runs.values():
        run()
    rounds, number = _ROUNDS[0], 0
    while number < rounds:
        for key, run in runs.items():
            start = clock()
            run()
            least[key] = min(least[key], clock() - start)
        number += 1
        rounds = min(_ROUNDS[1], max(_ROUNDS[0], math.ceil(_SECONDS / max(min(least.values()), 1e-9))))
    return least


def _asked(layer: BitLayer, of: Pass) -> Iterator[tuple[Way, float]]:
    for way in WAYS[of]:
        if layer.supports(of, way):
            for share in _shares(layer, of, way):
                yield way, share


def _shares(layer: BitLayer, of: Pass, way: Way) -> tuple[float, ...]:
    if isinstance(layer, CountsLayer) and way is Way.EVENTS and of is not Pass.INPUT_GRADIENT:
        return _OF_PLANES
    return SHARES.get(way, (_SHARE,))


@dataclass(frozen=True, slots=True)
class _Trial:
    """Random numbers of the layer's sizes."""

    layer: BitLayer
    weight: Tensor
    random: torch.Generator

    @classmethod
    def of(cls, layer: BitLayer) -> _Trial:
        geometry, random = layer.geometry, torch.Generator().manual_seed(0)
        sizes = (geometry.out_channels, *geometry.kernel, geometry.group_channels)
        weight = torch.randn(sizes, generator=random, dtype=torch.float32)
        if layer.layer.convolution:
            return cls(layer, weight.permute(0, 3, 1, 2), random)
        return cls(layer, weight.flatten(1), random)

    def call(self, of: Pass, way: Way, share: float) -> Callable[[], object]:
        """One call of a pass."""
        layer, weight = self.layer, self.weight
        if of is Pass.INPUT_GRADIENT:
            grad = self._grad(share if way is Way.EVENTS else 1.0)
            mask = self._bits(share if way is Way.MASKED else 1.0)
            return lambda: layer.grad_input(way, grad, mask, weight, _fresh)
        grad = self._grad(1.0)
        if way is Way.DENSE:
            x = self._numbers(share)
            if of is Pass.FORWARD:
                return lambda: layer_forward(layer.layer, x, weight, None)
            return lambda: layer.dense_grad_weight(grad, x, weight)
        if isinstance(layer, CountsLayer):
            planes, words = self._planes(layer.counts, way, share)
            if of is Pass.FORWARD:
                return lambda: layer.forward(planes, words, weight, None, _fresh)
            return lambda: layer.grad_weight(planes, words, grad, weight, _fresh)
        words = self._bits(share)
        if of is Pass.FORWARD:
            return lambda: layer.forward(way, words, weight, None, _fresh)
        return lambda: layer.grad_weight(way, words, grad, weight, _fresh)

    def _planes(self, counts: Counts, way: Way, share: float) -> tuple[Planes | None, Tensor]:
        """How planes are dealt out, and words: all events, of so many ones altogether, or a look-up of one plane."""
        lowest = [self._bits(_LOWEST * share), self._bits((1.0 - _LOWEST) * share)]
        words = torch.stack([*lowest, *[torch.zeros_like(lowest[0])] * (counts.planes - 2)])[:, None]
        planes = {Way.LOOKUP: Planes(1, 1), Way.EVENTS: Planes(0, counts.planes)}
        return planes.get(way), words

    def _numbers(self, share: float) -> Tensor:
        x = self._maps(share)
        return x.permute(0, 3, 1, 2) if self.layer.layer.convolution else x.view(x.shape[2:])

    def _maps(self, share: float) -> Tensor:
        geometry = self.layer.geometry
        shape = (geometry.images, geometry.height, geometry.width, geometry.channels)
        return (torch.rand(shape, generator=self.random, dtype=torch.float32) < share).float()

    def _bits(self, share: float) -> Tensor:
        geometry, x = self.layer.geometry, self._maps(share)
        words = torch.empty(word_shape(geometry), dtype=torch.int32)
        pack(geometry, x, words, _fresh)
        return words

    def _grad(self, share: float) -> Tensor:
        geometry = self.layer.geometry
        shape = (geometry.images, geometry.out_height, geometry.out_width, geometry.out_channels)
        grad = torch.randn(shape, generator=self.random, dtype=torch.float32)
        if share < 1.0:
            grad *= torch.rand(shape, generator=self.random) < share
        return grad.permute(0, 3, 1, 2) if self.layer.layer.convolution else grad.view(shape[2:])


def _fresh(_: str, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    return torch.empty(shape, dtype=dtype)
