"""Imported networks against the torch modules that they came from: outputs and spikes, bit for bit."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional

from compiler.evaluate import evaluate
from compiler.ir import Compare, Encoding, Graph, Reading, Reset
from compiler.ir.ops import AvgPool2d, Conv2d, Encode, Flatten, Input, Lif, MaxPool2d, Readout, Scale
from frontends.from_torch import from_torch
from frontends.nn import LI, LIF, set_timesteps

IMAGE_BEFORE, IMAGE_AFTER, SEPARATE, MERGED = "image", "image after the first layer", "separate", "merged"


class Residual(nn.Module):
    """x + branch(x)."""

    def __init__(self, branch: nn.Module) -> None:
        super().__init__()
        self.branch = branch

    def forward(self, x: Tensor) -> Tensor:
        return x + self.branch(x)


class Network(nn.Module):
    """Layers over merged time, between one of the four forms of input and one of four readouts."""

    def __init__(self, entry: str, timesteps: int, layers: list[nn.Module], reading: Reading | None) -> None:
        super().__init__()
        self.entry, self.timesteps, self.reading = entry, timesteps, reading
        self.layers = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        layers = list(self.layers)
        if self.entry == IMAGE_AFTER:
            x = layers.pop(0)(x)
        if self.entry in (IMAGE_BEFORE, IMAGE_AFTER):
            x = x.unsqueeze(0).repeat(self.timesteps, *(1 for _ in x.shape))
        if self.entry != MERGED:
            x = x.flatten(0, 1)
        for layer in layers:
            x = layer(x)
        x = x.unflatten(0, (self.timesteps, -1))
        match self.reading:
            case Reading.RATE:
                return x.mean(0)
            case Reading.LAST:
                return x[-1]
            case Reading.MAX:
                return x.amax(0)
            case None:
                return x


@st.composite
def neurons(draw: st.DrawFn, timesteps: int) -> nn.Module:
    if draw(st.integers(0, 5)) == 0:
        return LI(decay=draw(st.floats(0, 1)), input_scale=0.5, timesteps=timesteps)
    return LIF(
        decay=draw(st.floats(0, 1)),
        threshold=draw(st.floats(0.1, 0.6)),
        leak_bias=draw(st.sampled_from([0.0, 0.05])),
        reset=draw(st.sampled_from(Reset)),
        reset_delay=draw(st.booleans()),
        compare=draw(st.sampled_from(Compare)),
        timesteps=timesteps,
    )


@st.composite
def networks(draw: st.DrawFn) -> tuple[Network, Tensor]:
    """A random chain of blocks, with random statistics in its batch norms, and an input for it."""
    torch.manual_seed(draw(st.integers(0, 2**16)))
    timesteps, samples = draw(st.integers(1, 4)), draw(st.integers(1, 3))
    channels, size = draw(st.integers(1, 3)), draw(st.integers(6, 9))
    shape = (channels, size, size)
    layers: list[nn.Module] = []
    for _ in range(draw(st.integers(1, 2))):
        wide = channels * draw(st.integers(1, 2))
        layers.append(
            nn.Conv2d(
                channels,
                wide,
                draw(st.sampled_from([1, 3])),
                stride=1,
                padding=draw(st.sampled_from(["same", "valid", 1])),
                groups=draw(st.sampled_from([1, channels])),
                bias=draw(st.booleans()),
            )
        )
        channels = wide
        if draw(st.booleans()):
            norm = nn.BatchNorm2d(channels, affine=draw(st.booleans()))
            norm.running_mean.normal_()
            norm.running_var.uniform_(0.5, 2)
            layers.append(norm)
        layers.append(draw(neurons(timesteps)))
        if draw(st.booleans()):
            branch = nn.Conv2d(channels, channels, 3, padding=1)
            layers.append(Residual(nn.Sequential(branch, draw(neurons(timesteps)))))
    layers.append(
        draw(
            st.sampled_from(
                [nn.AvgPool2d(2, ceil_mode=True, padding=1), nn.MaxPool2d(2, stride=1), nn.Dropout(), nn.Identity()]
            )
        )
    )
    layers.append(nn.Flatten())
    with torch.no_grad():
        features = nn.Sequential(*layers).eval()(torch.zeros(timesteps, *shape)).shape[1]
    layers += [nn.Linear(features, 3), draw(neurons(timesteps))]
    entry = draw(st.sampled_from([IMAGE_BEFORE, IMAGE_AFTER, SEPARATE, MERGED]))
    net = Network(entry, timesteps, layers, draw(st.sampled_from([*Reading, None]))).eval()
    lead = {SEPARATE: (timesteps, samples), MERGED: (timesteps * samples,)}.get(entry, (samples,))
    x = torch.rand(*lead, *shape)
    return net, (x < 0.4).float() if draw(st.booleans()) else x


@given(networks())
@settings(max_examples=25, deadline=None)
def test_graph_computes_what_the_module_computes(case: tuple[Network, Tensor]) -> None:
    net, x = case
    graph = from_torch(net, x, net.timesteps)
    spikes: dict[str, Tensor] = {}
    for path, module in net.named_modules():
        if isinstance(module, LIF):
            module.register_forward_hook(lambda _m, _x, y, path=path: spikes.update({path: y}))
    with torch.no_grad():
        want = net(x)
    timed = graph.input.op.axes.startswith("T")
    assert timed == (net.entry in (SEPARATE, MERGED))
    given_x = x.unflatten(0, (net.timesteps, -1)) if net.entry == MERGED else x
    got = evaluate(graph, given_x, traces=list(spikes))
    assert torch.equal(got.output, want)
    for path, value in spikes.items():
        assert torch.equal(got.traces[path].flatten(0, 1), value), path


def imported(module: nn.Module, x: Tensor, timesteps: int) -> Graph:
    """The graph, once its result equals the module's."""
    graph = from_torch(module.eval(), x, timesteps)
    with torch.no_grad():
        want = module(x)
    got = evaluate(graph, x.reshape(*(size if size != "N" else -1 for size in graph.input.op.shape))).output
    assert torch.equal(got.reshape(want.shape), want)
    return graph


def ops(graph: Graph) -> list[type]:
    return [type(node.op) for node in graph.nodes]


def test_binary_sequences_are_spikes_and_images_are_not() -> None:
    def dtype(module: nn.Module, x: Tensor) -> str:
        op = from_torch(module, x, 3).input.op
        assert isinstance(op, Input)
        return op.dtype

    assert dtype(LIF(), torch.ones(3, 2, 4)) == "spike"
    assert dtype(LIF(), torch.full((3, 2, 4), 0.5)) == "f32"
    assert dtype(nn.Linear(4, 2), torch.ones(2, 4)) == "f32"


def test_separate_time_needs_no_merging() -> None:
    net = nn.Sequential(nn.Linear(5, 4), LIF(), nn.Linear(4, 2), LI())
    graph = imported(net, (torch.rand(3, 2, 5) < 0.5).float(), 3)
    assert [node.name for node in graph.nodes] == ["input", "0", "1", "2", "3"]
    assert str(graph.types["3"]) == "f32[T=3, N, C=2]"
    assert list(graph.parameters) == list(net.state_dict())


class Expression(nn.Module):
    """A forward given as a function."""

    def __init__(self, function: object, **layers: nn.Module) -> None:
        super().__init__()
        self.function = function
        for name, layer in layers.items():
            self.add_module(name, layer)

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self, x)


ENCODINGS = {
    "unsqueeze and repeat": lambda x: x.unsqueeze(0).repeat(3, 1, 1),
    "repeat with a new axis": lambda x: x.repeat(3, 1, 1),
    "repeat of merged time": lambda x: x.repeat(3, 1).unflatten(0, (3, -1)),
    "expand": lambda x: x.unsqueeze(0).expand(3, -1, -1),
    "expand with a new axis": lambda x: x.expand(3, *x.shape),
    "index by None": lambda x: x[None].expand(3, -1, -1),
    "view": lambda x: x.view(1, *x.shape).repeat(3, 1, 1),
    "stack": lambda x: torch.stack([x] * 3),
}


@pytest.mark.parametrize("form", ENCODINGS)
def test_repeating_an_image_is_a_direct_encoding(form: str) -> None:
    net = Expression(lambda self, x: self.lif(ENCODINGS[form](x)).mean(0), lif=LIF(decay=0.9))
    graph = imported(net, torch.rand(2, 4), 3)
    assert ops(graph) == [Input, Encode, Lif, Readout]
    assert graph.node("encode").op == Encode(kind=Encoding.DIRECT, timesteps=3)


READOUTS = {
    "mean": (lambda x: x.mean(0), Reading.RATE),
    "last": (lambda x: x[-1], Reading.LAST),
    "last by position": (lambda x: x[2], Reading.LAST),
    "amax": (lambda x: x.amax(dim=0), Reading.MAX),
    "max values": (lambda x: x.max(0).values, Reading.MAX),
}


@pytest.mark.parametrize("form", READOUTS)
def test_reductions_over_time_are_readouts(form: str) -> None:
    function, kind = READOUTS[form]
    net = Expression(lambda self, x: function(self.li(x)), li=LI(decay=0.9))
    graph = imported(net, torch.randn(3, 2, 4), 3)
    assert graph.node("readout").op == Readout(kind=kind)


# Inputs on a grid of eighths: sums and quotients by powers of two are exact in any order.
EIGHTHS = torch.randint(-8, 8, (2, 3, 8, 8), generator=torch.Generator().manual_seed(0)) / 8

LAYERS = {
    "adaptive pooling": (lambda _, x: functional.adaptive_avg_pool2d(x, 2), [AvgPool2d]),
    "global pooling": (lambda _, x: functional.adaptive_avg_pool2d(x, 1).flatten(1), [AvgPool2d, Flatten]),
    "mean over space": (lambda _, x: x.mean((2, 3)), [AvgPool2d, Flatten]),
    "functional pooling": (lambda _, x: functional.max_pool2d(x, 3, 2, 1, ceil_mode=True), [MaxPool2d]),
    "factor": (lambda _, x: 0.3 * x, [Scale]),
    "division by a power of two": (lambda _, x: x / 4, [Scale]),
    "factor of one tensor": (lambda _, x: x * torch.tensor(0.3), [Scale]),
    "factor per channel": (lambda _, x: x * torch.tensor([0.1, 2.0, 3.0]).view(1, 3, 1, 1), [Scale]),
    "functional flatten": (lambda _, x: x.reshape(x.shape[0], -1), [Flatten]),
    "inactive dropout": (lambda self, x: functional.dropout(x, 0.5, self.training).contiguous().float(), []),
}


@pytest.mark.parametrize("form", LAYERS)
def test_layers(form: str) -> None:
    function, expected = LAYERS[form]
    assert ops(imported(Expression(function), EIGHTHS, 1)) == [Input, *expected]


def test_in_place_sum_of_a_residual_block() -> None:
    def forward(self: nn.Module, x: Tensor) -> Tensor:
        y = self.conv(x)
        y += x
        return y * 2

    graph = imported(Expression(forward, conv=nn.Conv2d(3, 3, 1)), EIGHTHS, 1)
    assert [node.name for node in graph.nodes] == ["input", "conv", "add", "scale"]


def test_conv1d_has_one_row() -> None:
    conv = nn.Conv1d(3, 4, 3, padding=1)
    conv.weight.data = torch.round(conv.weight.data * 8) / 8
    conv.bias.data.zero_()
    net = nn.Sequential(
        conv, nn.BatchNorm1d(4, eps=0.0), nn.MaxPool1d(2), nn.AvgPool1d(2), LIF(timesteps=2), nn.Flatten()
    )
    graph = imported(net, EIGHTHS[:, :, 0], 2)
    op = graph.node("0").op
    assert isinstance(op, Conv2d)
    assert op.padding == (0, 1)
    assert graph.parameters["0.weight"].shape == (4, 3, 1, 3)


def test_a_module_called_twice_gives_two_nodes() -> None:
    net = Expression(lambda self, x: self.lif(self.fc(self.lif(self.fc(x)))), fc=nn.Linear(4, 4), lif=LIF())
    graph = imported(net, torch.rand(3, 2, 4), 3)
    assert [node.name for node in graph.nodes] == ["input", "fc", "lif", "fc_2", "lif_2"]
    assert list(graph.parameters) == ["fc.weight", "fc.bias"]


def test_the_module_stays_as_it_was() -> None:
    net = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), LIF(timesteps=2)).train()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    from_torch(net, torch.rand(4, 4), 2)
    assert all(part.training for part in net.modules())
    assert all(torch.equal(before[name], value) for name, value in net.state_dict().items())
    assert net(torch.rand(4, 4)).requires_grad


def test_any_batch_runs_through_the_graph() -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(12, 5))
    graph = from_torch(net, torch.rand(1, 3, 2, 2), 4)
    x = torch.rand(7, 3, 2, 2)
    with torch.no_grad():
        assert torch.equal(evaluate(graph, x).output, net(x))


def test_per_channel_neurons_bring_their_buffers() -> None:
    lif = LIF(decay=torch.linspace(0, 1, 4), threshold=torch.linspace(0.1, 0.5, 4))
    net = nn.Sequential(nn.Linear(4, 4), lif)
    graph = imported(net, torch.rand(3, 2, 4), 3)
    assert list(graph.parameters) == list(net.state_dict())


def test_origin_is_module_and_line() -> None:
    net = Expression(lambda self, x: self.fc(x), fc=nn.Linear(4, 4))
    node = from_torch(net, torch.rand(2, 4), 1).node("fc")
    assert node.loc.file == "fc"
    assert node.loc.line > 0


def test_timesteps_can_be_changed_after_training() -> None:
    net = Expression(
        lambda self, x: self.lif(x.repeat(self.lif.timesteps, 1)).unflatten(0, (self.lif.timesteps, -1)).mean(0),
        lif=LIF(timesteps=2),
    )
    set_timesteps(net, 5)
    assert imported(net, torch.rand(2, 4), 5).timesteps == 5
