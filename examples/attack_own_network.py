"""Attack a network that was trained elsewhere: a SpikingJelly network, and its examples shown to SpikingJelly again.

Run with: python examples/attack_own_network.py (needs the extra `frameworks`)
"""

from __future__ import annotations

import numpy as np
import torch
from sklearn.datasets import load_digits
from spikingjelly.activation_based import functional, layer, neuron, surrogate
from torch import Tensor, nn

import spikec

TIMESTEPS = 6
BATCH = 64
STEPS = 150
ATTACKED = 24


class Network(nn.Module):
    """A digit shown for TIMESTEPS steps; the scores are firing rates."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            layer.Conv2d(1, 8, 3, padding=1),
            neuron.LIFNode(tau=2.0, decay_input=False, surrogate_function=surrogate.ATan()),
            layer.AvgPool2d(2),
            layer.Flatten(),
            layer.Linear(128, 10),
            neuron.LIFNode(tau=2.0, decay_input=False, surrogate_function=surrogate.ATan()),
        )
        functional.set_step_mode(self, "m")

    def forward(self, image: Tensor) -> Tensor:
        return self.layers(image.unsqueeze(0).repeat(TIMESTEPS, 1, 1, 1, 1)).mean(0)


def train(network: Network, images: Tensor, labels: Tensor) -> None:
    """In SpikingJelly, as usual."""
    optimiser = torch.optim.Adam(network.parameters(), lr=5e-3)
    order = torch.randperm(len(images))
    for step in range(STEPS):
        batch = order[torch.arange(step * BATCH, (step + 1) * BATCH) % len(images)]
        optimiser.zero_grad()
        nn.functional.cross_entropy(10 * network(images[batch]), labels[batch]).backward()
        optimiser.step()
        functional.reset_net(network)


def answers(network: Network, images: Tensor) -> Tensor:
    """What SpikingJelly says."""
    with torch.no_grad():
        told = network(images).argmax(1)
    functional.reset_net(network)
    return told


def main() -> None:
    torch.manual_seed(0)
    digits = load_digits()
    images = torch.from_numpy((digits.images[:, None] / 16).astype(np.float32))
    labels = torch.from_numpy(digits.target)
    network = Network()
    train(network, images[:1500], labels[:1500])
    network.eval()
    right = (answers(network, images[1500:]) == labels[1500:]).float().mean()
    print(f"held-out digits that the network tells right: {right:.2f}")

    graph = spikec.from_torch(network, images[:2], TIMESTEPS, name="own-network")
    attacked = slice(1500, 1500 + ATTACKED)
    found = spikec.attack_network(graph, images[attacked].numpy(), labels[attacked].numpy())
    summary = found.summary.as_json()
    print(f"attacked: {summary['attacked']}, success {found.success_rate:.2f}, mean linf {summary['mean_linf']:.3f}")

    examples = torch.from_numpy(found.examples[found.succeeded])
    told, true = answers(network, examples), labels[attacked][torch.from_numpy(found.succeeded)]
    for was, now in list(zip(true.tolist(), told.tolist(), strict=True))[:3]:
        print(f"a {was} that SpikingJelly tells as {now}")
    fooled = int((told != true).sum())
    print(f"examples that do not fool SpikingJelly itself: {len(examples) - fooled} of {len(examples)}")


if __name__ == "__main__":
    main()
