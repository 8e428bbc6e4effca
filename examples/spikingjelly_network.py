"""A SpikingJelly network, imported, saved as a file and compiled from it.

Run with: python examples/spikingjelly_network.py (needs the extra `frameworks`)
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch
from spikingjelly.activation_based import functional, layer, neuron
from torch import nn

import spikec

TIMESTEPS = 6


def network() -> nn.Module:
    """A multi-step network on event frames [T, N, 2, 12, 12]."""
    net = nn.Sequential(
        layer.Conv2d(2, 12, 3, padding=1),
        neuron.LIFNode(tau=2.0, decay_input=False, v_threshold=0.5),
        layer.MaxPool2d(2),
        layer.Conv2d(12, 16, 5, padding=2),
        neuron.IFNode(v_threshold=0.6, v_reset=None),
        layer.Flatten(),
        layer.Linear(16 * 6 * 6, 10),
        neuron.LIFNode(tau=2.0, decay_input=False, v_threshold=0.5),
    )
    functional.set_step_mode(net, "m")
    return net.eval()


def main() -> None:
    torch.manual_seed(0)
    net = network()
    events = (torch.rand(TIMESTEPS, 4, 2, 12, 12) < 0.3).float()
    graph = spikec.from_torch(net, events, TIMESTEPS, name="events")
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "events.spk"
        spikec.save_graph(graph, file)
        graph = spikec.load_graph(file)

    with torch.no_grad():
        spikes = net(events)
    reference = spikec.evaluate(graph, events).output
    print(f"spikes of SpikingJelly and of the graph that differ: {int((spikes != reference).sum())}")

    program = spikec.compile_inference(graph, spikec.load_config("h2learn")).program
    machine = spikec.run_program(program, events.numpy())
    agree = (machine.outputs == spikes.numpy()).mean()
    print(f"{program.instructions} instructions; output spikes of the machine that agree: {agree:.4f}")


if __name__ == "__main__":
    main()
