"""Files of each framework give the framework's spikes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import nir
import norse.torch as norse
import numpy as np
import pytest
import snntorch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from norse.torch.functional.iaf import IAFParameters
from norse.torch.functional.leaky_integrator_box import LIBoxParameters
from norse.torch.functional.lif_box import LIFBoxParameters
from norse.torch.functional.reset import reset_subtract, reset_value
from norse.torch.utils.export_nir import _extract_norse_module
from norse.torch.utils.export_nir import to_nir as norse_to_nir
from snntorch.export_nir import _extract_snntorch_module
from spikingjelly.activation_based import functional, layer, neuron
from spikingjelly.activation_based.nir_exchange import export_to_nir
from torch import Tensor, nn

from compiler.evaluate import evaluate
from compiler.ir import CompileError, Graph, Reset
from compiler.ir.ops import Lif
from frontends.findings import Ground
from frontends.from_nir import Choices, Writer, from_nir_node, load_nir
from tests.frontends.nir_files import chain, read_here

STEPS, SAMPLES = 20, 4


def drives(*shape: int) -> list[Tensor]:
    """A random input, and one on a grid of 1/8 that makes potentials meet thresholds."""
    generator = torch.Generator().manual_seed(3)
    random = torch.rand((STEPS, SAMPLES, *shape), generator=generator)
    return [random, torch.randint(0, 9, random.shape, generator=generator) / 8]


def on_grid(module: nn.Module, seed: int = 0) -> nn.Module:
    """Weights that are multiples of 1/8, mostly positive."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.ndim:
                parameter.copy_(torch.randint(-2, 4, parameter.shape, generator=generator) / 8)
    return module


def differences(graph: Graph, x: Tensor, run: Callable[[Tensor], Tensor]) -> tuple[int, float]:
    """How many values differ from the framework's, and how many neurons of it fire on average."""
    with torch.no_grad():
        want = run(x)
    return int((evaluate(graph, x).output != want).sum()), float((want != 0).float().mean())


def assert_same(graph: Graph, run: Callable[[Tensor], Tensor], *shape: int) -> None:
    """No value differs, and the output is neither silent nor always firing."""
    for x in drives(*shape):
        count, rate = differences(graph, x, run)
        assert count == 0
        assert rate > 0.02


# SpikingJelly


def spikingjelly_run(net: nn.Module) -> Callable[[Tensor], Tensor]:
    def run(x: Tensor) -> Tensor:
        functional.reset_net(net)
        y: Tensor = net(x)
        return y

    return run


@pytest.mark.parametrize("dt", [1e-4, 1e-3])
def test_spikingjelly_convolutions(tmp_path: Path, dt: float) -> None:
    net = nn.Sequential(
        layer.Conv2d(2, 4, 3, padding=1),
        neuron.LIFNode(tau=2.0),
        layer.AvgPool2d(2),
        layer.Conv2d(4, 4, 3, padding="same", bias=False),
        neuron.IFNode(v_threshold=0.5),
        layer.Flatten(),
        layer.Linear(64, 6),
        neuron.LIFNode(tau=1.7, decay_input=False, v_reset=-0.25, v_threshold=0.5),
    )
    functional.set_step_mode(on_grid(net), "m")
    path = tmp_path / "net.nir"
    export_to_nir(net, drives(2, 8, 8)[0], path, dt=dt)
    imported = load_nir(path, timesteps=STEPS, dt=dt)
    assert imported.findings[0].ground is Ground.ASSUMED
    assert "read as spikingjelly writes it" in imported.findings[0].text
    assert_same(imported.graph, spikingjelly_run(net), 2, 8, 8)
    guessed = load_nir(path, timesteps=STEPS)
    assert guessed.graph == imported.graph, "r of the IF says what dt is"
    assert any(f.ground is Ground.READ and f"dt is {dt:g} s" in f.text for f in guessed.findings)


NODES = st.fixed_dictionaries(
    {
        "tau": st.floats(1.01, 50.0),
        "decay_input": st.booleans(),
        "v_threshold": st.floats(0.1, 2.0),
        "v_reset": st.sampled_from([0.0, -0.5, 0.05]),
    }
)


@given(
    st.lists(NODES | st.fixed_dictionaries({"v_threshold": st.floats(0.1, 2.0)}), min_size=1, max_size=3),
    st.sampled_from([1e-4, 1e-3, 0.25, 3e-5]),
    st.integers(0, 99),
)
@settings(max_examples=25)
def test_spikingjelly_settings(
    tmp_path_factory: pytest.TempPathFactory, cells: list[dict[str, Any]], dt: float, seed: int
) -> None:
    layers: list[nn.Module] = []
    for i, values in enumerate(cells):
        layers.append(on_grid(layer.Linear(6, 6), seed + i))
        layers.append(neuron.LIFNode(**values) if "tau" in values else neuron.IFNode(**values))
    net = nn.Sequential(*layers)
    functional.set_step_mode(net, "m")
    path = tmp_path_factory.mktemp("nir") / "net.nir"
    export_to_nir(net, drives(6)[0], path, dt=dt)
    choices = Choices(writer=Writer.SPIKINGJELLY, dt=dt)
    graph = from_nir_node(read_here(path), "net.nir", timesteps=STEPS, choices=choices).graph
    for x in drives(6):
        assert differences(graph, x, spikingjelly_run(net))[0] == 0
    for values, node in zip(cells, (n for n in graph.nodes if isinstance(n.op, Lif)), strict=True):
        assert isinstance(node.op, Lif)
        want = 1.0 - 1.0 / values["tau"] if "tau" in values else 1.0
        assert node.op.decay == pytest.approx(want, rel=0.0, abs=2.0**-52), "tau * dt has lost a bit of tau"


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.a = layer.Conv2d(1, 4, 3, padding=1), neuron.LIFNode(tau=2.0, v_threshold=0.5)
        self.conv, self.b = layer.Conv2d(4, 4, 3, padding=1), neuron.LIFNode(tau=4.0, v_threshold=0.5)
        self.flat, self.fc, self.c = layer.Flatten(), layer.Linear(100, 5), neuron.ParametricLIFNode(init_tau=2.0)

    def forward(self, x: Tensor) -> Tensor:
        y = self.a(self.stem(x))
        y = self.b(self.conv(y) + y)
        z: Tensor = self.c(self.fc(self.flat(y)))
        return z


def test_spikingjelly_residual_sums(tmp_path: Path) -> None:
    net = on_grid(Residual())
    functional.set_step_mode(net, "m")
    path = tmp_path / "net.nir"
    export_to_nir(net, drives(1, 5, 5)[0], path)
    assert_same(load_nir(path, timesteps=STEPS).graph, spikingjelly_run(net), 1, 5, 5)


def test_spikingjelly_lines(tmp_path: Path) -> None:
    net = nn.Sequential(
        layer.Conv1d(2, 4, 3, stride=2, padding=1),
        neuron.LIFNode(tau=2.0, v_threshold=0.5),
        layer.Flatten(),
        layer.Linear(16, 4, bias=False),
        neuron.IFNode(),
    )
    functional.set_step_mode(on_grid(net), "m")
    path = tmp_path / "net.nir"
    export_to_nir(net, drives(2, 8)[0], path)
    graph = load_nir(path, timesteps=STEPS).graph
    run = spikingjelly_run(net)
    for x in drives(2, 8):
        with torch.no_grad():
            assert torch.equal(evaluate(graph, x.unsqueeze(3)).output, run(x))


# norse


def norse_run(net: nn.Module) -> Callable[[Tensor], Tensor]:
    def run(x: Tensor) -> Tensor:
        state, outputs = None, []
        for step in x:
            y, state = net(step, state)
            outputs.append(y)
        return torch.stack(outputs)

    return run


def test_norse_its_own_export(tmp_path: Path) -> None:
    first = LIFBoxParameters(v_th=torch.tensor(0.25), v_leak=torch.tensor(0.125), tau_mem_inv=torch.tensor(250.0))
    net = norse.SequentialState(
        on_grid(nn.Linear(12, 16)),
        norse.LIFBoxCell(first),
        on_grid(nn.Linear(16, 8, bias=False)),
        norse.IAFCell(IAFParameters(v_th=torch.tensor(0.5))),
    )
    path = tmp_path / "net.nir"
    nir.write(path, norse_to_nir(net, drives(12)[0][0]), compression=None)
    imported = load_nir(path, timesteps=STEPS)
    assert "read as norse writes it" in imported.findings[0].text
    assert_same(imported.graph, norse_run(net), 12)


@pytest.mark.parametrize("reset", [Reset.HARD, Reset.SOFT])
def test_norse_convolutions_and_other_steps(tmp_path: Path, reset: Reset) -> None:
    """Its export leaves the shape of feature maps out, which the nir package cannot write; it is put in here."""
    dt = 2.0**-9
    method = reset_value if reset is Reset.HARD else reset_subtract
    neurons = [
        LIFBoxParameters(tau_mem_inv=torch.tensor(inverse), v_th=torch.tensor(0.25), reset_method=method)
        for inverse in (128.0, 64.0)
    ]
    layers = [on_grid(nn.Conv2d(1, 4, 3)), on_grid(nn.Conv2d(4, 3, (3, 2)), seed=1)]
    cells = [layers[0], norse.LIFBoxCell(neurons[0], dt=dt), layers[1], norse.LIFBoxCell(neurons[1], dt=dt)]
    nodes = [_extract_norse_module(cell, dt=dt) for cell in cells]
    nodes[0].input_shape, nodes[2].input_shape = (6, 6), (4, 4)
    path = chain(tmp_path / "net.nir", (SAMPLES, 1, 6, 6), *nodes)
    graph = load_nir(path, timesteps=STEPS, writer=Writer.NORSE, dt=dt, reset=reset).graph
    assert_same(graph, norse_run(norse.SequentialState(*cells)), 1, 6, 6)


def test_norse_integrators(tmp_path: Path) -> None:
    cells = [on_grid(nn.Linear(6, 4)), norse.LIBoxCell(LIBoxParameters(v_leak=torch.tensor(0.5)), dt=1e-3)]
    path = chain(tmp_path / "net.nir", (6,), *(_extract_norse_module(cell) for cell in cells))
    graph = load_nir(path, timesteps=STEPS, writer=Writer.NORSE).graph
    for x in drives(6):
        with torch.no_grad():
            want = norse_run(norse.SequentialState(*cells))(x)
        # norse adds dt * tau_inv * (x + leak - v) to v: the same real number, rounded at other places
        torch.testing.assert_close(evaluate(graph, x).output, want, rtol=1e-5, atol=1e-6)


# snnTorch: what its export function makes of each module; its tracing fails with this version of nir


def snntorch_run(net: list[Any]) -> Callable[[Tensor], Tensor]:
    def run(x: Tensor) -> Tensor:
        memories: dict[int, Tensor] = {}
        outputs = []
        for step in x:
            for at, module in enumerate(net):
                if isinstance(module, snntorch.Leaky):
                    step, memories[at] = module(step, memories.get(at, torch.zeros_like(step)))  # noqa: PLW2901
                else:
                    step = module(step)  # noqa: PLW2901
            outputs.append(step)
        return torch.stack(outputs)

    return run


@pytest.mark.parametrize(
    ("mechanism", "reset", "delay"),
    [
        ("subtract", Reset.SOFT, True),
        ("zero", Reset.HARD, True),
        ("zero", Reset.HARD, False),
        ("none", Reset.NONE, True),
    ],
)
def test_snntorch(tmp_path: Path, mechanism: str, reset: Reset, delay: bool) -> None:
    betas = (0.5, 0.9, 0.873)
    leaky = [snntorch.Leaky(beta=beta, threshold=0.5, reset_mechanism=mechanism, reset_delay=delay) for beta in betas]
    layers = [nn.Conv2d(1, 3, 3), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(12, 8), nn.Linear(8, 4)]
    conv, pool, flat, first, last = (on_grid(module, seed) for seed, module in enumerate(layers))
    net = [conv, leaky[0], pool, flat, first, leaky[1], last, leaky[2]]
    nodes = [_extract_snntorch_module(module) for module in net]
    nodes[0].input_shape, nodes[3].input_type = (6, 6), {"input": np.array([3, 2, 2])}
    path = chain(tmp_path / "net.nir", (SAMPLES, 1, 6, 6), *nodes, output=(SAMPLES, 4))
    imported = load_nir(path, timesteps=STEPS, reset=reset, reset_delay=delay)
    assert "read as snntorch writes it" in imported.findings[0].text
    assert_same(imported.graph, snntorch_run(net), 1, 6, 6)
    if mechanism == "subtract":
        assumed = load_nir(path, timesteps=STEPS)
        assert assumed.graph == imported.graph
        assert any("soft reset" in f.text and f.ground is Ground.ASSUMED for f in assumed.findings)


def test_snntorch_without_delay_subtracts_twice(tmp_path: Path) -> None:
    node = _extract_snntorch_module(snntorch.Leaky(beta=0.9, reset_delay=False))
    path = chain(tmp_path / "net.nir", (1,), node)
    with pytest.raises(CompileError, match="soft reset without delay"):
        load_nir(path, reset_delay=False)


def test_snntorch_betas_come_back_to_the_bit(tmp_path: Path) -> None:
    """Trained decays: 1 - beta loses bits of beta, so above 3/4 only is there but one that it can be."""
    rng = np.random.default_rng(0)
    betas = rng.uniform(0.75, 0.999, 200).astype(np.float32)
    one = snntorch.Leaky(beta=torch.from_numpy(betas), threshold=torch.ones(200))
    path = chain(tmp_path / "net.nir", (200,), _extract_snntorch_module(one))
    graph = load_nir(path).graph
    np.testing.assert_array_equal(graph.parameters["n0.decay"], betas)


# sinabs: what its export function writes (it is not in the set that these tests install), and its equations


class SinabsLif:
    """alpha = exp(-1 / tau); v = alpha v + (1 - alpha) x, or alpha v + x; s = v - threshold >= 0; v -= threshold s."""

    def __init__(self, tau: float, threshold: float, norm_input: bool) -> None:
        self.alpha = torch.exp(-1.0 / torch.tensor(tau))
        self.tau, self.threshold, self.norm_input = tau, threshold, norm_input

    def node(self) -> Any:
        tau = torch.tensor(self.tau)
        return nir.LIF(
            tau=tau,
            v_threshold=torch.tensor(self.threshold),
            v_leak=torch.zeros_like(tau),
            r=torch.ones_like(tau),
        )

    def __call__(self, x: Tensor) -> Tensor:
        v, spikes = torch.zeros_like(x[0]), []
        for step in x:
            v = self.alpha * v + ((1 - self.alpha) * step if self.norm_input else step)
            s = (v - self.threshold >= 0).float()
            v = v - s * self.threshold
            spikes.append(s)
        return torch.stack(spikes)


@pytest.mark.parametrize("norm_input", [True, False])
def test_sinabs(tmp_path: Path, norm_input: bool) -> None:
    conv, fc = on_grid(nn.Conv2d(2, 3, 3)), on_grid(nn.Linear(12, 5), seed=1)
    first, second = SinabsLif(20.0, 0.25, norm_input), SinabsLif(3.0, 0.5, norm_input)
    pool = nn.LPPool2d(1, 2)
    nodes = [
        nir.Conv2d((6, 6), conv.weight.detach(), (1, 1), (0, 0), (1, 1), 1, conv.bias.detach()),
        first.node(),
        nir.SumPool2d(kernel_size=(2, 2), stride=(2, 2), padding=(0, 0)),
        nir.Flatten(input_type=np.array([3, 2, 2]), start_dim=0, end_dim=-1),
        nir.Affine(fc.weight.detach().numpy(), fc.bias.detach().numpy()),
        second.node(),
    ]
    path = chain(tmp_path / "net.nir", (2, 6, 6), *nodes)

    def run(x: Tensor) -> Tensor:
        merged = first(conv(x.flatten(0, 1)).unflatten(0, (STEPS, SAMPLES)))
        pooled = pool(merged.flatten(0, 1)).unflatten(0, (STEPS, SAMPLES))
        return second(fc(pooled.flatten(2)))

    imported = load_nir(path, timesteps=STEPS, norm_input=norm_input)
    assert "read as sinabs writes it" in imported.findings[0].text
    assert_same(imported.graph, run, 2, 6, 6)
