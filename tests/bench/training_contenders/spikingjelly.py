"""The network in SpikingJelly, multi-step, with and without its memory optimisation.

Surrogate: its ATan, as its examples have it. tau and decay_input make the neuron's equation that of the others.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tests.bench.training_contenders.networks import DECAY, THRESHOLD, Parts, chain
from tests.bench.training_contenders.setting import Setting


class Block(nn.Sequential):
    """A pool or flatten, the layer, its normalisation and its neurons: the unit that memopt checkpoints.

    It begins with what takes spikes, so that memopt finds a binary input to compress.
    """


class MultiStep(nn.Module):
    """Shapes: (T, N, C, H, W), or (N, C, H, W) for an image to repeat -> rates (N, classes)."""

    def __init__(self, blocks: list[nn.Module], *, timesteps: int, repeats: bool) -> None:
        super().__init__()
        self.blocks = nn.Sequential(*blocks)
        self.timesteps = timesteps
        self.repeats = repeats

    def forward(self, x: Tensor) -> Tensor:
        from spikingjelly.activation_based import functional

        functional.reset_net(self)
        if self.repeats:
            x = x.unsqueeze(0).repeat(self.timesteps, 1, 1, 1, 1)
        rates: Tensor = self.blocks(x).mean(0)
        return rates


def multi_step(setting: Setting) -> MultiStep:
    from spikingjelly.activation_based import functional, layer, neuron, surrogate

    def lif() -> nn.Module:
        return neuron.LIFNode(
            tau=1 / (1 - DECAY),
            decay_input=False,
            v_threshold=THRESHOLD,
            v_reset=0.0,
            surrogate_function=surrogate.ATan(),
            step_mode="m",
        )

    parts = Parts(
        neuron=lif,
        conv=layer.Conv2d,
        norm=layer.BatchNorm2d,
        pool=layer.AvgPool2d,
        flatten=layer.Flatten,
        linear=layer.Linear,
    )
    blocks = _blocks(chain(setting.shape, parts), neuron.LIFNode)
    model = MultiStep(blocks, timesteps=setting.timesteps, repeats=setting.repeated)
    functional.set_step_mode(model, "m")
    return setting.prepared(model)


def memory_optimised(setting: Setting) -> nn.Module:
    """Level 1, all blocks, spikes packed to bits; the higher levels need CUDA."""
    from spikingjelly.activation_based import memopt

    model = multi_step(setting)
    x = setting.sequence()
    with torch.no_grad():
        return memopt.optimize_memory(model, Block, lambda given: given(x), level=1)


def _blocks(modules: list[nn.Module], neuron: type[nn.Module]) -> list[nn.Module]:
    blocks: list[nn.Module] = []
    waiting: list[nn.Module] = []
    for module in modules:
        waiting.append(module)
        if isinstance(module, neuron):
            blocks.append(Block(*waiting))
            waiting = []
    return blocks
