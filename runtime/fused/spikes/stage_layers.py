"""The layers of a stage whose spikes are bits: forward from words, backward from words and a mask."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from compiler.fused.program import StageProgram
from compiler.fused.spikes.costs import Pass, Way
from runtime.fused.arena import Arena
from runtime.fused.layers import layer_forward, layer_grad_parameters
from runtime.fused.spikes.choices import choose, share_of_values
from runtime.fused.spikes.launch import Take
from runtime.fused.spikes.layer import SpikeLayer
from runtime.fused.spikes.words import count

StageTake = Callable[[int, str, tuple[int, ...], torch.dtype], Tensor]  # place, role, shape, type


@dataclass(frozen=True, slots=True)
class SpikeBits:
    """What a stage keeps of its spikes (T, N, H, W, C): i32 words, see `Geometry`, and the mask of gradients if any."""

    words: Tensor
    mask: Tensor | None


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
    ) -> None:
        """maps: shape of the spikes."""
        timesteps, samples, *sizes = maps
        self._layers = tuple(
            SpikeLayer.of(layer, (timesteps * samples, *sizes), weight)
            for layer, (weight, _) in zip(program.layers, weights, strict=True)
        )
        self._kernels, self._weights, self._bits = program.kernels, weights, bits
        self._place, self._take, self._arena, self._name = len(program.parts), take, arena, name
        self._neurons = maps[0] * maps[1] * maps[2] * maps[3] * maps[4]
        self._numbers: Tensor | None = None

    def forward(self) -> list[Tensor]:
        """The layers' results."""
        share = self._share(self._bits.words)
        results = []
        for at, (layer, (weight, bias)) in enumerate(zip(self._layers, self._weights, strict=True)):
            way = self._way(at, Pass.FORWARD, {Way.LOOKUP: share, Way.EVENTS: share})
            if way is Way.DENSE:
                results.append(layer_forward(layer.layer, self._dense(at), weight, bias))
            else:
                results.append(layer.forward(way, self._bits.words, weight, bias, self._scratch(at)))
        return results

    def spikes(self) -> Tensor:
        """The spikes as numbers (T * N, C, H, W) or (T * N, C), as the stage hands them on."""
        return self._dense(0)

    def grad_input(self, grads: Sequence[Tensor]) -> Tensor | None:
        """The gradient of the spikes, summed over the layers; anything finite where it counts for nothing."""
        total: Tensor | None = None
        mask = self._bits.mask
        open_share = None if mask is None else self._share(mask)
        for at, layer in enumerate(self._layers):
            shares = {Way.EVENTS: share_of_values(grads[at])}
            if open_share is not None:
                shares[Way.MASKED] = open_share
            way = self._way(at, Pass.INPUT_GRADIENT, shares)
            value = layer.grad_input(way, grads[at], mask, self._weights[at][0], self._scratch(at))
            total = value if total is None else total.add_(value)
        return total

    def grad_parameters(
        self, at: int, grad: Tensor, *, need_weight: bool, need_bias: bool
    ) -> tuple[Tensor | None, Tensor | None]:
        """The gradients of a layer's weight and bias."""
        layer, (weight, _) = self._layers[at], self._weights[at]
        of_bias = grad.sum((0, 2, 3) if grad.ndim == 4 else 0) if need_bias else None
        if not need_weight:
            return None, of_bias
        share = self._share(self._bits.words)
        way = self._way(at, Pass.WEIGHT_GRADIENT, {Way.LOOKUP: share, Way.EVENTS: share})
        if way is not Way.DENSE:
            return layer.grad_weight(way, self._bits.words, grad, weight, self._scratch(at)), of_bias
        return layer_grad_parameters(layer.layer, grad, self._dense(at), weight, need_weight=True, need_bias=need_bias)

    def _way(self, at: int, of: Pass, shares: dict[Way, float]) -> Way:
        return choose(self._layers[at], of, shares, self._kernels, (self._name, at), self._arena)

    def _share(self, bits: Tensor) -> float:
        return count(bits, self._scratch(0)) / self._neurons

    def _dense(self, at: int) -> Tensor:
        """The spikes as a layer takes them, written out once for all."""
        layer = self._layers[at]
        if self._numbers is None:
            x = layer.spikes(self._bits.words, lambda _, shape, dtype: self._take(self._place - 1, "y", shape, dtype))
            self._numbers = x
        return self._numbers

    def _scratch(self, at: int) -> Take:
        return functools.partial(self._scratch_of, at)

    def _scratch_of(self, at: int, role: str, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        return self._take(self._place + at, role, shape, dtype)


def layer_again(program: StageProgram, at: int, source: Sequence[Tensor], arena: Arena, name: str) -> Tensor:
    """The result of a layer from the words that it read, its weight and bias: the same bits as the first time.

    name: of the stage that takes the result.
    """
    words, weight, bias = source[0], source[1], source[2] if len(source) > 2 else None
    layer = program.layers[at]
    timesteps, samples, height, width, _ = words.shape
    channels = weight.shape[1] * layer.groups
    spike_layer = SpikeLayer.of(layer, (timesteps * samples, height, width, channels), weight)

    def take(role: str, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        return arena.take((name, "again", role, at), shape, dtype)

    share = count(words, take) / spike_layer.geometry.neurons
    shares = {Way.LOOKUP: share, Way.EVENTS: share}
    way = choose(spike_layer, Pass.FORWARD, shares, program.kernels, (f"{name}, again", at), arena)
    return spike_layer.forward(way, words, weight, bias, take)
