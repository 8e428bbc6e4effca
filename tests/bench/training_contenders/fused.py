"""The network of spikec's own neurons, time-merged, handed to `spikec.fuse`; and twice with one part of it left out."""

from __future__ import annotations

from torch import nn

import spikec
from tests.bench.training_contenders.setting import Setting
from tests.bench.training_contenders.vanilla import own_layers


def fused(setting: Setting) -> nn.Module:
    """As users have it."""
    model: nn.Module = spikec.fuse(own_layers(setting), setting.merged(), timesteps=setting.timesteps)
    return model.train()


def kept(setting: Setting) -> nn.Module:
    """Layers' results are all kept for the backward pass."""
    model: nn.Module = spikec.fuse(own_layers(setting), setting.merged(), timesteps=setting.timesteps, recompute=False)
    return model.train()


def dense(setting: Setting) -> nn.Module:
    """Layers with spike input run on torch's kernels as all others do."""
    model: nn.Module = spikec.fuse(
        own_layers(setting), setting.merged(), timesteps=setting.timesteps, spike_kernels="off"
    )
    return model.train()
