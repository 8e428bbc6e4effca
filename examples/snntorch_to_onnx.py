"""A snnTorch network with its own loop over time: imported, written as ONNX, and run there with the same spikes.

Run with: python examples/snntorch_to_onnx.py (needs the extras `frameworks` and `onnx`, and onnxruntime)
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import onnxruntime
import snntorch
import torch
from torch import Tensor, nn

import spikec

TIMESTEPS = 12


class Network(nn.Module):
    """An image at each step; the spikes of the last layer at every step."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 8, 3, padding=1)
        self.first = snntorch.Leaky(beta=0.875, threshold=0.5)
        self.fc = nn.Linear(8 * 6 * 6, 10)
        self.last = snntorch.Leaky(beta=0.75, threshold=0.125, reset_mechanism="zero")

    def forward(self, image: Tensor) -> Tensor:
        first, last, spikes = self.first.init_leaky(), self.last.init_leaky(), []
        for _ in range(TIMESTEPS):
            hidden, first = self.first(self.conv(image), first)
            spike, last = self.last(self.fc(hidden.flatten(1)), last)
            spikes.append(spike)
        return torch.stack(spikes)


def main() -> None:
    torch.manual_seed(0)
    network, images = Network().eval(), torch.rand(4, 1, 6, 6)
    graph = spikec.from_torch(network, images, TIMESTEPS, name="snntorch")
    print(spikec.print_graph(graph))
    with torch.no_grad():
        want = network(images)
    ours = spikec.evaluate(graph, images).output
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "network.onnx"
        spikec.to_onnx(graph, file)
        session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
        (onnx,) = session.run(None, {session.get_inputs()[0].name: images.numpy()})
        again = spikec.load_onnx(file).graph
    print(f"spikes: {int(want.sum())} of {want.numel()}")
    print(f"spikes of snnTorch that differ from the graph's: {int((want != ours).sum())}")
    print(f"spikes of onnxruntime that differ from the graph's: {int(np.not_equal(onnx, ours.numpy()).sum())}")
    print(f"the file gives the same graph back: {again == graph}")


if __name__ == "__main__":
    main()
