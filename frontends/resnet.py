"""The residual network of chapter 4; its sums are of BatchNorm outputs, never of spikes."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from frontends.spiking_network import (
    HIDDEN_MOMENT,
    IMAGE_MOMENT,
    mean_over_time,
    neuron_module,
    neuron_timesteps,
    scale_weight,
)
from frontends.zoo import Neuron, ZooEntry

STAGES = ((64, 3), (128, 4), (256, 6), (512, 3))  # channels, blocks
CLASSES = 1000


class ResidualBlock(nn.Module):
    """LIF-conv-BatchNorm-LIF-conv-BatchNorm plus a shortcut: identity, or LIF-1x1 conv-BatchNorm.

    Shapes: x (T*N, C, H, W) real-valued -> the same, or (T*N, channels, H/2, W/2) with stride 2.
    """

    def __init__(self, before: int, channels: int, stride: int, *, neuron: Neuron, timesteps: int) -> None:
        super().__init__()
        self.lif1 = neuron_module(neuron, timesteps)
        self.conv1 = _conv(before, channels, 3, stride, neuron=neuron, moment=HIDDEN_MOMENT)
        self.norm1 = nn.BatchNorm2d(channels)
        self.lif2 = neuron_module(neuron, timesteps)
        self.conv2 = _conv(channels, channels, 3, 1, neuron=neuron, moment=HIDDEN_MOMENT)
        self.norm2 = nn.BatchNorm2d(channels)
        self.shortcut: nn.Sequential | None = None
        if stride != 1 or before != channels:
            self.shortcut = nn.Sequential()
            self.shortcut.add_module("lif", neuron_module(neuron, timesteps))
            self.shortcut.add_module("conv", _conv(before, channels, 1, stride, neuron=neuron, moment=HIDDEN_MOMENT))
            self.shortcut.add_module("norm", nn.BatchNorm2d(channels))

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm1(self.conv1(self.lif1(x)))
        y = self.norm2(self.conv2(self.lif2(y)))
        kept: Tensor = x if self.shortcut is None else self.shortcut(x)
        total: Tensor = kept + y
        return total


class SpikingResNet(nn.Module):
    """Stem, four stages of residual blocks, last neurons, mean over time, global pooling, linear layer.

    Shapes: images (N, 3, 32k, 32k) -> scores (N, 1000); the printed size is 224.
    """

    def __init__(self, entry: ZooEntry, *, timesteps: int) -> None:
        super().__init__()
        channels, height, width = entry.input_shape
        self.takes_spikes = False
        self.stem = _conv(channels, STAGES[0][0], 7, 2, neuron=entry.neuron, moment=IMAGE_MOMENT)
        self.norm = nn.BatchNorm2d(STAGES[0][0])
        blocks = []
        before = STAGES[0][0]
        for stage_channels, count in STAGES:
            for index in range(count):
                stride = 2 if index == 0 else 1
                block = ResidualBlock(before, stage_channels, stride, neuron=entry.neuron, timesteps=timesteps)
                blocks.append(block)
                before = stage_channels
        self.blocks = nn.Sequential(*blocks)
        self.lif = neuron_module(entry.neuron, timesteps)
        shrink = 2 ** (1 + len(STAGES))
        self.pool = nn.AvgPool2d((height // shrink, width // shrink))
        self.flatten = nn.Flatten()
        self.head = nn.Linear(before, CLASSES)

    @property
    def timesteps(self) -> int:
        """Time steps that each image is shown for, as the neurons have them."""
        return neuron_timesteps(self)

    def forward(self, x: Tensor) -> Tensor:
        timesteps = self.timesteps
        merged = x.unsqueeze(0).repeat(timesteps, 1, 1, 1, 1).flatten(0, 1)
        y = self.blocks(self.norm(self.stem(merged)))
        rate = mean_over_time(self.lif(y), timesteps)
        scores: Tensor = self.head(self.flatten(self.pool(rate)))
        return scores


def spiking_resnet34(entry: ZooEntry, *, seed: int, timesteps: int) -> SpikingResNet:
    """ResNet-34 with fresh weights from the seed, in evaluation mode.

    Source: chapter 4; each stage's first block, the first stage's too, has stride 2, so that 224 becomes 7.
    """
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        return SpikingResNet(entry, timesteps=timesteps).eval()


def _conv(before: int, after: int, kernel: int, stride: int, *, neuron: Neuron, moment: float) -> nn.Conv2d:
    conv = nn.Conv2d(before, after, kernel, stride=stride, padding=kernel // 2, bias=False)
    scale_weight(conv.weight, neuron, moment)
    return conv
