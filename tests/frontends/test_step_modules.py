"""Neuron modules that do one step a call and keep their state: in a loop, and as one step that is repeated."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from compiler.evaluate import evaluate
from compiler.ir import CompileError, Reset
from compiler.ir.ops import Conv2d, Lif
from frontends.findings import Finding, Ground
from frontends.from_torch import from_torch, import_module
from frontends.nn import LIF
from frontends.torch_import.axes import Lead
from tests.frontends.step_cells import Kept, cells_are_read, on_grid, reset
from tests.frontends.step_loops import LAYERS, Loop, T, grid, imported, names


@pytest.fixture(autouse=True)
def _cells() -> Iterator[None]:
    with cells_are_read():
        yield


class Block(nn.Module):
    """pool(lif(norm(conv(x)))) + x, one step a call."""

    def __init__(self, channels: int, neuron: nn.Module) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1, groups=channels)
        self.norm = nn.BatchNorm2d(channels, eps=0.0)
        self.lif = neuron
        self.pool = nn.MaxPool2d(3, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.pool(self.lif(self.norm(self.conv(x)))) + x


def kept_network() -> nn.Sequential:
    torch.manual_seed(3)
    return on_grid(
        nn.Sequential(
            nn.Conv2d(2, 4, 3, padding=1),
            Kept(decay=0.5, threshold=0.5),
            Block(4, Kept(decay=0.75, reset=Reset.SOFT)),
            nn.AvgPool2d(2),
            nn.Dropout(0.5),
            nn.Identity(),
            nn.Flatten(),
            nn.Linear(36, 3),
            Kept(decay=1.0, threshold=0.5, reset=Reset.SOFT),
        )
    )


class Repeated(nn.Module):
    """A network of one step, repeated over time."""

    def __init__(self, net: nn.Module, entry: str, end: str) -> None:
        super().__init__()
        self.net, self.entry, self.end = net, entry, end

    def forward(self, x: Tensor) -> Tensor:
        reset(self.net)
        match self.entry:
            case "image":
                steps = [self.net(x) for _ in range(T)]
            case "sequence":
                steps = [self.net(step) for step in x]
            case _:
                steps = [self.net(x[:, t]) for t in range(T)]
        match self.end:
            case "stack":
                return torch.stack(steps)
            case "sum":
                return sum(steps)
            case _:
                return steps[-1]


@pytest.mark.parametrize("end", ["stack", "sum", "last"])
@pytest.mark.parametrize("entry", ["image", "sequence", "samples first"])
def test_neurons_that_keep_their_state(entry: str, end: str) -> None:
    lead = {"image": (3,), "sequence": (T, 3), "samples first": (3, T)}[entry]
    graph = imported(Repeated(kept_network(), entry, end), grid(*lead, 2, 6, 6))
    assert sum(isinstance(node.op, Lif) for node in graph.nodes) == 3
    assert sum(isinstance(node.op, Conv2d) for node in graph.nodes) == 2
    assert graph.timesteps == T


def test_a_network_of_one_step_is_repeated_over_a_sequence() -> None:
    net = kept_network()
    x = grid(T, 3, 2, 6, 6)
    with torch.no_grad():
        want = torch.stack([net(step) for step in x])
    reset(net)
    found = import_module(net, x[0], T)
    assert (found.input.lead, found.output.lead) == (Lead.STEP, Lead.STEP)
    assert found.findings[0] == Finding(
        place="network", ground=Ground.ASSUMED, text="one call is one time step: it is done T = 4 times"
    )
    assert str(found.graph.types["input"]) == "f32[T=4, N, C=2, H=6, W=6]"
    assert torch.equal(evaluate(found.graph, x).output, want)


def test_a_network_of_one_step_may_be_repeated_over_one_image() -> None:
    net = kept_network()
    x = grid(3, 2, 6, 6)
    with torch.no_grad():
        want = torch.stack([net(x) for _ in range(T)])
    reset(net)
    graph = from_torch(net, x, T, repeat_input=True)
    assert names(graph)[:4] == ["input", "0", "encode", "1"]
    assert torch.equal(evaluate(graph, x).output, want)


@pytest.mark.parametrize("timesteps", [1, T])
def test_a_step_that_returns_its_states(timesteps: int) -> None:
    def forward(self: Loop, x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        spikes, v1 = self.lif1(self.fc1(x))
        spikes, v2 = self.lif2(self.fc2(spikes))
        return spikes, {"v1": v1, "v2": v2.clone()}

    net, x = Loop(forward), grid(timesteps, 2, 5)
    graph = from_torch(net, x[0], timesteps, output=0)
    assert names(graph) == ["input", *LAYERS]
    with torch.no_grad():
        assert torch.equal(evaluate(graph, x).output, torch.stack(net.steps(x)))


def test_one_time_step_in_a_loop() -> None:
    net = Loop(lambda self, x: torch.stack(self.steps(x)))
    assert names(from_torch(net, grid(1, 2, 5), 1)) == ["input", *LAYERS]


def test_one_time_step_of_maps_in_a_loop() -> None:
    net = Repeated(kept_network(), "sequence", "stack")
    assert names(from_torch(net, grid(1, 2, 2, 6, 6), 1))[:3] == ["input", "net.0", "net.1"]


def test_one_time_step_of_an_image_with_a_reset() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lif = Kept()

        def forward(self, x: Tensor) -> Tensor:
            self.lif.reset()
            return self.lif(x)

    assert names(from_torch(Net(), grid(2, 5), 1)) == ["input", "encode", "lif", "readout"]


@pytest.mark.parametrize("reset", ["before", "after"])
def test_a_loop_may_reset_at_its_start_or_end(reset: str) -> None:
    def forward(self: Loop, x: Tensor) -> Tensor:
        if reset == "before":
            self.lif1.reset()
        outputs = [self.lif1(self.fc1(step)) for step in x]
        if reset == "after":
            self.lif1.reset()
        return torch.stack(outputs)

    assert names(imported(Loop(forward, Kept), grid(T, 2, 5))) == ["input", "fc1", "lif1"]


def test_neurons_of_both_kinds() -> None:
    def forward(self: Loop, x: Tensor) -> Tensor:
        v, outputs = None, []
        for step in self.whole(x):
            spikes, v = self.lif1(self.fc1(step), v)
            outputs.append(spikes)
        return torch.stack(outputs)

    net = Loop(forward)
    net.whole = LIF(decay=0.5, threshold=0.5)
    assert names(imported(net, grid(T, 2, 5))) == ["input", "whole", "fc1", "lif1"]


def test_what_was_read_is_reported() -> None:
    found = import_module(Loop(lambda self, x: torch.stack(self.steps(x))), grid(T, 2, 5), T)
    assert found.findings == (
        Finding(place="lif1", ground=Ground.READ, text="threshold 1"),
        Finding(place="lif2", ground=Ground.READ, text="threshold 0.5"),
    )


def test_the_module_and_its_state_stay_as_they_were() -> None:
    net = Repeated(kept_network(), "image", "sum").train()
    net.net[1].v = state = torch.ones(3)
    from_torch(net, grid(3, 2, 6, 6), T)
    assert net.net[1].v is state
    assert all(part.training for part in net.modules())


def test_another_number_of_time_steps_is_told() -> None:
    net = Loop(lambda net, x: torch.stack(net.steps(x)))
    with pytest.raises(CompileError) as fault:
        from_torch(net, grid(T, 2, 5), 3)
    assert fault.value.hint.endswith("each neuron does 4 time steps in one call of the network, not timesteps=3")


def test_reset_neurons_elsewhere_are_restored() -> None:
    """Frameworks reset through a list of all neurons, which leads to the originals."""
    kept = kept_network()
    everywhere = list(kept.modules())

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = kept

        def forward(self, x: Tensor) -> Tensor:
            for module in everywhere:
                if isinstance(module, Kept):
                    module.v = torch.zeros_like(x)
            return sum(self.net(x) for _ in range(T))

    kept[1].v = state = torch.ones(3)
    from_torch(Net(), grid(3, 2, 6, 6), T)
    assert kept[1].v is state


@st.composite
def layers(draw: st.DrawFn) -> list[nn.Module]:
    """A chain of layers with neurons that keep their state, from 2 maps of 6 x 6 to 3 features."""
    torch.manual_seed(draw(st.integers(0, 2**16)))

    def neuron() -> nn.Module:
        return Kept(
            decay=draw(st.sampled_from([0.0, 0.5, 0.75, 1.0])),
            threshold=draw(st.sampled_from([0.25, 0.5, 1.0])),
            reset=draw(st.sampled_from(Reset)),
        )

    chain: list[nn.Module] = []
    for _ in range(draw(st.integers(1, 2))):
        chain += [nn.Conv2d(2, 2, draw(st.sampled_from([1, 3])), padding="same", bias=draw(st.booleans()))]
        chain += [neuron()]
        if draw(st.booleans()):
            chain += [Block(2, neuron())]
    chain += draw(st.sampled_from([[nn.AvgPool2d(2)], [nn.MaxPool2d(2)], [nn.LPPool2d(1, 2)]]))
    return [*chain, nn.Flatten(), nn.Linear(18, 3), neuron()]


@given(layers(), st.sampled_from(["image", "sequence", "samples first"]), st.sampled_from(["stack", "sum", "last"]))
@settings(max_examples=25, deadline=None)
def test_random_loops_spike_alike(chain: list[nn.Module], entry: str, end: str) -> None:
    """Weights are eighths, decays quarters: T = 4 steps of at most 36 terms stay inside 24 bits, so sums are exact."""
    net = Repeated(on_grid(nn.Sequential(*chain)), entry, end)
    lead = {"image": (3,), "sequence": (T, 3), "samples first": (3, T)}[entry]
    x = grid(*lead, 2, 6, 6)
    seen: dict[str, list[Tensor]] = {}
    for path, module in net.named_modules():
        if isinstance(module, Kept):
            module.register_forward_hook(lambda _m, _x, y, path=path: seen.setdefault(path, []).append(y))
    graph = from_torch(net, x, T)
    with torch.no_grad():
        want = net(x)
    got = evaluate(graph, x.transpose(0, 1) if entry == "samples first" else x, traces=list(seen))
    assert torch.equal(got.output, want)
    for path, spikes in seen.items():
        assert torch.equal(got.traces[path], torch.stack(spikes)), path
    if (entry, end) == ("sequence", "stack"):
        reset(net)
        assert torch.equal(evaluate(from_torch(net.net, x[0], T), x).output, want)
