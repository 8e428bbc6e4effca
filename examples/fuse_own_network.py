"""Train your own PyTorch network on fused kernels: the same parameters, the same gradients, less memory.

Run with: python examples/fuse_own_network.py
"""

from __future__ import annotations

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional

import spikec
from spikec.nn import LIF

TIMESTEPS = 6
BATCH = 32
STEPS = 120


class Network(nn.Module):
    """A digit shown for TIMESTEPS steps; batch norm before the neurons of each convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1, bias=False),
            nn.BatchNorm2d(16),
            LIF(timesteps=TIMESTEPS),
            nn.Conv2d(16, 32, 3, padding=1, bias=False),
            nn.BatchNorm2d(32),
            LIF(timesteps=TIMESTEPS),
            nn.AvgPool2d(2),
            nn.Flatten(),
            nn.Linear(512, 10),
        )

    def forward(self, image: Tensor) -> Tensor:
        sequence = image.unsqueeze(0).repeat(TIMESTEPS, 1, 1, 1, 1)
        return self.layers(sequence.flatten(0, 1)).unflatten(0, (TIMESTEPS, -1)).mean(0)


def main() -> None:
    torch.manual_seed(0)
    digits = load_digits()
    images = torch.from_numpy((digits.images[:, None] / 16).astype(np.float32))
    labels = torch.from_numpy(digits.target)
    network = Network()
    fused = spikec.fuse(network, images[:BATCH], TIMESTEPS)  # holds the parameters of `network` itself
    print(fused.describe())

    for name, module in (("PyTorch", network), ("fused", fused)):
        print(f"kept for the backward pass by {name:7} {kept_kilobytes(module, images[:BATCH]):,.0f} kB")

    optimiser = torch.optim.Adam(fused.parameters(), lr=2e-3)
    order = torch.randperm(1500)
    for step in range(STEPS):
        batch = order[step * BATCH % 1440 :][:BATCH]
        optimiser.zero_grad()
        loss = functional.cross_entropy(fused(images[batch]), labels[batch])
        loss.backward()
        optimiser.step()
        if step % 40 == 39:
            print(f"step {step + 1}: loss {loss:.4f}")
    network.eval()  # it has learnt, since its parameters are those that were trained
    with torch.no_grad():
        correct = int((network(images[1500:]).argmax(1) == labels[1500:]).sum())
    print(f"held-out digits correct: {correct} of {len(images) - 1500}")
    print(f"learned something: {correct > 0.8 * (len(images) - 1500)}")


def kept_kilobytes(module: nn.Module, x: Tensor) -> float:
    """What autograd holds after a forward pass beside the parameters, each memory once."""
    storages = {}

    def note(tensor: Tensor) -> Tensor:
        storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        module(x)
    for parameter in module.parameters():
        storages.pop(parameter.untyped_storage().data_ptr(), None)
    return sum(storages.values()) / 1000


if __name__ == "__main__":
    main()
