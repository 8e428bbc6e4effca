"""Train your own PyTorch network on the accelerator, and look at its gradients beside exact ones.

Run with: python examples/train_own_network.py
"""

from __future__ import annotations

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

import spikec
from spikec.nn import LIF

TIMESTEPS = 6
BATCH = 16
STEPS = 60


class Network(nn.Module):
    """A digit shown for TIMESTEPS steps; no batch norm, which the accelerator does not train."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1),
            LIF(timesteps=TIMESTEPS),
            nn.Conv2d(16, 16, 3, padding=1),
            nn.AvgPool2d(2),
            LIF(timesteps=TIMESTEPS),
            nn.Flatten(),
            nn.Linear(256, 10),
            LIF(timesteps=TIMESTEPS),
        )

    def forward(self, image: Tensor) -> Tensor:
        sequence = image.unsqueeze(0).repeat(TIMESTEPS, 1, 1, 1, 1)
        return self.layers(sequence.flatten(0, 1)).unflatten(0, (TIMESTEPS, -1)).mean(0)


def main() -> None:
    torch.manual_seed(0)
    digits = load_digits()
    images = (digits.images[:, None] / 16).astype(np.float32)
    network = Network()
    for layer in network.layers:
        if isinstance(layer, nn.Conv2d | nn.Linear):
            nn.init.normal_(layer.weight, 0.0, 1.2 / layer.weight[0].numel() ** 0.5)
    graph = spikec.from_torch(network.eval(), torch.from_numpy(images[:2]), TIMESTEPS, name="own-network")

    descent = spikec.Descent(learning_rate=1.0, momentum=0.5, loss_scale=256.0, batch_group=BATCH // 4)
    config = spikec.load_config("h2learn")
    compiled = spikec.compile_training(graph, config, loss=spikec.Loss.MSE, descent=descent)
    session = spikec.TrainingSession(compiled.program)

    _, machine = session.gradients(images[:BATCH], digits.target[:BATCH])
    exact = spikec.run_training(
        spikec.differentiate(compiled.graph, spikec.Loss.MSE),
        torch.from_numpy(images[:BATCH]),
        torch.from_numpy(digits.target[:BATCH]),
    ).gradients
    cosines = {name: cosine(machine[name], exact[name].numpy()) for name in machine}
    for name, value in cosines.items():
        print(f"gradient of {name:16} on the machine and in f32: cosine {value:.4f}")

    order = np.random.default_rng(0).permutation(1500)
    for step in range(STEPS):
        batch = order[step * BATCH : (step + 1) * BATCH]
        report = session.step(images[batch], digits.target[batch])
        if step % 20 == 19:
            print(f"step {step + 1}: loss {report.loss:.4f}, {report.correct} of {report.samples} correct")
    held_out, _ = session.gradients(images[1500:1628], digits.target[1500:1628])
    print(f"held-out digits correct after {STEPS} steps: {held_out.correct} of {held_out.samples}")
    learned = held_out.correct > held_out.samples // 2 and min(cosines.values()) > 0.9
    print(f"learned something: {learned}")


def cosine(left: np.ndarray, right: np.ndarray) -> float:
    """Cosine of the angle between two gradients."""
    return float((left * right).sum() / np.sqrt((left**2).sum() * (right**2).sum()))


if __name__ == "__main__":
    main()
