"""A layer with random spikes, mask and gradients, and what takes turns: torch in both layouts, and spike kernels."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn import functional

from compiler.fused.program import Layer
from compiler.fused.spikes.costs import Pass, Way
from compiler.fused.spikes.geometry import Geometry
from runtime.fused.arena import Arena
from runtime.fused.spikes.launch import Take
from runtime.fused.spikes.layer import SpikeLayer
from runtime.fused.spikes.words import pack, word_shape

LAYOUTS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
Call = Callable[[], Tensor | None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """What of a pass is timed.

    pack: that spikes and masks become words is part of it. window: share of the mask's ones.
    """

    pack: bool = True
    window: float = 0.3


@dataclass(frozen=True, slots=True)
class Trial:
    """Random numbers of a layer's sizes. Shapes: as torch has them; of maps, the channels last in memory."""

    layer: SpikeLayer
    arena: Arena = field(default_factory=Arena)
    random: torch.Generator = field(default_factory=lambda: torch.Generator().manual_seed(0))

    @classmethod
    def of(cls, geometry: Geometry) -> Trial:
        """A convolution without bias, as before a batch norm."""
        layer = Layer(
            convolution=True, bias=False, stride=geometry.stride, padding=geometry.padding, groups=geometry.groups
        )
        return cls(SpikeLayer(layer, geometry))

    def weight(self) -> Tensor:
        """Normally distributed."""
        geometry = self.layer.geometry
        weight = torch.randn(
            geometry.out_channels, *geometry.kernel, geometry.group_channels, generator=self.random
        ).permute(0, 3, 1, 2)
        return weight if self.layer.layer.convolution else weight.flatten(1)

    def spikes(self, share: float) -> Tensor:
        """Ones and zeros."""
        geometry = self.layer.geometry
        shape = (geometry.images, geometry.height, geometry.width, geometry.channels)
        return self._rows((torch.rand(shape, generator=self.random) < share).float())

    def gradient(self, share: float = 1.0) -> Tensor:
        """Of the result: normally distributed, of which a share is not zero."""
        geometry = self.layer.geometry
        shape = (geometry.images, geometry.out_height, geometry.out_width, geometry.out_channels)
        grad = torch.randn(shape, generator=self.random)
        if share < 1.0:
            grad *= torch.rand(shape, generator=self.random) < share
        return self._rows(grad)

    def words(self, spikes: Tensor, of: str = "words") -> Tensor:
        """The spikes as bits."""
        geometry = self.layer.geometry
        rows = spikes.permute(0, 2, 3, 1) if self.layer.layer.convolution else spikes.view(1, 1, *spikes.shape)
        found = self.take(of)("packed", word_shape(geometry), torch.int32)
        pack(geometry, rows, found, self.take(of))
        return found

    def take(self, of: str) -> Take:
        """Scratch memory, as the fused step has it: handed out again and again."""
        return lambda role, shape, dtype: self.arena.take(("bench", of, role, 0), shape, dtype)

    def _rows(self, values: Tensor) -> Tensor:
        return values.permute(0, 3, 1, 2) if self.layer.layer.convolution else values.view(values.shape[2:])


@dataclass(frozen=True, slots=True)
class Inputs:
    """Of all passes of a convolution."""

    spikes: Tensor
    weight: Tensor
    grad: Tensor
    mask: Tensor

    @classmethod
    def of(cls, trial: Trial, *, spikes: float, window: float, grad: float = 1.0) -> Inputs:
        """With these shares of ones, of open neurons, and of gradients that are not zero."""
        return cls(trial.spikes(spikes), trial.weight(), trial.gradient(grad), trial.spikes(window))

    def laid_out(self, layout: str) -> Inputs:
        """Everything that torch's kernels read, so laid out."""
        memory = LAYOUTS[layout]
        spikes, weight, grad = (each.contiguous(memory_format=memory) for each in (self.spikes, self.weight, self.grad))
        return Inputs(spikes, weight, grad, self.mask)


@dataclass(frozen=True, slots=True)
class Dense:
    """Torch's kernels in one layout."""

    layer: Layer
    inputs: Inputs

    def pass_(self, of: Pass) -> Call:
        """One pass; returns its result."""
        match of:
            case Pass.FORWARD:
                return self._forward
            case Pass.WEIGHT_GRADIENT:
                return lambda: self._backward(grad_x=False)[1]
            case Pass.INPUT_GRADIENT:
                return lambda: self._backward(grad_weight=False)[0]

    def step(self) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """The result, the weight's gradient and the input's."""
        y = self._forward()
        grad_x, grad_weight, _ = self._backward()
        return y, grad_weight, grad_x

    def _forward(self) -> Tensor:
        layer, inputs = self.layer, self.inputs
        return functional.conv2d(inputs.spikes, inputs.weight, None, layer.stride, layer.padding, 1, layer.groups)

    def _backward(
        self, *, grad_x: bool = True, grad_weight: bool = True
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        layer, inputs = self.layer, self.inputs
        found: tuple[Tensor | None, Tensor | None, Tensor | None] = torch.ops.aten.convolution_backward(
            inputs.grad, inputs.spikes, inputs.weight, None, layer.stride, layer.padding, (1, 1), False, (0, 0),
            layer.groups, (grad_x, grad_weight, False),
        )  # fmt: skip
        return found


@dataclass(frozen=True, slots=True)
class Spiking:
    """Spike kernels. words, mask: made before, where packing is not part of the call."""

    trial: Trial
    inputs: Inputs
    words: Tensor | None
    mask: Tensor | None

    @classmethod
    def of(cls, trial: Trial, inputs: Inputs, setting: Setting) -> Spiking:
        """With words that are there, unless packing is timed."""
        if setting.pack:
            return cls(trial, inputs, None, None)
        return cls(trial, inputs, trial.words(inputs.spikes), trial.words(inputs.mask, "mask"))

    def pass_(self, of: Pass, way: Way) -> Call:
        """One pass; returns its result."""
        match of:
            case Pass.FORWARD:
                return lambda: self._forward(way, self._words())
            case Pass.WEIGHT_GRADIENT:
                return lambda: self._grad_weight(way, self._words())
            case Pass.INPUT_GRADIENT:
                return lambda: self._grad_input(way)

    def step(self, ways: Mapping[Pass, Way]) -> tuple[Tensor, Tensor, Tensor]:
        """The result, the weight's gradient and the input's; the words serve the first two."""
        words = self._words()
        y = self._forward(ways[Pass.FORWARD], words)
        grad_weight = self._grad_weight(ways[Pass.WEIGHT_GRADIENT], words)
        return y, grad_weight, self._grad_input(ways[Pass.INPUT_GRADIENT])

    def _forward(self, way: Way, words: Tensor) -> Tensor:
        trial = self.trial
        return trial.layer.forward(way, words, self.inputs.weight, None, trial.take("forward"))

    def _grad_weight(self, way: Way, words: Tensor) -> Tensor:
        trial = self.trial
        return trial.layer.grad_weight(way, words, self.inputs.grad, self.inputs.weight, trial.take("backward"))

    def _grad_input(self, way: Way) -> Tensor:
        trial = self.trial
        mask = self.mask if self.mask is not None else trial.words(self.inputs.mask, "mask")
        return trial.layer.grad_input(way, self.inputs.grad, mask, self.inputs.weight, trial.take("backward"))

    def _words(self) -> Tensor:
        return self.words if self.words is not None else self.trial.words(self.inputs.spikes)
