"""One layer whose input is averages of spikes: its passes as sums over the planes of the counts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from compiler.fused.program import Layer
from compiler.fused.spikes.costs import Pass, Way
from compiler.fused.spikes.counts import Counts, Planes
from compiler.fused.spikes.geometry import Geometry
from runtime.fused.layers import layer_forward
from runtime.fused.spikes.counts import channels_of_words, expand_counts, stacked
from runtime.fused.spikes.launch import Take
from runtime.fused.spikes.layer import SpikeLayer


@dataclass(frozen=True, slots=True)
class CountsLayer:
    """A layer of averages. Planes beside each other are a layer of spikes with as many times the channels.

    There is one look-up of the planes that look-ups take, and one sum of events that adds the others to it.

    Shapes: words i32 (planes, T, N, H, W, ceil(C / 32)), ones: in each plane. Else as `SpikeLayer`.
    """

    plane: SpikeLayer  # of one plane, and of the averages as numbers
    counts: Counts

    @property
    def layer(self) -> Layer:
        """The layer without sizes."""
        return self.plane.layer

    @property
    def geometry(self) -> Geometry:
        """Of the averages, or of one plane."""
        return self.plane.geometry

    def supports(self, of: Pass, way: Way) -> bool:
        """Whether that way computes all planes at once."""
        if of is Pass.INPUT_GRADIENT or way is Way.DENSE:
            return self.plane.supports(of, way)
        return self.plane.supports(of, way) and self._stack(self.counts.planes).supports(of, way)

    def shares(self, ones: Sequence[int]) -> tuple[float, ...]:
        """Of ones, by plane, of the planes that count; of the lowest at least."""
        used = max((plane + 1 for plane, number in enumerate(ones) if number), default=1)
        return tuple(number / self.geometry.neurons for number in ones[:used])

    def spikes(self, words: Tensor, take: Take) -> Tensor:
        """The input as numbers."""
        geometry = self.geometry
        shape = (geometry.images, geometry.height, geometry.width, geometry.channels)
        x = take("spikes", shape, torch.float32)
        expand_counts(self.counts, words, x)
        return x.permute(0, 3, 1, 2) if self.layer.convolution else x.view(geometry.width, geometry.channels)

    def forward(self, planes: Planes | None, words: Tensor, weight: Tensor, bias: Tensor | None, take: Take) -> Tensor:
        """The result; without planes that are dealt out, by the dense kernel."""
        if planes is None:
            return layer_forward(self.layer, self.spikes(words, take), weight, bias)
        result: Tensor | None = None
        for way, first, last in _runs(planes):
            scaled = self._scaled(weight, first, last, take)
            of_run = stacked(words[first:last], self.geometry.groups)
            own_bias = bias if result is None else None
            result = self._stack(last - first).forward(way, of_run, scaled, own_bias, take, onto=result)
        assert result is not None
        return result

    def dense_grad_weight(self, grad: Tensor, x: Tensor, weight: Tensor) -> Tensor:
        """The gradient of the weight from the input as numbers."""
        return self.plane.dense_grad_weight(grad, x, weight)

    def grad_weight(self, planes: Planes | None, words: Tensor, grad: Tensor, weight: Tensor, take: Take) -> Tensor:
        """The gradient of the weight, of which only the shape counts."""
        if planes is None:
            return self.dense_grad_weight(grad, self.spikes(words, take), weight)
        total: Tensor | None = None
        for way, first, last in _runs(planes):
            of_run = stacked(words[first:last], self.geometry.groups)
            found = self._stack(last - first).grad_weight(way, of_run, grad, weight, take)
            by_plane = found.view(len(weight), last - first, -1, *weight.shape[2:])[:, :, : weight.shape[1]]
            for plane in range(first, last):
                own, factor = by_plane[:, plane - first], self.counts.factor(plane)
                total = own * factor if total is None else total.add_(own, alpha=factor)
        assert total is not None
        return total

    def grad_input(self, way: Way, grad: Tensor, mask: Tensor | None, weight: Tensor, take: Take) -> Tensor:
        """The gradient of the averages, which no plane changes; where the mask is 0 it may be anything finite."""
        return self.plane.grad_input(way, grad, mask, weight, take)

    def _stack(self, planes: int) -> SpikeLayer:
        """So many planes as one layer, the channels of each filled up to whole words."""
        geometry = self.geometry
        channels = planes * geometry.groups * channels_of_words(geometry.group_channels)
        return replace(self.plane, geometry=replace(geometry, channels=channels))

    def _scaled(self, weight: Tensor, first: int, last: int, take: Take) -> Tensor:
        """The weights of some planes, each by what its ones stand for."""
        rows = weight.detach()
        rows = rows.permute(0, 2, 3, 1) if rows.ndim == 4 else rows
        channels = rows.shape[-1]
        shape = (*rows.shape[:-1], last - first, channels_of_words(channels))
        scaled = take("plane weights", shape, torch.float32)
        for plane in range(first, last):
            torch.mul(rows, self.counts.factor(plane), out=scaled[..., plane - first, :channels])
        scaled[..., channels:] = 0.0
        flat = scaled.flatten(-2)
        return flat.permute(0, 3, 1, 2) if weight.ndim == 4 else flat


def _runs(planes: Planes) -> list[tuple[Way, int, int]]:
    """The calls: way, first plane, and the one after the last."""
    runs = [(Way.LOOKUP, 0, planes.looked_up), (Way.EVENTS, planes.looked_up, planes.used)]
    return [run for run in runs if run[1] < run[2]]
