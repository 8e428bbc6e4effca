"""Files of sinabs' own export; it is in the environment of `make test-frontends` only."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from compiler.evaluate import evaluate
from compiler.ir import Reset
from frontends.from_nir import load_nir

STEPS, SAMPLES = 20, 4


@pytest.mark.parametrize("reset", [Reset.SOFT, Reset.HARD])
@pytest.mark.parametrize("norm_input", [True, False])
def test_sinabs(tmp_path: Path, norm_input: bool, reset: Reset) -> None:
    nir = pytest.importorskip("nir")
    layers = pytest.importorskip("sinabs.layers", reason="sinabs is not in this environment")
    activation, exchange = pytest.importorskip("sinabs.activation"), pytest.importorskip("sinabs.nir")

    common = {
        "batch_size": SAMPLES,
        "spike_fn": activation.SingleSpike,
        "reset_fn": activation.MembraneSubtract() if reset is Reset.SOFT else activation.MembraneReset(),
    }
    threshold = torch.tensor(0.125)
    leaky = [
        layers.LIFSqueeze(tau_mem=tau, spike_threshold=threshold, norm_input=norm_input, **common)
        for tau in (10.0, 2.5)
    ]
    net = nn.Sequential(
        nn.Linear(6, 8), leaky[0], nn.Linear(8, 6, bias=False), leaky[1], nn.Linear(6, 5), layers.IAFSqueeze(**common)
    )
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for layer in net:
            for parameter in layer.parameters() if isinstance(layer, nn.Linear) else ():
                parameter.copy_(torch.randint(-1, 6, parameter.shape, generator=generator) / 8)
    random = torch.rand((STEPS, SAMPLES, 6), generator=generator)
    path = tmp_path / "net.nir"
    nir.write(path, exchange.to_nir(net, merged(random)), compression=None)
    imported = load_nir(path, timesteps=STEPS, norm_input=norm_input, reset=reset)
    assert "read as sinabs writes it" in imported.findings[0].text
    for x in (random, torch.randint(0, 9, random.shape, generator=generator) / 8):
        for cell in (*leaky, net[-1]):
            cell.reset_states()
        with torch.no_grad():
            want = net(merged(x)).unflatten(0, (SAMPLES, STEPS)).transpose(0, 1)
        assert torch.equal(evaluate(imported.graph, x).output, want)
        assert want.mean() > 0.02


def merged(x: Tensor) -> Tensor:
    """(T, N, ...) with the samples outermost, (N * T, ...), as sinabs takes it."""
    return x.transpose(0, 1).flatten(0, 1)
