"""What the import refuses, each by name and place."""

from __future__ import annotations

import inspect
import threading
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from compiler.ir import CompileError
from frontends.from_torch import from_torch
from frontends.nn import LIF

IMAGE = torch.rand(2, 3, 8, 8)
SEQUENCE = torch.rand(4, 2, 3)


def fault_of(module: nn.Module, x: Tensor, timesteps: int = 4) -> CompileError:
    with pytest.raises(CompileError) as fault:
        from_torch(module, x, timesteps, name="net")
    return fault.value


class Block(nn.Module):
    """A layer in a child, and an activation that no spiking network has."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(self.conv(x))


def test_an_operator_is_named_with_module_and_line() -> None:
    lines, first = inspect.getsourcelines(Block.forward)
    line = first + next(index for index, text in enumerate(lines) if "tanh" in text)
    fault = fault_of(nn.Sequential(nn.Identity(), Block()), IMAGE)
    assert str(fault) == (f"{__file__}:{line}: error: 1: aten.tanh.default: not an operator of spiking networks")


def layer(build: Callable[[], nn.Module], x: Tensor = IMAGE) -> tuple[Callable[[], nn.Module], Tensor]:
    return build, x


# In a Sequential no user's line is on the stack, so the place is the module's path.
GOLDEN = {
    "dilation": (
        layer(lambda: nn.Sequential(nn.Conv2d(3, 3, 3, dilation=2))),
        "0: error: 0: aten.conv2d.default: dilation is (2, 2), must be 1",
    ),
    "padding mode": (
        layer(lambda: nn.Sequential(nn.Conv2d(3, 3, 3, padding=1, padding_mode="circular"))),
        "0: error: 0: aten.pad.default: not an operator of spiking networks\n"
        "  hint: padding inside a convolution with padding_mode='zeros' is expressed",
    ),
    "same padding": (
        layer(lambda: nn.Sequential(nn.Conv2d(3, 3, 2, padding="same"))),
        "0: error: 0: aten.conv2d.padding: padding 'same' of the even kernel (2, 2) is not symmetric\n"
        "  hint: pad with an odd kernel, or give the padding as numbers",
    ),
    "divisor": (
        layer(lambda: nn.Sequential(nn.AvgPool2d(2, divisor_override=3))),
        "0: error: 0: aten.avg_pool2d.default: divides sums of 4 values by 3: "
        "their mean times 4 / 3 would round otherwise\n"
        "  hint: leave divisor_override out, or use powers of two",
    ),
    "adaptive pooling": (
        layer(lambda: nn.Sequential(nn.AdaptiveAvgPool2d(3))),
        "0: error: 0: aten.adaptive_avg_pool2d.default: pools (8, 8) to (3, 3) in windows of different sizes\n"
        "  hint: the input must be a multiple of the output",
    ),
    "relu": (
        layer(lambda: nn.Sequential(nn.ReLU())),
        "0: error: 0: aten.relu.default: not an operator of spiking networks\n"
        "  hint: spiking networks use a neuron module here, as spikec.nn.LIF",
    ),
    "batch statistics": (
        layer(lambda: nn.Sequential(nn.BatchNorm2d(3, track_running_stats=False))),
        "0: error: 0: aten.batch_norm.default: uses the statistics of the batch\n  hint: set track_running_stats=True",
    ),
    "neuron on an image": (
        layer(lambda: nn.Sequential(nn.Conv2d(3, 3, 1), LIF()), torch.rand(3, 3, 8, 8)),
        "1: error: 1: spikec.neuron.default: the neuron gets a value without a time axis, "
        "(N, ...) without time of features (3, 8, 8)\n"
        "  hint: repeat the image over time: x.unsqueeze(0).repeat(T, 1, 1, 1, 1)",
    ),
    "other timesteps": (
        layer(lambda: nn.Sequential(nn.Linear(3, 3), LIF(timesteps=8)), torch.rand(8, 3)),
        "1: error: 1: LIF has timesteps=8, the network is imported with timesteps=4\n"
        "  hint: spikec.nn.set_timesteps(module, 4)",
    ),
    "linear on maps": (
        layer(lambda: nn.Sequential(nn.Linear(8, 3))),
        "0: error: 0: aten.linear.default: acts on the last axis of (N, ...) without time "
        "of features (3, 8, 8)\n"
        "  hint: flatten the features first: nn.Flatten()",
    ),
    "double precision": (
        layer(lambda: nn.Sequential(nn.Linear(3, 3)).double(), torch.rand(2, 3)),
        "0: error: 0: aten.linear.default: 0.weight is torch.float64, must be torch.float32\n"
        "  hint: call module.float()",
    ),
}


@pytest.mark.parametrize("case", GOLDEN)
def test_golden_messages(case: str) -> None:
    (build, x), message = GOLDEN[case]
    assert str(fault_of(build(), x)) == message


class Forward(nn.Module):
    """A forward given as a function, over a neuron, a layer and a buffer."""

    def __init__(self, function: Callable[[Forward, Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function
        self.lif = LIF(decay=0.5)
        self.merged = LIF(timesteps=4)
        self.fc = nn.Linear(3, 3)
        self.norm = nn.BatchNorm1d(2)
        self.state = nn.Buffer(torch.zeros(3))
        self.memory: dict[str, list[Tensor]] = {}

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self, x)


def running_buffer(net: Forward, x: Tensor) -> Tensor:
    y = net.fc(x) * net.state
    net.state = net.state + x.mean((0, 1))
    return y


def buffer_in_place(net: Forward, x: Tensor) -> Tensor:
    net.state.copy_(x.mean((0, 1)))
    return net.fc(x)


def membrane_attribute(net: Forward, x: Tensor) -> Tensor:
    net.v = 0.5 * getattr(net, "v", 0.0) + x
    return net.fc(net.v)


def membrane_in_a_list(net: Forward, x: Tensor) -> Tensor:
    net.memory["v"] = [x]
    return net.fc(x)


def overwrite(net: Forward, x: Tensor) -> Tensor:
    y = net.fc(x)
    z = y.flatten(0, 1)
    y += x
    return net.fc(z)


MESSAGES = {
    "running buffer": (running_buffer, "the network keeps tensors between calls: state"),
    "buffer in place": (buffer_in_place, "the network keeps tensors between calls: state"),
    "membrane attribute": (membrane_attribute, "the network keeps tensors between calls: v"),
    "membrane in a list": (membrane_in_a_list, "the network keeps tensors between calls: memory['v'][0]"),
    "late read": (overwrite, "aten.add_.Tensor: overwrites a value that is read later"),
    "two outputs": (lambda net, x: (x, net.fc(x)), "1 inputs and 2 outputs"),
    "control flow": (lambda net, x: x if x.sum() > 0 else -x, "torch.export cannot trace the network"),
    "axes mixed": (lambda net, x: x.reshape(2, 12), "reshapes"),
    "batch major": (lambda net, x: net.lif(x.transpose(0, 1)), "from its own first axis, (T, N, ...), it gets (N, T"),
    "features exchanged": (lambda net, x: net.lif(x).transpose(1, 2), "only time and samples may change places"),
    "half a loop": (lambda net, x: torch.stack([net.fc(x[t]) for t in range(2)]), "stacks 2 values"),
    "first step": (lambda net, x: net.lif(x)[0], "selects index 0"),
    "iteration over samples": (lambda net, x: net.lif(x).unbind(1)[0], "only time may be iterated over"),
    "mean over samples": (lambda net, x: net.lif(x).mean(1), "reduces axes (1,)"),
    "time kept": (lambda net, x: net.lif(x).mean(0, keepdim=True), "keeps the reduced axis"),
    "indices": (lambda net, x: net.fc(net.lif(x).max(0)[1].float()), "converts to|takes result 1"),
    "sum over samples": (lambda net, x: net.lif(x).sum(1), "reduces axes (1,)"),
    "sum of everything": (lambda net, x: net.lif(x).sum(), "aten.sum.default: not an operator"),
    "part of time": (lambda net, x: net.lif(x)[1:], "takes a part of axis 0"),
    "split of samples": (lambda net, x: net.lif(x).split(1, 1)[0], "only time may be split"),
    "second power": (lambda net, x: net.lif(x) ** 2, "raises to the power 2"),
    "magnitude": (lambda net, x: net.fc(x.abs()), "is the magnitude of input"),
    "constant added": (lambda net, x: net.lif(x) + 1.0, "adds a constant"),
    "alpha": (lambda net, x: torch.add(net.lif(x), x, alpha=2), "alpha is 2"),
    "product": (lambda net, x: net.lif(x) * x, "multiplies two activations"),
    "factor per feature and sample": (lambda net, x: net.lif(x) * torch.tensor([[1.0, 2, 3], [4, 5, 6]]), "multiplies"),
    "division": (lambda net, x: net.lif(x) / 3, "divides by 3, whose reciprocal is not exact"),
    "active dropout": (lambda net, x: functional.dropout(x), "dropout is active in evaluation mode"),
    "merged neuron": (lambda net, x: net.merged(net.lif(x)), "takes time from the merged first axis"),
    "separate neuron": (lambda net, x: net.lif(net.merged(x.flatten(0, 1))), "takes time from its own"),
    "norm over samples": (lambda net, x: net.norm(net.lif(x)), "which is not the channel"),
    "repeated samples": (lambda net, x: net.lif(x)[-1].repeat(2, 1), "repeats"),
    "wrong number of steps": (lambda net, x: net.lif(x)[-1].expand(5, -1, -1), "expands"),
    "shapes broadcast": (lambda net, x: net.lif(x) + net.lif(x)[-1], "shapes differ"),
    "cast": (lambda net, x: net.lif(x).double(), "converts to torch.float64"),
}


@pytest.mark.parametrize("case", MESSAGES)
def test_messages(case: str) -> None:
    function, message = MESSAGES[case]
    fault = str(fault_of(Forward(function), SEQUENCE))
    assert any(part in fault for part in message.split("|")), fault


class Attention(nn.Module):
    """A layer whose weight is computed from its input."""

    def forward(self, x: Tensor) -> Tensor:
        return functional.linear(x, x)


def test_weights_that_depend_on_the_input_are_refused() -> None:
    fault = fault_of(Attention(), torch.rand(3, 3))
    assert fault.message == "aten.linear.default: weight is computed in the network, not a parameter"


class Holding(nn.Module):
    """Keeps something beside its layers."""

    def __init__(self, held: object) -> None:
        super().__init__()
        self.layer, self.held = nn.Linear(3, 3), held

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)


def test_what_cannot_be_copied_is_refused() -> None:
    fault = fault_of(Holding(threading.Lock()), torch.rand(2, 3))
    assert fault.message.startswith("the network cannot be copied: TypeError: cannot pickle")


def test_compiled_networks_are_refused() -> None:
    net = torch.jit.trace(nn.Linear(3, 3), torch.rand(2, 3))
    fault = fault_of(net, torch.rand(2, 3))
    assert fault.message == "the network is compiled by TorchScript, which hides its neurons"


class Sifting(nn.Module):
    """Computes with tensors whose extents depend on values."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.nonzero(x)


class Drawing(nn.Module):
    """Draws its spikes at random."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.bernoulli(x)


def test_extents_that_depend_on_values_are_refused() -> None:
    fault = fault_of(Sifting(), torch.rand(2, 3))
    assert fault.message == "aten.nonzero.default: not an operator of spiking networks"


def test_random_spikes_are_refused() -> None:
    fault = fault_of(Drawing(), torch.rand(2, 3))
    assert fault.message == "aten.bernoulli.default: not an operator of spiking networks"
    assert fault.hint.startswith("draw spikes outside the network")


class Enabling(nn.Module):
    """Switches gradients on for a part of its forward."""

    def forward(self, x: Tensor) -> Tensor:
        with torch.enable_grad():
            return 2 * x


def test_changes_of_the_mode_of_gradients_are_refused() -> None:
    fault = fault_of(Enabling(), torch.rand(2, 3))
    assert fault.message == "wrap_with_set_grad_enabled: not an operator of spiking networks"
    assert "torch.enable_grad" in fault.hint


def test_hooks_in_front_of_a_neuron_are_refused() -> None:
    neuron = LIF()
    neuron.register_forward_pre_hook(lambda _module, arguments: (2 * arguments[0],))
    assert fault_of(nn.Sequential(neuron), SEQUENCE).message == (
        "0: hooks in front of a neuron's forward are not imported"
    )


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_weight_that_is_not_finite_is_named(value: float) -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(192, 3))
    net[1].weight.data[0, 0] = value
    fault = fault_of(net, IMAGE)
    assert fault.message == "1: aten.linear.default: 1.weight holds a NaN or infinite value"


class Bursting(nn.Module):
    """Stands for a neuron of another framework."""

    def forward(self, x: Tensor) -> Tensor:
        return x


def test_neurons_of_other_frameworks_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Bursting, "__module__", "snntorch._neurons.bursting")
    fault = fault_of(nn.Sequential(nn.Flatten(), Bursting()), IMAGE)
    assert fault.message == "1: neuron snntorch._neurons.bursting.Bursting is not supported"


def test_own_neurons_with_another_forward_are_refused() -> None:
    class Doubled(LIF):
        def forward(self, x: Tensor) -> Tensor:
            return 2 * super().forward(x)

    assert "Doubled is not supported" in fault_of(Doubled(), SEQUENCE).message


def test_arguments_are_checked() -> None:
    net = nn.Linear(3, 3)
    assert fault_of(net, SEQUENCE, 0).message == "timesteps is 0, must be at least 1"
    assert fault_of(net, SEQUENCE.double()).message == "the example is torch.float64, must be torch.float32"
    assert fault_of(net, torch.rand(3)).message == "the example has shape (3,)"
    assert fault_of(net, torch.rand(0, 3)).message == "the example has shape (0, 3)"
