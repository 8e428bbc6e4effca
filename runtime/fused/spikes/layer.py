"""One layer with spike input, each of its passes in any of the ways that compute it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType

import torch
from torch import Tensor

from compiler.fused.program import Layer
from compiler.fused.spikes.costs import Pass, Way
from compiler.fused.spikes.geometry import BITS, Geometry
from runtime.fused.layers import layer_forward, layer_grad_input, layer_grad_parameters
from runtime.fused.spikes import forward_events as events_module
from runtime.fused.spikes import forward_lut as lookup_module
from runtime.fused.spikes import input_events as input_events_module
from runtime.fused.spikes import input_masked as masked_module
from runtime.fused.spikes import weight_events as weight_events_module
from runtime.fused.spikes import weight_lut as weight_lookup_module
from runtime.fused.spikes.launch import Take
from runtime.fused.spikes.words import expand

Supports = Callable[[Geometry], bool]
_SUPPORTS: Mapping[tuple[Pass, Way], Supports] = MappingProxyType(
    {
        (Pass.FORWARD, Way.LOOKUP): lookup_module.supports,
        (Pass.FORWARD, Way.EVENTS): events_module.supports,
        (Pass.WEIGHT_GRADIENT, Way.LOOKUP): weight_lookup_module.supports,
        (Pass.WEIGHT_GRADIENT, Way.EVENTS): lambda _: True,
        (Pass.INPUT_GRADIENT, Way.MASKED): masked_module.supports,
        (Pass.INPUT_GRADIENT, Way.EVENTS): input_events_module.supports,
    }
)


@dataclass(frozen=True, slots=True)
class SpikeLayer:
    """A layer and the sizes that it has for one batch.

    Shapes: words and mask i32 (images, H, W, ceil(C / 32)), as `Geometry` says without groups; rows, gradients and
    weights as torch has them, f32, feature maps with the channels last in memory; of a linear layer (rows, features).
    """

    layer: Layer
    geometry: Geometry

    @classmethod
    def of(cls, layer: Layer, maps: tuple[int, ...], weight: Tensor) -> SpikeLayer:
        """Of an input (images, H, W, C); a linear layer takes the pixels of all images as rows."""
        images, height, width, channels = maps
        if not layer.convolution:
            return cls(layer, Geometry.of_linear(images * height * width, channels, len(weight)))
        rows, columns = weight.shape[2:]
        geometry = Geometry(
            images=images, height=height, width=width, channels=channels, out_channels=len(weight),
            kernel=(rows, columns), stride=layer.stride, padding=layer.padding, groups=layer.groups,
        )  # fmt: skip
        return cls(layer, geometry)

    def supports(self, of: Pass, way: Way) -> bool:
        """Whether that way computes this layer on this machine; groups must begin at whole words."""
        geometry = self.geometry
        is_whole = geometry.groups == 1 or geometry.group_channels % BITS == 0
        return way is Way.DENSE or (is_whole and _SUPPORTS[of, way](geometry))

    def spikes(self, words: Tensor, take: Take) -> Tensor:
        """The input as numbers."""
        geometry = self.geometry
        shape = (geometry.images, geometry.height, geometry.width, geometry.channels)
        x = take("spikes", shape, torch.float32)
        expand(replace(geometry, groups=1), words, x)  # neurons know no groups
        return x.permute(0, 3, 1, 2) if self.layer.convolution else x.view(geometry.width, geometry.channels)

    def forward(
        self,
        way: Way,
        words: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        take: Take,
        *,
        onto: Tensor | None = None,
    ) -> Tensor:
        """The result. onto: one to which events add theirs instead, without bias."""
        geometry = self.geometry
        if onto is not None:
            assert way is Way.EVENTS
            y, rows = self._maps(onto), self._weight(weight)
            events_module.forward_events(geometry, words, rows, None, y, take, onto=True)
            return onto
        if way is Way.DENSE:
            return layer_forward(self.layer, self.spikes(words, take), weight, bias)
        rows = self._new_rows()
        run = events_module.forward_events if way is Way.EVENTS else lookup_module.forward_lut
        own_bias = None if bias is None else bias.contiguous()
        run(geometry, words, self._weight(weight), own_bias, self._maps(rows), take)
        return rows

    def grad_weight(self, way: Way, words: Tensor, grad: Tensor, weight: Tensor, take: Take) -> Tensor:
        """The gradient of the weight, of which only the shape counts."""
        if way is Way.DENSE:
            return self.dense_grad_weight(grad, self.spikes(words, take), weight)
        geometry = self.geometry
        made = torch.empty(geometry.out_channels, *geometry.kernel, geometry.group_channels, dtype=torch.float32)
        run = weight_events_module.weight_events if way is Way.EVENTS else weight_lookup_module.weight_lut
        run(geometry, words, self._maps(grad), made, take)
        return (
            made.permute(0, 3, 1, 2) if self.layer.convolution else made.view(geometry.out_channels, geometry.channels)
        )

    def dense_grad_weight(self, grad: Tensor, x: Tensor, weight: Tensor) -> Tensor:
        """The gradient of the weight from the input as numbers."""
        found, _ = layer_grad_parameters(self.layer, grad, x, weight, need_weight=True, need_bias=False)
        assert found is not None
        return found

    def grad_input(self, way: Way, grad: Tensor, mask: Tensor | None, weight: Tensor, take: Take) -> Tensor:
        """The gradient of the input; where the mask is 0 it may be anything finite."""
        geometry = self.geometry
        shape = (geometry.images, geometry.height, geometry.width, geometry.channels)
        if way is Way.DENSE:
            like = torch.empty((), dtype=torch.float32).expand(shape).permute(0, 3, 1, 2)
            x = (
                like
                if self.layer.convolution
                else torch.empty((), dtype=torch.float32).expand(geometry.width, geometry.channels)
            )
            return layer_grad_input(self.layer, grad, x, weight)
        grad_x = torch.empty(shape, dtype=torch.float32)
        run = input_events_module.input_events if way is Way.EVENTS else masked_module.input_masked
        run(geometry, self._maps(grad), self._weight(weight), mask, grad_x, take)
        return grad_x.permute(0, 3, 1, 2) if self.layer.convolution else grad_x.view(geometry.width, geometry.channels)

    def _new_rows(self) -> Tensor:
        """Memory for the result that is no view: autograd lets nobody change views that an op returns."""
        geometry = self.geometry
        if not self.layer.convolution:
            return torch.empty(geometry.width, geometry.out_channels, dtype=torch.float32)
        shape = (geometry.images, geometry.out_channels, geometry.out_height, geometry.out_width)
        return torch.empty(shape, dtype=torch.float32, memory_format=torch.channels_last)

    def _maps(self, grad: Tensor) -> Tensor:
        if not self.layer.convolution:
            return grad.contiguous().view(1, 1, *grad.shape)
        return grad.permute(0, 2, 3, 1).contiguous()

    def _weight(self, weight: Tensor) -> Tensor:
        """(O, KH, KW, C / groups)."""
        if not self.layer.convolution:
            return weight.contiguous().view(len(weight), 1, 1, -1)
        return weight.permute(0, 2, 3, 1).contiguous()
