"""A population of leaky integrate-and-fire neurons that inhibit each other, or do not."""

from __future__ import annotations

import torch
from torch import Tensor


def competing(drive: Tensor, threshold: Tensor, decay: float) -> Tensor:
    """Spikes under lateral inhibition: of the neurons that reach their threshold, the one furthest above it fires.

    m[t] = decay * v[t-1] + drive[t]; its spike resets every potential of the sample to 0: its own, since it fired,
    the others by inhibition. Of neurons equally far above, the first fires.

    Shapes: drive (T, N, J), threshold (J,) -> spikes (T, N, J).
    """
    spikes = torch.zeros_like(drive)
    v = torch.zeros_like(drive[0])
    for t in range(len(drive)):
        m = v.mul(decay).add_(drive[t])
        excess, winner = (m - threshold).max(1)
        fires = excess >= 0
        spikes[t].scatter_(1, winner.unsqueeze(1), fires.unsqueeze(1).to(drive.dtype))
        v = m.masked_fill_(fires.unsqueeze(1), 0.0)
    return spikes


def uncoupled_counts(drive: Tensor, threshold: Tensor, decay: float) -> Tensor:
    """Spikes of each neuron over the presentation, without inhibition: a spike resets its own neuron to 0.

    Shapes: drive (T, N, J), threshold (J,) -> counts (N, J).
    """
    counts = torch.zeros_like(drive[0])
    v = torch.zeros_like(drive[0])
    for t in range(len(drive)):
        m = v.mul(decay).add_(drive[t])
        fires = m >= threshold
        counts += fires
        v = m.masked_fill_(fires, 0.0)
    return counts
