"""The network in snnTorch: the user's loop over time with explicit membranes.

Surrogate: its default, atan. It detaches the reset from the gradient, as it always does.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tests.bench.training_contenders.networks import DECAY, THRESHOLD, Parts, chain
from tests.bench.training_contenders.setting import Setting


class UserLoop(nn.Module):
    """Shapes: (T, N, C, H, W), or (N, C, H, W) for an image shown at every step -> rates (N, classes)."""

    def __init__(self, layers: list[nn.Module], neuron: type[nn.Module], *, timesteps: int, repeats: bool) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)
        self.neurons = [i for i, layer in enumerate(layers) if isinstance(layer, neuron)]
        self.timesteps = timesteps
        self.repeats = repeats

    def forward(self, x: Tensor) -> Tensor:
        membranes = {i: self.layers[i].reset_mem() for i in self.neurons}
        recorded = []
        for t in range(self.timesteps):
            spikes = x if self.repeats else x[t]
            for i, layer in enumerate(self.layers):
                if i in membranes:
                    spikes, membranes[i] = layer(spikes, membranes[i])
                else:
                    spikes = layer(spikes)
            recorded.append(spikes)
        return torch.stack(recorded).mean(0)


def user_loop(setting: Setting) -> nn.Module:
    import snntorch

    def leaky() -> nn.Module:
        return snntorch.Leaky(beta=DECAY, threshold=THRESHOLD, reset_mechanism="zero")

    layers = chain(setting.shape, Parts(neuron=leaky))
    model = UserLoop(layers, snntorch.Leaky, timesteps=setting.timesteps, repeats=setting.repeated)
    return setting.prepared(model)
