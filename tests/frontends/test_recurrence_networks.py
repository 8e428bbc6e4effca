"""Whole networks with neurons written out in operators against their imported graphs."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from compiler.evaluate import evaluate
from compiler.ir import Compare, Param, Reset
from compiler.ir.ops import Add, Conv2d, Encode, Li, Lif, Readout
from frontends.from_torch import import_module
from tests.frontends.written_loops import Fire, Layers, check, drives, images, only


def two_convolutions(net: Layers, x: Tensor) -> Tensor:
    m1, m2 = 0.0, torch.zeros(())
    count = 0
    for t in range(4):
        m1 = 0.5 * m1 + net.conv1(x[t])
        s1 = Fire.apply(m1 - 0.75)
        m1 = m1 * (1 - s1)
        m2 = m2 * 0.75 + net.conv2(functional.avg_pool2d(s1, 2))
        s2 = (m2 >= 0.5).float()
        m2 = m2 - 0.5 * s2
        count = count + net.fc(s2.flatten(1))
    return count / 4


def test_two_layers_in_one_loop() -> None:
    net = Layers(two_convolutions, conv1=nn.Conv2d(2, 3, 3), conv2=nn.Conv2d(3, 4, 3, padding=1), fc=nn.Linear(36, 5))
    graph = check(net, images(4, 2, 2, 8, 8), 4)
    assert [type(node.op).__name__ for node in graph.nodes] == [
        *("Input", "Conv2d", "Lif", "AvgPool2d", "Conv2d", "Lif", "Flatten", "Linear", "Readout")
    ]


def same_image(net: Layers, x: Tensor) -> Tensor:
    current = net.conv1(x)
    m = torch.zeros_like(current)
    spikes = []
    for _ in range(5):
        m = 0.875 * m + current
        s = (m > 1.5).float()
        m = torch.where(s > 0, 0.125, m)
        spikes.append(s)
    return torch.stack(spikes).sum(0)


def test_an_image_that_comes_again_at_each_step() -> None:
    graph = check(Layers(same_image, conv1=nn.Conv2d(2, 3, 3)), images(2, 2, 8, 8), 5)
    assert len(only(graph, Encode)) == len(only(graph, Conv2d)) == len(only(graph, Lif)) == 1


def residual(net: Layers, x: Tensor) -> Tensor:
    m1, m2 = torch.zeros(()), torch.zeros(())
    spikes = []
    for step in x:
        m1 = 0.5 * m1 + net.conv1(step)
        s1 = (m1 > 0.5).float()
        m1 = m1 - 0.5 * s1
        m2 = 0.5 * m2 + net.conv2(s1) + s1
        s2 = (m2 > 0.5).float()
        m2 = m2 - 0.5 * s2
        spikes.append(s2 + s1)
    return torch.stack(spikes).mean(0)


def test_inputs_that_no_operator_adds_are_added() -> None:
    net = Layers(residual, conv1=nn.Conv2d(2, 2, 3, padding=1), conv2=nn.Conv2d(2, 2, 3, padding=1))
    graph = check(net, images(4, 2, 2, 6, 6), 4)
    assert len(only(graph, Add)) == 2
    assert len(only(graph, Lif)) == 2


def per_channel(net: Layers, x: Tensor) -> Tensor:
    decay, threshold = torch.sigmoid(net.decay), net.threshold[:, None, None]
    m = torch.full((3, 1, 1), 0.25)
    spikes = []
    for step in x:
        m = decay[:, None, None] * m + net.conv1(step) + net.bias
        s = (m >= threshold).float()
        m = m - s * threshold
        spikes.append(s)
    return torch.stack(spikes)


def test_numbers_per_channel() -> None:
    net = Layers(
        per_channel,
        conv1=nn.Conv2d(2, 3, 3),
        decay=nn.Parameter(torch.tensor([-1.0, 0.0, 2.0])),
        threshold=nn.Parameter(torch.tensor([0.5, 1.0, 1.25])),
        bias=nn.Parameter(torch.tensor([0.0, 0.125, -0.125])[:, None, None]),
    )
    graph = check(net, images(4, 2, 2, 6, 6), 4)
    (lif,) = only(graph, Lif)
    assert isinstance(lif.decay, Param)
    assert lif.reset is Reset.SOFT
    assert lif.initial == 0.25
    assert graph.parameters[lif.threshold.name].tolist() == [0.5, 1.0, 1.25]
    assert graph.parameters[lif.leak_bias.name].tolist() == [0.0, 0.125, -0.125]


def integrators(reading: str) -> Callable[[Layers, Tensor], Tensor]:
    def forward(net: Layers, x: Tensor) -> Tensor:
        m, out = torch.zeros(x.shape[1], 4), None if reading == "unset" else torch.zeros(x.shape[1], 3)
        potentials = []
        for step in x:
            m = 0.5 * m + net.fc1(step)
            s = (m > 0.5).float()
            m = m * (1 - s)
            current = net.fc2(s)
            out = current if out is None else out + (current - out) / 4 if reading == "tau" else 0.75 * out + current
            potentials.append(out)
        match reading:
            case "last":
                return out
            case "sum":
                return sum(potentials)
            case "max":
                return torch.stack(potentials).max(0)[0]
            case "mean":
                return torch.stack(potentials).mean(0)
        return torch.stack(potentials)

    return forward


@pytest.mark.parametrize("reading", ["all", "last", "sum", "max", "mean", "unset", "tau"])
@pytest.mark.parametrize("timesteps", [2, 4])
def test_leaky_integrators(reading: str, timesteps: int) -> None:
    net = Layers(integrators(reading), fc1=nn.Linear(5, 4), fc2=nn.Linear(4, 3))
    graph = check(net, drives(timesteps, 0), timesteps)
    (li,) = only(graph, Li)
    assert li.decay == 0.75
    assert li.input_scale == (0.25 if reading == "tau" else 1.0)


def synaptic(net: Layers, x: Tensor) -> Tensor:
    i, m = torch.zeros(16, 4), torch.zeros(16, 4)
    spikes = []
    for step in x:
        i = 0.5 * i + net.fc1(step)
        m = 0.75 * m + i
        s = (m > 2).float()
        m = m - 2 * s
        spikes.append(s)
    return torch.stack(spikes)


def test_a_synaptic_current_is_an_integrator_before_the_neuron() -> None:
    graph = check(Layers(synaptic, fc1=nn.Linear(5, 4)), drives(4, 0), 4)
    assert [type(node.op).__name__ for node in graph.nodes] == ["Input", "Linear", "Li", "Lif"]


def put_ones(u: Tensor) -> Tensor:
    spikes = torch.zeros_like(u)
    spikes[u > 0] = 1.0
    return spikes


def relative(net: Layers, x: Tensor) -> Tensor:
    m, out = torch.zeros(2, 3, 8, 8), torch.zeros(2, 4)
    for _ in range(4):
        m = 0.75 * m + net.conv1(x)
        u = m / 2.0 - 1.0
        lost = torch.zeros_like(m)
        lost[u > 0] = 2.0
        m = m - lost
        out = out + net.fc(functional.avg_pool2d(put_ones(u), 2).flatten(1))
    return out


def test_potentials_relative_to_the_threshold() -> None:
    graph = check(Layers(relative, conv1=nn.Conv2d(2, 3, 3, padding=1), fc=nn.Linear(48, 4)), images(2, 2, 8, 8), 4)
    (lif,) = only(graph, Lif)
    assert (lif.decay, lif.threshold, lif.leak_bias, lif.reset, lif.compare) == (0.75, 2.0, 0.0, Reset.SOFT, Compare.GT)
    assert len(only(graph, Conv2d)) == 1


def euler(net: Layers, x: Tensor) -> Tensor:
    v, spikes = torch.full((x.shape[1], 4), -65.0), []
    for step in x:
        v = v + (-(v + 65.0) + 128.0 * net.fc1(step)) * (1.0 / 16.0)
        s = (v >= -50.0).float()
        v = torch.where(s.bool(), torch.full_like(v, -70.0), v)
        spikes.append(s)
    return torch.stack(spikes).mean(0)


def test_millivolts() -> None:
    (lif,) = only(check(Layers(euler, fc1=nn.Linear(5, 4)), drives(4, 0), 4), Lif)
    assert (lif.decay, lif.leak_bias, lif.input_scale) == (0.9375, -4.0625, 8.0)
    assert (lif.threshold, lif.reset_value, lif.initial) == (-50.0, -70.0, -65.0)


class Population(nn.Module):
    """A layer of neurons over a sequence whose time and batch are merged."""

    def __init__(self, timesteps: int, threshold: float) -> None:
        super().__init__()
        self.timesteps, self.threshold = timesteps, threshold

    def forward(self, x: Tensor) -> Tensor:
        m, spikes = None, []
        for step in x.view(self.timesteps, -1, *x.shape[1:]).unbind(0):
            m = step if m is None else 0.5 * m + step
            s = Fire.apply(m - self.threshold)
            m = m * (1 - s)
            spikes.append(s)
        return torch.stack(spikes).flatten(0, 1)


def test_loops_inside_modules_over_merged_sequences() -> None:
    layers = [nn.Conv2d(2, 3, 3), Population(3, 0.5), nn.AvgPool2d(2), nn.Conv2d(3, 4, 3), Population(3, 4.0)]
    net = nn.Sequential(*layers)
    for layer in (net[0], net[3]):
        layer.weight.data = torch.randint(-3, 6, layer.weight.shape, generator=torch.Generator().manual_seed(1)) / 8
        layer.bias.data.zero_()
    x = images(6, 2, 8, 8)
    graph = import_module(net, x, 3, name="net").graph
    assert [node.name for node in graph.nodes] == ["input", "0", "1", "2", "3", "4"]
    want = net(x).reshape(3, 2, 4, 1, 1)
    assert torch.equal(evaluate(graph, x.reshape(3, 2, 2, 8, 8)).output, want)
    assert 0 < want.mean() < 1


def test_comparisons_without_memory() -> None:
    net = Layers(lambda net, x: torch.stack([(net.fc(step) > 0.5).float() for step in x]), fc=nn.Linear(5, 4))
    (lif,) = only(check(net, drives(4, 0), 4), Lif)
    assert (lif.decay, lif.threshold, lif.reset) == (0.0, 0.5, Reset.NONE)


class Operator(nn.Module):
    """One operator and its constants, as a module that executes a file's nodes has them."""

    def __init__(self, function: Callable[..., Tensor], *constants: float) -> None:
        super().__init__()
        self.function = function
        for index, value in enumerate(constants):
            self.register_buffer(f"c{index}", torch.tensor([value] if index else value))

    def forward(self, *arguments: Tensor) -> Tensor:
        return self.function(*arguments, *self.buffers())


class Nodes(nn.Module):
    """One module for each node of an unrolled loop."""

    def __init__(self, steps: int) -> None:
        super().__init__()
        self.fc = nn.Linear(5, 4, bias=False)
        self.steps = nn.ModuleList(
            nn.ModuleDict(
                {
                    "take": Operator(lambda x, t=t: x[t]),
                    "decay": Operator(torch.mul, 0.5),
                    "add": Operator(torch.add),
                    "compare": Operator(torch.ge, 1.0),
                    "cast": Operator(lambda s: s.to(torch.float32)),
                    "inverse": Operator(lambda s, zero, one: one - s + zero, 0.0, 1.0),
                    "reset": Operator(torch.mul),
                }
            )
            for t in range(steps)
        )

    def forward(self, x: Tensor) -> Tensor:
        m, spikes = torch.zeros(x.shape[1], 4), []
        for step in self.steps:
            m = step["add"](step["decay"](m), self.fc(step["take"](x)))
            s = step["cast"](step["compare"](m))
            m = step["reset"](step["inverse"](s), m)
            spikes.append(s)
        return torch.stack(spikes)


def test_operators_in_modules_of_their_own() -> None:
    net = Nodes(4)
    net.fc.weight.data = torch.randint(-3, 6, (4, 5), generator=torch.Generator().manual_seed(2)) / 8
    (lif,) = only(check(net, drives(4, 0), 4), Lif)
    assert (lif.decay, lif.threshold, lif.reset, lif.compare) == (0.5, 1.0, Reset.HARD, Compare.GE)


def test_samples_first() -> None:
    def forward(net: Layers, x: Tensor) -> Tensor:
        m, spikes = 0.0, []
        for t in range(4):
            m = 0.5 * m + net.fc(x[:, t])
            s = (m >= 0.5).float()
            m = m - 0.5 * s
            spikes.append(s)
        return torch.stack(spikes).mean(0)

    net, x = Layers(forward, fc=nn.Linear(5, 4)), drives(4, 0).transpose(0, 1).contiguous()
    graph = import_module(net, x, 4, name="net").graph
    assert torch.equal(evaluate(graph, x.transpose(0, 1).contiguous()).output, net(x))


def summed(net: Layers, x: Tensor) -> Tensor:
    m, total = torch.zeros(x.shape[1], 4), torch.zeros(x.shape[1], 4)
    for step in x:
        m = 0.5 * m + net.fc1(step)
        s = (m > 0.5).float()
        m = m * (1 - s)
        total += s
    return total


def counted(net: Layers, x: Tensor) -> Tensor:
    m, total, counts = torch.zeros(x.shape[1], 4), torch.zeros(x.shape[1], 4), []
    for step in x:
        m = 0.5 * m + net.fc1(step)
        s = ~(m <= 0.5)
        m = m * (1 - s.float())
        total = total + s
        counts.append(total)
    return torch.stack(counts)


def test_a_sum_that_is_read_at_each_step_is_an_integrator() -> None:
    (li,) = only(check(Layers(counted, fc1=nn.Linear(5, 4)), drives(4, 0), 4), Li)
    assert li.decay == 1.0


def test_a_plain_sum_stays_a_readout() -> None:
    graph = check(Layers(summed, fc1=nn.Linear(5, 4)), drives(4, 0), 4)
    assert len(only(graph, Readout)) == 1
    assert not only(graph, Li)
