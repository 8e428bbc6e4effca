"""The network in norse: a SequentialState of LIFBoxCells, stepped by the user.

Surrogate: its default, SuperSpike with alpha 100. Its step is v + dt / tau * (x - v), which scales the input
by 1 - DECAY; the threshold is scaled alike, so that it spikes as the others do.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tests.bench.training_contenders.networks import DECAY, THRESHOLD, Parts, chain
from tests.bench.training_contenders.setting import Setting

DT_S = 0.001


class Stepped(nn.Module):
    """Shapes: (T, N, C, H, W), or (N, C, H, W) for an image shown at every step -> rates (N, classes)."""

    def __init__(self, network: nn.Module, *, timesteps: int, repeats: bool) -> None:
        super().__init__()
        self.network = network
        self.timesteps = timesteps
        self.repeats = repeats

    def forward(self, x: Tensor) -> Tensor:
        state = None
        recorded = []
        for t in range(self.timesteps):
            spikes, state = self.network(x if self.repeats else x[t], state)
            recorded.append(spikes)
        return torch.stack(recorded).mean(0)


def sequential_state(setting: Setting) -> nn.Module:
    from norse.torch import LIFBoxCell, LIFBoxParameters, SequentialState

    gain = 1 - DECAY
    parameters = LIFBoxParameters(tau_mem_inv=torch.tensor(gain / DT_S), v_th=torch.tensor(gain * THRESHOLD))
    layers = chain(setting.shape, Parts(neuron=lambda: LIFBoxCell(parameters, dt=DT_S)))
    model = Stepped(SequentialState(*layers), timesteps=setting.timesteps, repeats=setting.repeated)
    return setting.prepared(model)
