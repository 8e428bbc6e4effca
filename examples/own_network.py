"""Your own PyTorch network on the accelerator: write it, import it, compile it, run it, compare.

Run with: python examples/own_network.py
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

import spikec
from spikec.nn import LIF

TIMESTEPS = 8


class Network(nn.Module):
    """An image shown for TIMESTEPS steps; layers work on time and samples merged, as nn.Conv2d wants it."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, 16, 3, padding=1),
            LIF(threshold=0.4, timesteps=TIMESTEPS),
            nn.Conv2d(16, 24, 3, stride=2, padding=1),
            nn.BatchNorm2d(24),
            LIF(threshold=0.4, timesteps=TIMESTEPS),
            nn.AvgPool2d(2),
            LIF(threshold=0.3, timesteps=TIMESTEPS),
            nn.Flatten(),
            nn.Linear(24 * 4 * 4, 10),
            LIF(threshold=0.2, timesteps=TIMESTEPS),
        )

    def forward(self, image: Tensor) -> Tensor:
        sequence = image.unsqueeze(0).repeat(TIMESTEPS, 1, 1, 1, 1)
        spikes = self.features(sequence.flatten(0, 1))
        return spikes.unflatten(0, (TIMESTEPS, -1)).mean(0)


def main() -> None:
    torch.manual_seed(0)
    network = Network().eval()
    images = torch.rand(8, 3, 16, 16)
    graph = spikec.from_torch(network, images, TIMESTEPS, name="own-network")
    print(spikec.print_graph(graph))

    compiled = spikec.compile_inference(graph, spikec.load_config("h2learn"))
    timing = spikec.program_timing(compiled.program)
    print(f"{compiled.program.instructions} instructions, {timing.cycles_per_sample:,.0f} cycles per sample")

    machine = spikec.run_program(compiled.program, images.numpy())
    with torch.no_grad():
        expected = network(images)
    same = (expected.argmax(1).numpy() == machine.outputs.argmax(1)).mean()
    print(f"predictions that agree with PyTorch: {same:.2f}")


if __name__ == "__main__":
    main()
