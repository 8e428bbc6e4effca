"""How sparse a network runs: what share of its neurons spikes, and what share has an open surrogate window."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from compiler.ir import Surrogate
from tests.bench.training_contenders.networks import DECAY, THRESHOLD
from tests.bench.training_contenders.setting import Setting
from tests.bench.training_contenders.vanilla import EquationLIF, time_merged

WINDOW = Surrogate()


@dataclass(frozen=True, slots=True, kw_only=True)
class Density:
    """Of one layer's neurons over all time steps and images.

    spikes: share of ones. open_windows: share of membrane potentials at which the rectangle of equation 2.6 is not 0.
    """

    layer: str
    spikes: float
    open_windows: float


def densities(setting: Setting) -> list[Density]:
    """Of the setting's network on the benchmark's input in training mode, time merged."""
    model = time_merged(setting)
    found: list[Density] = []
    names = iter(setting.shape.layer_names)

    def look(neurons: nn.Module, given: tuple[Tensor], spikes: Tensor) -> None:
        share_open = open_share(given[0], spikes, setting.timesteps)
        found.append(Density(layer=next(names), spikes=spikes.mean().item(), open_windows=share_open))

    for part in model.modules():
        if isinstance(part, EquationLIF):
            part.register_forward_hook(look)
    with torch.no_grad():
        model(setting.merged())
    return found


def open_share(drive: Tensor, spikes: Tensor, timesteps: int) -> float:
    """Share of membrane potentials of equation 4.1 inside the window of the surrogate.

    Shapes: (T * N, ...) time-major, both.
    """
    counted, before = 0, None
    for y, s in zip(drive.chunk(timesteps), spikes.chunk(timesteps), strict=True):
        m = y if before is None else before + y
        counted += int(((m - THRESHOLD).abs() < WINDOW.width).count_nonzero())
        before = DECAY * m * (1 - s)
    return counted / drive.numel()
