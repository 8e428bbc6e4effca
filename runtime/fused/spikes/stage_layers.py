"""The layers of a stage whose spikes, or averages of spikes, are bits: from words, backward also from a mask."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from compiler.fused.program import Layer, StageProgram
from compiler.fused.spikes.costs import Pass, SpikeKernels, Way
from compiler.fused.spikes.counts import Planes, counts_of
from runtime.fused.arena import Arena
from runtime.fused.layers import layer_forward
from runtime.fused.spikes.choices import BitLayer, choose, choose_planes, is_dense, share_of_values
from runtime.fused.spikes.counts_layer import CountsLayer
from runtime.fused.spikes.launch import Take
from runtime.fused.spikes.layer import SpikeLayer
from runtime.fused.spikes.words import count

StageTake = Callable[[int, str, tuple[int, ...], torch.dtype], Tensor]  # place, role, shape, type


@dataclass(frozen=True, slots=True)
class SpikeBits:
    """What a stage keeps of its spikes (T, N, H, W, C): i32 words, see `Geometry`, and the mask of gradients if any.

    Of averages the words have the planes of the counts in front: (planes, T, N, H, W, words). ones: in each of these,
    where they are known.
    """

    words: Tensor
    mask: Tensor | None
    ones: tuple[int, ...] | None = None


@dataclass(frozen=True, slots=True)
class _Reader:
    """A layer and the bits that it reads. numbers: the same as torch takes them."""

    layer: BitLayer
    bits: SpikeBits
    kernels: SpikeKernels
    key: tuple[str, int]
    arena: Arena
    take: Take

    def forward(self, weight: Tensor, bias: Tensor | None, numbers: Callable[[], Tensor]) -> Tensor:
        words = self.bits.words
        # spike kernels never meet a weight whose spike is silent: a NaN there must not depend on the way
        if is_dense(self.layer, self.kernels) or not bool(weight.sum().isfinite()):
            return layer_forward(self.layer.layer, numbers(), weight, bias)
        if isinstance(self.layer, SpikeLayer):
            way = self._way(self.layer, Pass.FORWARD)
            if way is not Way.DENSE:
                return self.layer.forward(way, words, weight, bias, self.take)
        else:
            planes = self._planes(self.layer, Pass.FORWARD)
            if planes is not None:
                return self.layer.forward(planes, words, weight, bias, self.take)
        return layer_forward(self.layer.layer, numbers(), weight, bias)

    def grad_weight(self, grad: Tensor, weight: Tensor, numbers: Callable[[], Tensor]) -> Tensor:
        words = self.bits.words
        if is_dense(self.layer, self.kernels):
            return self.layer.dense_grad_weight(grad, numbers(), weight)
        if isinstance(self.layer, SpikeLayer):
            way = self._way(self.layer, Pass.WEIGHT_GRADIENT)
            if way is not Way.DENSE:
                return self.layer.grad_weight(way, words, grad, weight, self.take)
            return self.layer.dense_grad_weight(grad, numbers(), weight)
        planes = self._planes(self.layer, Pass.WEIGHT_GRADIENT)
        if planes is not None:
            return self.layer.grad_weight(planes, words, grad, weight, self.take)
        return self.layer.dense_grad_weight(grad, numbers(), weight)

    def _way(self, layer: SpikeLayer, of: Pass) -> Way:
        share = count(self.bits.words, self.take) / layer.geometry.neurons
        return choose(layer, of, {Way.LOOKUP: share, Way.EVENTS: share}, self.kernels, self.key, self.arena)

    def _planes(self, layer: CountsLayer, of: Pass) -> Planes | None:
        ones = self.bits.ones or [count(plane, self.take) for plane in self.bits.words]
        return choose_planes(layer, of, ones, self.kernels, self.key, self.arena)


class StageLayers:
    """The layers behind the spikes of a stage, for one batch.

    weights: of each layer weight and bias. take: scratch memory by place in the stage; the spikes as numbers, where
    dense kernels read them, are `y` of the last part.
    """

    def __init__(
        self,
        program: StageProgram,
        weights: Sequence[tuple[Tensor, Tensor | None]],
        maps: tuple[int, ...],
        bits: SpikeBits,
        take: StageTake,
        arena: Arena,
        name: str,
        numbers: Tensor | None = None,
    ) -> None:
        """maps: shape of the spikes. numbers: these as the layers take them, where they are at hand."""
        timesteps, samples, *sizes = maps
        self._layers = tuple(
            _layer_of(program, layer, (timesteps * samples, *sizes), weight)
            for layer, (weight, _) in zip(program.layers, weights, strict=True)
        )
        self._kernels, self._weights, self._bits = program.kernels, weights, bits
        self._place, self._take, self._arena, self._name = len(program.parts), take, arena, name
        self._neurons = math.prod(maps)
        self._numbers = numbers

    def forward(self) -> list[Tensor]:
        """The layers' results."""
        weights = enumerate(self._weights)
        return [
            self._reader(at).forward(weight, bias, functools.partial(self._dense, at)) for at, (weight, bias) in weights
        ]

    def spikes(self) -> Tensor:
        """The spikes as numbers (T * N, C, H, W) or (T * N, C), as the stage hands them on."""
        return self._dense(0)

    def grad_input(self, grads: Sequence[Tensor]) -> Tensor | None:
        """The gradient of the spikes, summed over the layers; anything finite where it counts for nothing."""
        total: Tensor | None = None
        mask = self._bits.mask
        for at, layer in enumerate(self._layers):
            way = Way.DENSE
            if not is_dense(layer, self._kernels):
                shares = {Way.EVENTS: share_of_values(grads[at])}
                if mask is not None:
                    shares[Way.MASKED] = self._share(mask)
                way = self._way(at, Pass.INPUT_GRADIENT, shares)
            value = layer.grad_input(way, grads[at], mask, self._weights[at][0], self._scratch(at))
            total = value if total is None else total.add_(value)
        return total

    def grad_parameters(
        self, at: int, grad: Tensor, *, need_weight: bool, need_bias: bool
    ) -> tuple[Tensor | None, Tensor | None]:
        """The gradients of a layer's weight and bias."""
        weight, _ = self._weights[at]
        of_bias = grad.sum((0, 2, 3) if grad.ndim == 4 else 0) if need_bias else None
        if not need_weight:
            return None, of_bias
        return self._reader(at).grad_weight(grad, weight, functools.partial(self._dense, at)), of_bias

    def _way(self, at: int, of: Pass, shares: dict[Way, float]) -> Way:
        return choose(self._layers[at], of, shares, self._kernels, (self._name, at), self._arena)

    def _share(self, bits: Tensor) -> float:
        return count(bits, self._scratch(0)) / self._neurons

    def _reader(self, at: int) -> _Reader:
        key = (self._name, at)
        return _Reader(self._layers[at], self._bits, self._kernels, key, self._arena, self._scratch(at))

    def _dense(self, at: int) -> Tensor:
        """The spikes as a layer takes them, written out once for all."""
        if self._numbers is None:
            take = lambda _, shape, dtype: self._take(self._place - 1, "y", shape, dtype)  # noqa: E731
            self._numbers = self._layers[at].spikes(self._bits.words, take)
        return self._numbers

    def _scratch(self, at: int) -> Take:
        return functools.partial(self._scratch_of, at)

    def _scratch_of(self, at: int, role: str, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        return self._take(self._place + at, role, shape, dtype)


def layer_again(program: StageProgram, at: int, source: Sequence[Tensor], arena: Arena, name: str) -> Tensor:
    """The result of a layer from the words that it read, its weight and bias: the same bits as the first time.

    With another number of threads, dense kernels may round differently.

    name: of the stage that takes the result.
    """
    words, weight, bias = source[0], source[1], source[2] if len(source) > 2 else None
    layer = program.layers[at]
    timesteps, samples, height, width, _ = words.shape[-5:]
    channels = weight.shape[1] * layer.groups
    own = _layer_of(program, layer, (timesteps * samples, height, width, channels), weight)

    def take(role: str, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        return arena.take((name, "again", role, at), shape, dtype)

    reader = _Reader(own, SpikeBits(words, None), program.kernels, (f"{name}, again", at), arena, take)
    return reader.forward(weight, bias, lambda: own.spikes(words, take))


def _layer_of(program: StageProgram, layer: Layer, maps: tuple[int, ...], weight: Tensor) -> BitLayer:
    """With the sizes of a batch. maps: (images, H, W, C)."""
    counts, own = counts_of(program.parts[-1]), SpikeLayer.of(layer, maps, weight)
    return own if counts is None else CountsLayer(own, counts)
