"""The network of spikec's own neurons, time-merged, handed to `spikec.fuse`."""

from __future__ import annotations

from torch import nn

import spikec
from tests.bench.training_contenders.setting import Setting
from tests.bench.training_contenders.vanilla import own_layers


def fused(setting: Setting) -> nn.Module:
    model: nn.Module = spikec.fuse(own_layers(setting), setting.merged(), timesteps=setting.timesteps)
    return model.train()
